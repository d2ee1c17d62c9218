// The kernels, written once with the compiler's vector types. Each kernels_<set>.cpp defines VECTOR_BYTES, VECTOR_REGISTERS
// and KERNEL_TABLE, is compiled with its own instruction-set flags, and includes this file. Nothing here may use inline
// functions of the standard library: the linker keeps one copy of those, and it could be one this machine cannot run.

#include "kernels.h"

namespace engine {
namespace {

template <class T>
struct Vector {
    typedef T Type __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
};
template <class T>
using Vec = typename Vector<T>::Type;

template <class T>
inline Vec<T> load(const T* from) {
    return *reinterpret_cast<const Vec<T>*>(from);
}
template <class T>
inline void store(T* to, Vec<T> value) {
    *reinterpret_cast<Vec<T>*>(to) = value;
}
template <class T>
inline Vec<T> broadcast(T value) {
    return value - Vec<T>{};
}

// --- Activations ---

inline Vec<float> exp_vector(Vec<float> x) {
    // Cephes' expf, 2^n * exp(rest), for arguments whose result is a normal number
    typedef int32_t Int __attribute__((vector_size(VECTOR_BYTES)));
    const Vec<float> zero{};
    const Vec<float> shifted = x * 1.44269504088896341f + (x < zero ? zero - 0.5f : zero + 0.5f);
    const Int n = __builtin_convertvector(shifted, Int);
    const Vec<float> whole = __builtin_convertvector(n, Vec<float>);
    Vec<float> rest = x - whole * 0.693359375f;
    rest = rest - whole * -2.12194440e-4f;
    Vec<float> power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    const Int exponent = (n + 127) << 23;
    return power * (Vec<float>)exponent;
}

inline Vec<float> tanh_vector(Vec<float> x) {
    // Cephes' tanhf: a polynomial near zero, 1 - 2 / (exp(2|x|) + 1) elsewhere; within a few units in the last place
    const Vec<float> zero{};
    const Vec<float> size = x < zero ? -x : x;
    const Vec<float> square = x * x;
    Vec<float> near = square * -5.70498872745e-3f + 2.06390887954e-2f;
    near = near * square - 5.37397155531e-2f;
    near = near * square + 1.33314422036e-1f;
    near = near * square - 3.33332819422e-1f;
    near = near * square * x + x;
    // Beyond 9.01 tanh is 1 in single precision
    const Vec<float> power = exp_vector(size > 9.5f ? zero + 19.0f : size * 2.0f);
    Vec<float> far = 1.0f - 2.0f / (power + 1.0f);
    far = x < zero ? -far : far;
    const Vec<float> result = size < 0.625f ? near : far;
    return x != x ? x : result;
}

inline Vec<double> tanh_vector(Vec<double> x) {
    Vec<double> result;
    for (int lane = 0; lane < Vector<double>::lanes; ++lane) result[lane] = __builtin_tanh(x[lane]);
    return result;
}

template <class T, int kActivation>
inline Vec<T> activate(Vec<T> x) {
    const Vec<T> zero{};
    if (kActivation == kReLU) return x < zero ? zero : x;  // NaN stays NaN
    if (kActivation == kTanh) return tanh_vector(x);
    return x;
}

// gradient * activation'(.), told by the activation's output
template <class T, int kActivation>
inline Vec<T> slope(Vec<T> output, Vec<T> gradient) {
    const Vec<T> zero{};
    if (kActivation == kReLU) return output <= zero ? zero : gradient;
    if (kActivation == kTanh) return gradient * (T(1) - output * output);
    return gradient;
}

// --- Forward and input gradient ---

// acc[r][v] += sum over blocks of value[block][r] * x[column[block]][v]
template <class T, int kRows, int kVectors>
inline void accumulate(const int32_t* column, int n, const T* values, int stride, const T* x, Vec<T> (&acc)[kRows][kVectors]) {
    constexpr int lanes = Vector<T>::lanes;
    int block = 0;
    if constexpr (kRows == 1) {
        // One row alone has too few independent sums to hide the latency of a multiply-add
        Vec<T> other[kVectors] = {};
        for (; block + 1 < n; block += 2) {
            const T* first = x + size_t(column[block]) * stride;
            const T* second = x + size_t(column[block + 1]) * stride;
            for (int v = 0; v < kVectors; ++v) acc[0][v] += values[block] * load<T>(first + v * lanes);
            for (int v = 0; v < kVectors; ++v) other[v] += values[block + 1] * load<T>(second + v * lanes);
        }
        for (int v = 0; v < kVectors; ++v) acc[0][v] += other[v];
    }
    for (; block < n; ++block) {
        const T* from = x + size_t(column[block]) * stride;
        for (int v = 0; v < kVectors; ++v) {
            const Vec<T> input = load<T>(from + v * lanes);
            for (int r = 0; r < kRows; ++r) acc[r][v] += values[block * kRows + r] * input;
        }
    }
}

enum class Pass { kForward, kBackward };

// One group of rows. `side` is the bias when going forward, the activations that fed the layer when going backward.
template <class T, Pass kPass, int kActivation, int kRows, int kVectors, int kChunk>
inline void multiply_group(const Rows& rows, int group, const T* values, const T* x, const T* side, T* y) {
    constexpr int lanes = Vector<T>::lanes;
    constexpr int stride = kVectors * lanes;
    const int first = rows.group_ptr[group], n = rows.group_ptr[group + 1] - first;
    const size_t row = size_t(rows.group_row[group]);
    for (int begin = 0; begin < kVectors; begin += kChunk) {
        Vec<T> acc[kRows][kChunk] = {};
        if (kPass == Pass::kForward && side != nullptr)
            for (int r = 0; r < kRows; ++r)
                for (int v = 0; v < kChunk; ++v) acc[r][v] = broadcast<T>(side[row + r]);
        accumulate<T, kRows, kChunk>(rows.column + first, n, values + rows.value_ptr[group], stride, x + begin * lanes, acc);
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kChunk; ++v) {
                const size_t at = (row + r) * stride + (begin + v) * lanes;
                if constexpr (kPass == Pass::kForward)
                    store<T>(y + at, activate<T, kActivation>(acc[r][v]));
                else
                    store<T>(y + at, kActivation == kIdentity ? acc[r][v] : slope<T, kActivation>(load<T>(side + at), acc[r][v]));
            }
    }
}

template <class T, Pass kPass, int kActivation, int kVectors>
void multiply_panel(const Rows& rows, const T* values, const T* x, const T* side, T* y) {
    // Sums of a whole group must fit the registers, beside the inputs
    constexpr int full = kVectors;
    constexpr int half = kVectors % 2 == 0 && kMaxGroup * kVectors > VECTOR_REGISTERS - 8 ? kVectors / 2 : kVectors;
    for (int group = 0; group < rows.n_groups; ++group) {
        switch (rows.group_row[group + 1] - rows.group_row[group]) {
            case 1: multiply_group<T, kPass, kActivation, 1, kVectors, full>(rows, group, values, x, side, y); break;
            case 2: multiply_group<T, kPass, kActivation, 2, kVectors, full>(rows, group, values, x, side, y); break;
            case 3: multiply_group<T, kPass, kActivation, 3, kVectors, half>(rows, group, values, x, side, y); break;
            default: multiply_group<T, kPass, kActivation, 4, kVectors, half>(rows, group, values, x, side, y);
        }
    }
}

template <class T, Pass kPass, int kActivation>
void multiply_vectors(const Rows& rows, const T* values, int n_vectors, const T* x, const T* side, T* y) {
    switch (n_vectors) {
        case 1: return multiply_panel<T, kPass, kActivation, 1>(rows, values, x, side, y);
        case 2: return multiply_panel<T, kPass, kActivation, 2>(rows, values, x, side, y);
        case 3: return multiply_panel<T, kPass, kActivation, 3>(rows, values, x, side, y);
        default: return multiply_panel<T, kPass, kActivation, 4>(rows, values, x, side, y);
    }
}

template <class T, Pass kPass>
void multiply(const Rows& rows, const T* values, int activation, int n_vectors, const T* x, const T* side, T* y) {
    switch (activation) {
        case kReLU: return multiply_vectors<T, kPass, kReLU>(rows, values, n_vectors, x, side, y);
        case kTanh: return multiply_vectors<T, kPass, kTanh>(rows, values, n_vectors, x, side, y);
        default: return multiply_vectors<T, kPass, kIdentity>(rows, values, n_vectors, x, side, y);
    }
}

template <class T>
void forward(const Rows& rows, const T* values, const T* bias, int activation, int n_vectors, const T* x, T* y) {
    multiply<T, Pass::kForward>(rows, values, activation, n_vectors, x, bias, y);
}

template <class T>
void backward(const Rows& rows, const T* values, int activation, int n_vectors, const T* dy, const T* x, T* dx) {
    multiply<T, Pass::kBackward>(rows, values, activation, n_vectors, dy, x, dx);
}

template <class T>
void derivative(int activation, size_t n, const T* y, T* dy) {
    for (size_t i = 0; i < n; i += Vector<T>::lanes) {
        if (activation == kReLU) store<T>(dy + i, slope<T, kReLU>(load<T>(y + i), load<T>(dy + i)));
        if (activation == kTanh) store<T>(dy + i, slope<T, kTanh>(load<T>(y + i), load<T>(dy + i)));
    }
}

// --- Weight gradient ---

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#error "GCC 12 or clang is needed"
#endif

inline Vec<float> pair_sums(Vec<float> a, Vec<float> b) {
#if VECTOR_BYTES == 64
    return SHUFFLE2(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           SHUFFLE2(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif VECTOR_BYTES == 32
    return SHUFFLE2(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE2(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return SHUFFLE2(a, b, 0, 2, 4, 6) + SHUFFLE2(a, b, 1, 3, 5, 7);
#endif
}

inline Vec<double> pair_sums(Vec<double> a, Vec<double> b) {
#if VECTOR_BYTES == 64
    return SHUFFLE2(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE2(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#elif VECTOR_BYTES == 32
    return SHUFFLE2(a, b, 0, 2, 4, 6) + SHUFFLE2(a, b, 1, 3, 5, 7);
#else
    return SHUFFLE2(a, b, 0, 2) + SHUFFLE2(a, b, 1, 3);
#endif
}

// Lane i of the result is the sum of all lanes of parts[i]
template <class T>
inline Vec<T> sum_each(Vec<T> (&parts)[Vector<T>::lanes]) {
#pragma GCC unroll 8
    for (int width = Vector<T>::lanes; width > 1; width /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < width / 2; ++i) parts[i] = pair_sums(parts[2 * i], parts[2 * i + 1]);
    return parts[0];
}

template <class T>
inline T sum_lanes(Vec<T> value) {
    T sum = 0;
    for (int lane = 0; lane < Vector<T>::lanes; ++lane) sum += value[lane];
    return sum;
}

// Collects vectors whose lanes are to be summed, across rows too: sums of as many as there are lanes cost little more than one
template <class T>
struct Pending {
    static constexpr int lanes = Vector<T>::lanes;
    bool first;
    int n = 0;
    Vec<T> parts[lanes];
    T* targets[lanes];

    inline void add(Vec<T> part, T* target) {
        parts[n] = part;
        targets[n] = target;
        if (++n == lanes) flush();
    }
    inline void flush() {
        for (int i = 0; i < lanes; ++i)
            if (i >= n) parts[i] = Vec<T>{};
        const Vec<T> sums = sum_each<T>(parts);
        for (int i = 0; i < n; ++i) *targets[i] = (first ? T(0) : *targets[i]) + sums[i];
        n = 0;
    }
};

// A stretch of the batch that is summed in one go: n_panels panels of kVectors vectors
template <class T, int kPanels, int kVectors>
void stretch_gradient(const Rows& rows, int begin, int end, size_t x_stride, size_t dy_stride, const T* x, const T* dy, bool first,
                      T* grad, T* bias_grad) {
    constexpr int lanes = Vector<T>::lanes;
    constexpr int width = kVectors * lanes;
    constexpr int side = lanes / kMaxGroup;  // columns that are summed together with kMaxGroup rows
    Pending<T> pending{first};
    for (int group = begin; group < end; ++group) {
        const int row = rows.group_row[group], n_rows = rows.group_row[group + 1] - row;
        const int32_t* column = rows.column + rows.group_ptr[group];
        const int n = rows.group_ptr[group + 1] - rows.group_ptr[group];
        T* to = grad + rows.value_ptr[group];
        const T* own = dy + size_t(row) * width;
        if (bias_grad != nullptr)
            for (int r = 0; r < n_rows; ++r) {
                Vec<T> sum{};
                for (int p = 0; p < kPanels; ++p)
                    for (int v = 0; v < kVectors; ++v) sum += load<T>(own + p * dy_stride + r * width + v * lanes);
                bias_grad[row + r] = (first ? T(0) : bias_grad[row + r]) + sum_lanes<T>(sum);
            }
        if (n_rows == kMaxGroup && side >= 1) {
            for (int block = 0; block < n; block += side) {
                Vec<T> acc[side > 0 ? side * kMaxGroup : 1] = {};
                const T* inputs[side > 0 ? side : 1];
                const int present = n - block < side ? n - block : side;
                for (int s = 0; s < side; ++s) inputs[s] = x + size_t(column[block + (s < present ? s : 0)]) * width;
                for (int p = 0; p < kPanels; ++p)
                    for (int v = 0; v < kVectors; ++v) {
                        Vec<T> outputs[kMaxGroup];
                        for (int r = 0; r < kMaxGroup; ++r) outputs[r] = load<T>(own + p * dy_stride + r * width + v * lanes);
                        for (int s = 0; s < side; ++s) {
                            const Vec<T> input = load<T>(inputs[s] + p * x_stride + v * lanes);
                            for (int r = 0; r < kMaxGroup; ++r) acc[s * kMaxGroup + r] += input * outputs[r];
                        }
                    }
                const Vec<T> sums = sum_each<T>(reinterpret_cast<Vec<T>(&)[lanes]>(acc));
                for (int i = 0; i < present * kMaxGroup; ++i) {
                    T& value = to[block * kMaxGroup + i];
                    value = (first ? T(0) : value) + sums[i];
                }
            }
            continue;
        }
        for (int r = 0; r < n_rows; ++r) {
            Vec<T> outputs[kPanels][kVectors];
            for (int p = 0; p < kPanels; ++p)
                for (int v = 0; v < kVectors; ++v) outputs[p][v] = load<T>(own + p * dy_stride + r * width + v * lanes);
            for (int block = 0; block < n; ++block) {
                const T* input = x + size_t(column[block]) * width;
                Vec<T> acc[kVectors] = {};
                for (int p = 0; p < kPanels; ++p)
                    for (int v = 0; v < kVectors; ++v) acc[v] += outputs[p][v] * load<T>(input + p * x_stride + v * lanes);
                for (int v = 1; v < kVectors; ++v) acc[0] += acc[v];
                pending.add(acc[0], to + block * n_rows + r);
            }
        }
    }
    pending.flush();
}

template <class T>
void weight_gradient(const Rows& rows, const Panels& panels, size_t x_stride, size_t dy_stride, int begin, int end, bool accumulate,
                     const T* x, const T* dy, T* grad, T* bias_grad) {
    // As many output vectors as there are registers for, beside sums and inputs
    constexpr int stretch = VECTOR_REGISTERS / 2 / kPanelVectors;
    static_assert(stretch == 2 || stretch == 4, "one more case is needed below");
    bool first = !accumulate;
    int panel = 0;
    const auto run = [&](auto* kernel, int n_panels) {
        kernel(rows, begin, end, x_stride, dy_stride, x + panel * x_stride, dy + panel * dy_stride, first, grad, bias_grad);
        first = false;
        panel += n_panels;
    };
    const int n_full = panels.last_vectors == kPanelVectors ? panels.n_panels : panels.n_panels - 1;
    while (n_full - panel >= stretch) run(&stretch_gradient<T, stretch, kPanelVectors>, stretch);
    while (n_full - panel >= 1) run(&stretch_gradient<T, 1, kPanelVectors>, 1);
    if (panel < panels.n_panels) switch (panels.last_vectors) {
            case 1: run(&stretch_gradient<T, 1, 1>, 1); break;
            case 2: run(&stretch_gradient<T, 1, 2>, 1); break;
            default: run(&stretch_gradient<T, 1, 3>, 1);
        }
}

// --- Squashed Gaussian ---

inline Vec<float> log_vector(Vec<float> x) {
    // Cephes' logf for positive normal numbers
    typedef int32_t Int __attribute__((vector_size(VECTOR_BYTES)));
    const Int bits = (Int)x;
    Int exponent = (bits >> 23) - 126;
    Vec<float> rest = (Vec<float>)((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
    const Int small = rest < 0.707106781186547524f;
    exponent += small;  // -1 where small
    rest = (small ? rest + rest : rest) - 1.0f;
    const Vec<float> square = rest * rest, e = __builtin_convertvector(exponent, Vec<float>);
    Vec<float> y = rest * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * rest + 1.1676998740e-1f;
    y = y * rest - 1.2420140846e-1f;
    y = y * rest + 1.4249322787e-1f;
    y = y * rest - 1.6668057665e-1f;
    y = y * rest + 2.0000714765e-1f;
    y = y * rest - 2.4999993993e-1f;
    y = y * rest + 3.3333331174e-1f;
    y = y * rest * square + e * -2.12194440e-4f - square * 0.5f;
    return rest + y + e * 0.693359375f;
}

inline Vec<double> exp_vector(Vec<double> x) {
    for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_exp(x[lane]);
    return x;
}
inline Vec<double> log_vector(Vec<double> x) {
    for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_log(x[lane]);
    return x;
}

template <class T>
inline Vec<T> clamped(Vec<T> log_std) {
    const Vec<T> low = broadcast<T>(T(kLogStdMin)), high = broadcast<T>(T(kLogStdMax));
    log_std = log_std < low ? low : log_std;
    return log_std > high ? high : log_std;
}

template <class T>
void squash(size_t n, const T* mean, const T* log_std, const T* noise, T* action, T* log_prob) {
    for (size_t i = 0; i < n; i += Vector<T>::lanes) {
        const Vec<T> log_scale = clamped<T>(load<T>(log_std + i)), scale = exp_vector(log_scale), middle = load<T>(mean + i);
        const Vec<T> drawn = middle + scale * load<T>(noise + i);
        const Vec<T> result = tanh_vector(drawn), distance = drawn - middle;
        store<T>(action + i, result);
        const Vec<T> normal = -(distance * distance) / (T(2) * scale * scale) - log_scale - T(0.91893853320467274178);
        store<T>(log_prob + i, load<T>(log_prob + i) + normal - log_vector(T(1) - result * result + T(kSquashEpsilon)));
    }
}

template <class T>
void squash_gradient(size_t n, const T* log_std, const T* noise, const T* action, const T* d_action, double weight, T* d_mean,
                     T* d_log_std) {
    const Vec<T> zero{}, low = broadcast<T>(T(kLogStdMin)), high = broadcast<T>(T(kLogStdMax));
    const T w = T(weight);
    for (size_t i = 0; i < n; i += Vector<T>::lanes) {
        const Vec<T> raw = load<T>(log_std + i), result = load<T>(action + i);
        const Vec<T> slope = T(1) - result * result;
        const Vec<T> d_drawn = slope * (load<T>(d_action + i) + T(2) * w * result / (slope + T(kSquashEpsilon)));
        store<T>(d_mean + i, d_drawn);
        // Through the draw; the density's own dependence on mean and scale cancels but for the logarithm of the scale
        const Vec<T> d_scale = d_drawn * load<T>(noise + i) * exp_vector(clamped<T>(raw)) - w;
        store<T>(d_log_std + i, raw < low ? zero : (raw > high ? zero : d_scale));
    }
}

// --- Layout ---

template <class T>
void pack(const T* from, ptrdiff_t sample_stride, ptrdiff_t feature_stride, int n_samples, int n_features, int n_vectors, T* panel) {
    const int width = n_vectors * Vector<T>::lanes;
    // Blocks of features, so that the lines of the samples are still in the cache when their next feature is read
    constexpr int tile = 16;
    for (int begin = 0; begin < n_features; begin += tile) {
        const int end = begin + tile < n_features ? begin + tile : n_features;
        for (int sample = 0; sample < n_samples; ++sample) {
            const T* source = from + sample * sample_stride;
            for (int feature = begin; feature < end; ++feature)
                panel[size_t(feature) * width + sample] = source[feature * feature_stride];
        }
        for (int feature = begin; feature < end; ++feature)
            for (int lane = n_samples; lane < width; ++lane) panel[size_t(feature) * width + lane] = T(0);
    }
}

template <class T>
void unpack(const T* panel, int n_samples, int n_features, int n_vectors, T* to, ptrdiff_t sample_stride, ptrdiff_t feature_stride,
            bool add) {
    const int width = n_vectors * Vector<T>::lanes;
    constexpr int tile = 16;
    for (int begin = 0; begin < n_features; begin += tile) {
        const int end = begin + tile < n_features ? begin + tile : n_features;
        for (int sample = 0; sample < n_samples; ++sample)
            for (int feature = begin; feature < end; ++feature) {
                T& target = to[sample * sample_stride + feature * feature_stride];
                const T value = panel[size_t(feature) * width + sample];
                target = add ? target + value : value;
            }
    }
}

template <class T>
bool finite(size_t n, const T* values) {
    // What is not finite is the only thing that gives something else than zero here
    Vec<T> sum{};
    for (size_t i = 0; i < n; i += Vector<T>::lanes) {
        const Vec<T> value = load<T>(values + i);
        sum += value - value;
    }
    return sum_lanes<T>(sum) == T(0);
}

template <class T>
T peak(size_t n, double* flops) {
    constexpr int chains = 12;
    Vec<T> acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = broadcast<T>(T(i));
    // Values that the compiler cannot foresee, and that never overflow
    const volatile T almost_one = T(0.999), small = T(0.001);
    const Vec<T> factor = broadcast<T>(almost_one), term = broadcast<T>(small);
    for (size_t round = 0; round < n; ++round)
        for (int i = 0; i < chains; ++i) acc[i] = acc[i] * factor + term;
    *flops = 2.0 * chains * Vector<T>::lanes * double(n);
    for (int i = 1; i < chains; ++i) acc[0] += acc[i];
    return sum_lanes<T>(acc[0]);
}

// --- Optimizer and target ---

// Results are to be torch's, bit for bit: one rounding where torch has one, so the compiler must not fuse on its own account
#if defined(__clang__)
#define NO_FUSING _Pragma("clang fp contract(off)")
#define UNFUSED
#else
#define NO_FUSING
#define UNFUSED __attribute__((optimize("fp-contract=off")))
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <class T>
UNFUSED inline T fused(T a, T b, T c) {
    NO_FUSING
    const T product = a * b;
    return product + c;
}
#endif

template <class T>
UNFUSED void adam_moments(size_t n, const AdamStep& step, const T* __restrict values, const T* __restrict grad, T* __restrict mean,
                          T* __restrict square) {
    NO_FUSING
    const T weight_decay = T(step.weight_decay), weight = T(step.one_minus_beta1), beta2 = T(step.beta2);
    const T one_minus_beta2 = T(step.one_minus_beta2);
    const bool near = weight < T(0.5);
    for (size_t i = 0; i < n; ++i) {
        const T g = step.weight_decay != 0 ? fused(weight_decay, values[i], grad[i]) : grad[i];
        const T difference = g - mean[i];
        mean[i] = near ? fused(weight, difference, mean[i]) : fused(weight - T(1), difference, g);
        const T faded = square[i] * beta2;
        const T scaled = one_minus_beta2 * g;
        square[i] = fused(scaled, g, faded);
    }
}

template <class T>
UNFUSED void adam_values(size_t n, const AdamStep& step, const T* __restrict mean, const T* __restrict root, T* __restrict values) {
    NO_FUSING
    const T correction = T(step.bias_correction2_sqrt), epsilon = T(step.epsilon), minus_step_size = T(step.minus_step_size);
    for (size_t i = 0; i < n; ++i) {
        const T quotient = root[i] / correction;
        const T denominator = quotient + epsilon;
        const T scaled = minus_step_size * mean[i];
        const T change = scaled / denominator;
        values[i] = values[i] + change;
    }
}

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

template <class T>
void adam(size_t n, const AdamStep& step, const T* __restrict grad, T* __restrict mean, T* __restrict square, T* __restrict values) {
    const T weight_decay = T(step.weight_decay), weight = T(step.one_minus_beta1), beta2 = T(step.beta2);
    const T one_minus_beta2 = T(step.one_minus_beta2), minus_step_size = T(step.minus_step_size), epsilon = T(step.epsilon);
    const T correction = T(1) / T(step.bias_correction2_sqrt);
    for (size_t i = 0; i < n; ++i) {
        const T g = step.weight_decay != 0 ? grad[i] + weight_decay * values[i] : grad[i];
        const T m = mean[i] + weight * (g - mean[i]), s = square[i] * beta2 + one_minus_beta2 * g * g;
        mean[i] = m, square[i] = s;
        values[i] += minus_step_size * m / (root(s) * correction + epsilon);
    }
}

template <class T>
void scale(size_t n, double keep, T* __restrict target) {
    const T factor = T(keep);
    for (size_t i = 0; i < n; ++i) target[i] = target[i] * factor;
}

template <class T>
void add(size_t n, double tau, const T* __restrict online, T* __restrict target) {
    const T factor = T(tau);
    for (size_t i = 0; i < n; ++i) target[i] = fused(factor, online[i], target[i]);
}

// --- Own masks of target layers ---

// As wide as T, so that comparisons of Ts are counted lane by lane
template <class T>
struct Count {
    typedef int32_t Type;
};
template <>
struct Count<double> {
    typedef int64_t Type;
};

template <class T>
size_t outside(size_t n, const T* __restrict weight, const T* __restrict mask, size_t* not_numbers) {
    typename Count<T>::Type beyond = 0, nan = 0;
    for (size_t i = 0; i < n; ++i) {
        beyond += (weight[i] != T(0)) & (mask[i] == T(0));
        nan += weight[i] != weight[i];
    }
    *not_numbers = size_t(nan);
    return size_t(beyond);
}

template <class T>
void scores(size_t n, const T* __restrict weight, const T* __restrict mask, T* __restrict score) {
    for (size_t i = 0; i < n; ++i) {
        const T size = weight[i] < T(0) ? -weight[i] : weight[i], least = mask[i] * T(1e-37);
        score[i] = size > least ? size : least;
    }
}

template <class T>
size_t larger(size_t n, const T* __restrict score, T threshold, size_t* equal) {
    typename Count<T>::Type above = 0, same = 0;
    for (size_t i = 0; i < n; ++i) {
        above += score[i] > threshold;
        same += score[i] == threshold;
    }
    *equal = size_t(same);
    return size_t(above);
}

template <class T>
void keep(size_t n, const T* __restrict score, T threshold, T* __restrict weight, uint8_t* __restrict mask, T* __restrict mask_numbers) {
    for (size_t i = 0; i < n; ++i) {
        const bool kept = score[i] >= threshold;
        mask[i] = kept;
        mask_numbers[i] = kept ? T(1) : T(0);
        weight[i] = kept ? weight[i] : T(0);
    }
}

template <class T>
constexpr Kernels<T> table{
    KERNEL_NAME,        Vector<T>::lanes,    &forward<T>, &backward<T>,     &derivative<T>,  &weight_gradient<T>,
    &pack<T>,           &unpack<T>,          &finite<T>,  &squash<T>,       &squash_gradient<T>, &peak<T>,
    &adam_moments<T>,   &adam_values<T>,     &adam<T>,    &scale<T>,        &add<T>,
    &outside<T>,        &scores<T>,          &larger<T>,  &keep<T>,
};

}  // namespace

template <class T>
const Kernels<T>* KERNEL_TABLE() {
    return &table<T>;
}
template const Kernels<float>* KERNEL_TABLE<float>();
template const Kernels<double>* KERNEL_TABLE<double>();

}  // namespace engine
