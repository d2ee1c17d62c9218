// What a gradient step of an off-policy algorithm computes between sampling and its optimizers: targets, losses and their
// gradients, for panels of samples from end to end. The formulas are those of Stable-Baselines3's train().
#pragma once

#include <utility>

#include "network.h"
#include "panels.h"

namespace engine {

// Rows of somebody else's matrix: row i is at data + (indices ? indices[i] : i) * stride values, of float or double.
struct Rows2d {
    const void* data;
    bool is_double;
    ptrdiff_t stride;
    const int64_t* indices;
};

// Transitions in panels. Observations and actions of a sample lie one after the other, as critics read them.
template <class T>
class Batch {
   public:
    Batch(int n_samples, int n_observations, int n_actions);
    Batch(const Batch&) = delete;
    ~Batch();

    // Return whether all is finite
    bool put_observations(const Rows2d& rows) { return put(rows, 0, n_observations, stored); }
    bool put_next_observations(const Rows2d& rows) { return put(rows, 0, n_observations, next); }
    bool put_actions(const Rows2d& rows) { return put(rows, n_observations, n_actions, stored); }
    // discounts: of each sample, or null for `discount`; timeouts: ends that count as none, or null
    bool put_rewards(const float* reward, const float* done, const float* timeout, const int64_t* indices, const float* discounts,
                     double discount);

    int n_inputs() const { return n_observations + n_actions; }
    T* panel(const Buffer<T>& buffer, int panel) const { return buffer.data() + panel * layout.stride(n_inputs()); }

    const Kernels<T>& kernels;
    const Layout<T> layout;
    const int n_samples, n_observations, n_actions;
    // [observations | actions]: as stored; the next observations and what is chosen there; the observations and what is chosen now
    Buffer<T> stored, next, chosen;
    // By sample, zero where a panel has none
    std::vector<T> rewards, discounts;

   private:
    bool put(const Rows2d& rows, int first, int n_features, Buffer<T>& to);
};

template <class T>
using Net = std::shared_ptr<Network<T>>;
template <class T>
using Found = std::vector<std::shared_ptr<Deltas<T>>>;

// Gaussian actions that were drawn for a batch's observations
template <class T>
struct Drawn {
    std::shared_ptr<Tape<T>> body, heads;
    Buffer<T> noise, log_prob;  // in panels: [actions], [1]
    ~Drawn();
};

// TD3 (Fujimoto et al. 2018): the critics' loss and its deltas. noise: row-major [n_samples, n_actions]
template <class T>
std::pair<double, Found<T>> td3_critics(const std::shared_ptr<Batch<T>>& batch, const Net<T>& actor_target,
                                        const std::vector<Net<T>>& targets, const std::vector<Net<T>>& critics, const T* noise,
                                        double noise_clip, int n_threads);
// The actor's loss, and the deltas of actor and critic
template <class T>
std::pair<double, Found<T>> td3_actor(const std::shared_ptr<Batch<T>>& batch, const Net<T>& actor, const Net<T>& critic, int n_threads);

// SAC (Haarnoja et al. 2018). heads: two layers side by side, mean and logarithm of the standard deviation.
// Draws actions for the observations; the mean of their log-probabilities comes with them
template <class T>
std::pair<double, std::shared_ptr<Drawn<T>>> sac_draw(const std::shared_ptr<Batch<T>>& batch, const Net<T>& body, const Net<T>& heads,
                                                      const T* noise, int n_threads);
template <class T>
std::pair<double, Found<T>> sac_critics(const std::shared_ptr<Batch<T>>& batch, const Net<T>& body, const Net<T>& heads,
                                        const std::vector<Net<T>>& targets, const std::vector<Net<T>>& critics, const T* noise,
                                        double entropy_coefficient, int n_threads);
// The actor's loss, and the deltas of body, heads and critics
template <class T>
std::pair<double, Found<T>> sac_actor(const std::shared_ptr<Batch<T>>& batch, const Drawn<T>& drawn, const std::vector<Net<T>>& critics,
                                      double entropy_coefficient, int n_threads);

// DQN (Mnih et al. 2015) with the Huber loss. actions: [n_samples], checked to be in range
template <class T>
std::pair<double, Found<T>> dqn(const std::shared_ptr<Batch<T>>& batch, const Net<T>& network, const Net<T>& target, const int64_t* actions,
                                int n_threads);

}  // namespace engine
