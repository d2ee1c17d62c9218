// What the kernels of every instruction set offer, as a table of functions; kernels.inc.h is compiled once per set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace engine {

enum Activation : int { kIdentity = 0, kReLU = 1, kTanh = 2 };

// A batch is cut into panels of at most kPanelVectors vectors. A panel of n vectors holds activations as
// [feature][n * lanes]: every weight is one pass over contiguous lanes.
constexpr int kPanelVectors = 4;
constexpr int kMaxGroup = 4;
// As stable_baselines3.sac.policies clamps, and as its distribution keeps logarithms away from zero
constexpr double kLogStdMin = -20, kLogStdMax = 2, kSquashEpsilon = 1e-6;
// The widest vector of any instruction set
constexpr size_t kAlignment = 64;

// One direction of a weight: groups of up to kMaxGroup consecutive rows that share their columns. Group g holds rows
// [group_row[g], group_row[g + 1]) and blocks [group_ptr[g], group_ptr[g + 1]); block b multiplies input column[b], its
// values, one for each row of the group, begin at value_ptr[g] + (b - group_ptr[g]) * rows.
struct Rows {
    int n_groups = 0;
    const int32_t* group_row = nullptr;
    const int32_t* group_ptr = nullptr;
    const int32_t* value_ptr = nullptr;
    const int32_t* column = nullptr;
};

// Where the panels of a batch lie. Panels before the last are full.
struct Panels {
    int n_panels = 0;
    int last_vectors = 0;
};

template <class T>
struct Kernels {
    const char* name;
    int lanes;
    // y = activation(W x + bias) on one panel of n_vectors vectors; bias may be null
    void (*forward)(const Rows&, const T* values, const T* bias, int activation, int n_vectors, const T* x, T* y);
    // dx = (W^T dy) * activation'(x) on one panel; `rows` are W's columns, x the panel that fed W (null: no activation)
    void (*backward)(const Rows& rows, const T* values, int activation, int n_vectors, const T* dy, const T* x, T* dx);
    // dy *= activation'(y), n values
    void (*derivative)(int activation, size_t n, const T* y, T* dy);
    // grad (+)= sum over the batch of dy x^T at W's positions, and of dy for the bias (null: none), for groups [begin, end);
    // x and dy are whole batches, x_stride and dy_stride values from one full panel to the next
    void (*weight_gradient)(const Rows&, const Panels&, size_t x_stride, size_t dy_stride, int begin, int end, bool accumulate,
                            const T* x, const T* dy, T* grad, T* bias_grad);
    // Row-major [n_samples, n_features] with strides into one panel, lanes without a sample become zero; and back
    void (*pack)(const T* from, ptrdiff_t sample_stride, ptrdiff_t feature_stride, int n_samples, int n_features,
                 int n_vectors, T* panel);
    void (*unpack)(const T* panel, int n_samples, int n_features, int n_vectors, T* to, ptrdiff_t sample_stride,
                   ptrdiff_t feature_stride, bool add);
    // Whether n values, whole vectors, are all finite
    bool (*finite)(size_t n, const T* values);
    // One action of n samples, whole vectors, drawn from a Gaussian and squashed (Haarnoja et al. 2018, appendix C):
    // action = tanh(mean + std * noise), log_std clamped to [kLogStdMin, kLogStdMax]; its log-probability is added to log_prob
    void (*squash)(size_t n, const T* mean, const T* log_std, const T* noise, T* action, T* log_prob);
    // The gradients of weight * log_prob + d_action * action
    void (*squash_gradient)(size_t n, const T* log_std, const T* noise, const T* action, const T* d_action, double weight,
                            T* d_mean, T* d_log_std);
    // n rounds of independent multiply-adds that touch registers alone; *flops says how many operations that is
    T (*peak)(size_t n, double* flops);
    // Adam (Kingma & Ba 2015) as torch's single-tensor loop computes it, in two halves: root is the square root of square,
    // which the caller takes with torch's own function, since MKL's is not the correctly rounded one
    void (*adam_moments)(size_t n, const struct AdamStep& step, const T* values, const T* grad, T* mean, T* square);
    void (*adam_values)(size_t n, const struct AdamStep& step, const T* mean, const T* root, T* values);
    // Both halves at once, with the correctly rounded root
    void (*adam)(size_t n, const struct AdamStep& step, const T* grad, T* mean, T* square, T* values);
    // target = target * keep
    void (*scale)(size_t n, double keep, T* target);
    // target = target + tau * online
    void (*add)(size_t n, double tau, const T* online, T* target);
    // How many weights are not zero where the mask, as numbers, is; *not_numbers says how many are NaN
    size_t (*outside)(size_t n, const T* weight, const T* mask, size_t* not_numbers);
    // What weights are chosen by: their magnitude, at least 1e-37 inside of the mask
    void (*scores)(size_t n, const T* weight, const T* mask, T* score);
    // How many of n scores are larger than a threshold; *equal says how many are equal to it
    size_t (*larger)(size_t n, const T* score, T threshold, size_t* equal);
    // Puts the mask of scores that reach a threshold, also as numbers, and zero into all other weights
    void (*keep)(size_t n, const T* score, T threshold, T* weight, uint8_t* mask, T* mask_numbers);
};

struct AdamStep {
    double one_minus_beta1, beta2, one_minus_beta2, minus_step_size, bias_correction2_sqrt, epsilon, weight_decay;
};

template <class T>
const Kernels<T>* baseline_kernels();
#ifdef SB3_SPARSE_X86
template <class T>
const Kernels<T>* avx2_kernels();
template <class T>
const Kernels<T>* avx512_kernels();
#endif

}  // namespace engine
