#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace engine {
namespace {

struct Job {
    const std::function<void(int)>* task;
    int n_tasks;
    std::atomic<int> next{0};
    std::atomic<int> n_done{0};

    void work() {
        for (int i; (i = next.fetch_add(1)) < n_tasks;) {
            (*task)(i);
            n_done.fetch_add(1);
        }
    }
};

class Pool {
   public:
    void run(int n_tasks, int n_threads, const std::function<void(int)>& task) {
        const auto job = std::make_shared<Job>();
        job->task = &task;
        job->n_tasks = n_tasks;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (n_workers_ < n_threads - 1) {
                std::thread(&Pool::serve, this).detach();
                ++n_workers_;
            }
            job_ = job;
            n_wanted_ = n_threads - 1;
            ++ticket_;
        }
        wake_.notify_all();
        job->work();
        // Tasks are short and the others are at their last one: waiting for a wake-up would take longer
        while (job->n_done.load() < n_tasks) std::this_thread::yield();
    }

    std::mutex& turn() { return turn_; }

   private:
    void serve() {
        unsigned long seen = 0;
        while (true) {
            std::shared_ptr<Job> job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return ticket_ != seen; });
                seen = ticket_;
                if (n_wanted_ > 0) {
                    --n_wanted_;
                    job = job_;
                }
            }
            if (job) job->work();
        }
    }

    std::mutex mutex_;
    std::mutex turn_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    int n_workers_ = 0;
    int n_wanted_ = 0;
    unsigned long ticket_ = 0;
};

// Never destroyed: its threads outlive whatever the end of the process tears down first
Pool* pool = new Pool;

#if defined(__unix__) || defined(__APPLE__)
// A forked child has none of its parent's threads, and maybe its locked locks
const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif

}  // namespace

void parallel(int n_tasks, int n_threads, const std::function<void(int)>& task) {
    if (n_threads > n_tasks) n_threads = n_tasks;
    std::unique_lock<std::mutex> turn(pool->turn(), std::defer_lock);
    // One job at a time; whoever comes meanwhile works alone
    if (n_threads <= 1 || !turn.try_lock()) {
        for (int i = 0; i < n_tasks; ++i) task(i);
        return;
    }
    pool->run(n_tasks, n_threads, task);
}

}  // namespace engine
