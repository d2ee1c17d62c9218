// A pool of threads that shares out independent tasks. Which thread runs a task never changes what it computes.
#pragma once

#include <functional>

namespace engine {

// Runs task(i) for i in [0, n_tasks) on up to n_threads threads, the calling one among them; returns when all are done.
void parallel(int n_tasks, int n_threads, const std::function<void(int)>& task);

}  // namespace engine
