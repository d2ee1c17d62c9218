/*
 * What a policy computes with, in C99. The compiled runner includes this file; generated C gets the sections that it needs, as
 * they are. A section begins with a line of the form "[section] name: what it needs, ...". Whoever includes it has said what an
 * `sb3s_integer` is: int16_t, or int32_t if a value is quantized with 16 bits.
 *
 * Every function is a definition in sb3_sparse_runtime (functions.py, integer.py, operations/), line by line: single float32
 * operations in the same order, so that the results are the same bits. Compilers must not fuse them.
 */

/* [section] exp: */

/* exp(x) of x in [-87, 88]; what is beyond is clipped. */
static float sb3s_exp(float x)
{
    union {
        int32_t bits;
        float number;
    } power;
    float n, rest, sum;
    x = x > -87.0f ? x : -87.0f;
    x = x < 88.0f ? x : 88.0f;
    n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    rest = (x - n * 0.693359375f) - n * -0.000212194440f;
    sum = 0.00138144335f;
    sum = sum * rest + 0.00836879667f;
    sum = sum * rest + 0.0416683964f;
    sum = sum * rest + 0.166665196f;
    sum = sum * rest + 0.49999994f;
    sum = ((sum * rest) * rest + rest) + 1.0f;
    power.bits = ((int32_t)n + 127) << 23;
    return sum * power.number;
}

/* [section] tanh: exp */

static float sb3s_tanh(float x)
{
    float bounded = x > -10.0f ? x : -10.0f;
    float size, square, sum, near_zero, beyond;
    bounded = bounded < 10.0f ? bounded : 10.0f;
    size = bounded < 0.0f ? -bounded : bounded;
    square = bounded * bounded;
    sum = -0.00570422178f;
    sum = sum * square + 0.0206384305f;
    sum = sum * square + -0.0537395217f;
    sum = sum * square + 0.133314401f;
    sum = sum * square + -0.333332807f;
    near_zero = (sum * square) * bounded + bounded;
    beyond = 1.0f - 2.0f / (sb3s_exp(size + size) + 1.0f);
    beyond = bounded < 0.0f ? -beyond : beyond;
    return size < 0.625f ? near_zero : beyond;
}

/* [section] tanh_all: tanh */

static void sb3s_tanh_all(int n, float *x)
{
    int i;
    for (i = 0; i < n; i++) x[i] = sb3s_tanh(x[i]);
}

/* [section] sigmoid_all: exp */

static void sb3s_sigmoid_all(int n, float *x)
{
    int i;
    for (i = 0; i < n; i++) x[i] = 1.0f / (1.0f + sb3s_exp(-x[i]));
}

/* [section] elu_all: exp */

static void sb3s_elu_all(int n, float alpha, float *x)
{
    int i;
    for (i = 0; i < n; i++) {
        const float below = alpha * (sb3s_exp(x[i] < 0.0f ? x[i] : 0.0f) - 1.0f);
        x[i] = x[i] > 0.0f ? x[i] : below;
    }
}

/* [section] exp_all: exp */

static void sb3s_exp_all(int n, float low, float high, float *x)
{
    int i;
    for (i = 0; i < n; i++) {
        float value = x[i] > low ? x[i] : low;
        value = value < high ? value : high;
        x[i] = sb3s_exp(value);
    }
}

/* [section] relu_all: */

static void sb3s_relu_all(int n, float *x)
{
    int i;
    for (i = 0; i < n; i++) x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

/* [section] leaky_relu_all: */

static void sb3s_leaky_relu_all(int n, float slope, float *x)
{
    int i;
    for (i = 0; i < n; i++) x[i] = x[i] > 0.0f ? x[i] : x[i] * slope;
}

/* [section] clip_all: */

static void sb3s_clip_all(int n, float low, float high, float *x)
{
    int i;
    for (i = 0; i < n; i++) {
        const float value = x[i] > low ? x[i] : low;
        x[i] = value < high ? value : high;
    }
}

/* [section] quantize_all: */

/*
 * rint(x / scale), halves to even, in [low, high]: 1.5 * 2**23 takes what is behind the point off an integer of less than 2**22.
 * In steps of their own, of which compilers make vectors without branches.
 */
static void sb3s_quantize_all(int n, float scale, float low, float high, const float *x, sb3s_integer *q)
{
    for (; n > 0; n -= 16, x += 16, q += 16) {
        const int size = n < 16 ? n : 16;
        float values[16] = {0};
        int i;
        for (i = 0; i < size; i++) values[i] = x[i];
        for (i = 0; i < 16; i++) {
            float value = values[i] / scale;
            value = value > low ? value : low;
            value = value < high ? value : high;
            values[i] = (value + 12582912.0f) - 12582912.0f;
        }
        for (i = 0; i < size; i++) q[i] = (sb3s_integer)values[i];
    }
}

/* [section] staircase_all: */

/* lowest + how many of the steps are not above x. */
static void sb3s_staircase_all(int n, int n_steps, const float *steps, int lowest, const float *x, sb3s_integer *q)
{
    int i;
    for (i = 0; i < n; i++) {
        const float *first = steps;
        int length = n_steps;
        while (length > 0) {
            const int half = length / 2;
            if (first[half] <= x[i]) {
                first += half + 1;
                length -= half + 1;
            } else {
                length = half;
            }
        }
        q[i] = (sb3s_integer)(lowest + (int)(first - steps));
    }
}

/* [section] normalize_f64: */

/* VecNormalize, in float64 as there. */
static void sb3s_normalize_f64(int n, const double *mean, const double *deviation, double limit, const double *x, float *y)
{
    int i;
    for (i = 0; i < n; i++) {
        double value = (x[i] - mean[i]) / deviation[i];
        value = value > -limit ? value : -limit;
        value = value < limit ? value : limit;
        y[i] = (float)value;
    }
}

/* [section] arg_max: */

/* The first of the greatest numbers; one that is not allowed counts as -1e8. `allowed` may be null. */
static int sb3s_arg_max(int n, const float *x, const unsigned char *allowed)
{
    int i, best = 0;
    float most = 0.0f;
    for (i = 0; i < n; i++) {
        const float value = allowed == 0 || allowed[i] ? x[i] : -1e8f;
        if (i == 0 || value > most) {
            most = value;
            best = i;
        }
    }
    return best;
}

/* [section] average_quantiles: */

static void sb3s_average_quantiles(int n_quantiles, int n_actions, const float *x, float *y)
{
    int i, a;
    for (a = 0; a < n_actions; a++) {
        float sum = x[a];
        for (i = 1; i < n_quantiles; i++) sum += x[i * n_actions + a];
        y[a] = sum / (float)n_quantiles;
    }
}

/* [section] groups_f32: */

/*
 * A sparse layer. Rows of nearly equal length are taken four at a time: four sums that do not wait for each other, and loops
 * whose length the processor foresees. `rows` says which four; a row too many is number `n_outputs`.
 */
static void sb3s_groups_f32(int n_groups, const uint16_t *lengths, const uint16_t *rows, const uint16_t *columns,
                            const float *weights, const float *bias, const float *x, float *y)
{
    for (; n_groups > 0; n_groups--, rows += 4) {
        float a = bias[rows[0]], b = bias[rows[1]], c = bias[rows[2]], d = bias[rows[3]];
        int n;
        for (n = *lengths++; n > 0; n--, columns += 4, weights += 4) {
            a += weights[0] * x[columns[0]];
            b += weights[1] * x[columns[1]];
            c += weights[2] * x[columns[2]];
            d += weights[3] * x[columns[3]];
        }
        y[rows[0]] = a;
        y[rows[1]] = b;
        y[rows[2]] = c;
        y[rows[3]] = d;
    }
}

/* [section] groups_i8: */

/* The same with integers. */
static void sb3s_groups_i8(int n_groups, const uint16_t *lengths, const uint16_t *rows, const uint16_t *columns,
                           const int8_t *weights, const float *multipliers, const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_groups > 0; n_groups--, rows += 4) {
        int32_t a = 0, b = 0, c = 0, d = 0;
        int n;
        for (n = *lengths++; n > 0; n--, columns += 4, weights += 4) {
            a += (int32_t)weights[0] * x[columns[0]];
            b += (int32_t)weights[1] * x[columns[1]];
            c += (int32_t)weights[2] * x[columns[2]];
            d += (int32_t)weights[3] * x[columns[3]];
        }
        y[rows[0]] = (float)a * multipliers[rows[0]] + bias[rows[0]];
        y[rows[1]] = (float)b * multipliers[rows[1]] + bias[rows[1]];
        y[rows[2]] = (float)c * multipliers[rows[2]] + bias[rows[2]];
        y[rows[3]] = (float)d * multipliers[rows[3]] + bias[rows[3]];
    }
}

/* [section] tiles_f32: */

/* A dense layer, sixteen outputs at a time, whose weights lie behind each other: compilers make vectors of the inner loops. */
static void sb3s_tiles_f32(int n_tiles, int n_inputs, const float *weights, const float *bias, const float *x, float *y)
{
    for (; n_tiles > 0; n_tiles--, bias += 16, y += 16) {
        float sums[16];
        int i, k;
        for (k = 0; k < 16; k++) sums[k] = bias[k];
        for (i = 0; i < n_inputs; i++, weights += 16)
            for (k = 0; k < 16; k++) sums[k] += weights[k] * x[i];
        for (k = 0; k < 16; k++) y[k] = sums[k];
    }
}

/* [section] dots_f32: */

/* A dense layer of few outputs, one row at a time. */
static void sb3s_dots_f32(int n_outputs, int n_inputs, const float *weights, const float *bias, const float *x, float *y)
{
    int o;
    for (o = 0; o < n_outputs; o++, weights += n_inputs) {
        float sums[16] = {0};
        float sum = bias[o];
        int i, k;
        for (i = 0; i + 16 <= n_inputs; i += 16)
            for (k = 0; k < 16; k++) sums[k] += weights[i + k] * x[i + k];
        for (; i < n_inputs; i++) sum += weights[i] * x[i];
        for (k = 0; k < 16; k++) sum += sums[k];
        y[o] = sum;
    }
}

/* [section] dots_i8: */

static void sb3s_dots_i8(int n_outputs, int n_inputs, const int8_t *weights, const float *multipliers, const float *bias,
                         const sb3s_integer *x, float *y)
{
    int o;
    for (o = 0; o < n_outputs; o++, weights += n_inputs) {
        int32_t sum = 0;
        int i;
        for (i = 0; i < n_inputs; i++) sum += (int32_t)weights[i] * x[i];
        y[o] = (float)sum * multipliers[o] + bias[o];
    }
}

/* [section] convolve_f32: */

/*
 * A convolution. Of every output's taps those that exist: where in the (padded) input they begin, and their weights. The input
 * plane from there, times the weight, is added to the output plane.
 */
static void sb3s_convolve_f32(int n_outputs, int height, int width, int row, int down, int right, const uint32_t *n_taps,
                              const uint32_t *taps, const float *weights, const float *bias, const float *x, float *y)
{
    int o;
    for (o = 0; o < n_outputs; o++, y += height * width) {
        uint32_t n;
        int i, j;
        for (i = 0; i < height * width; i++) y[i] = bias[o];
        for (n = n_taps[o]; n > 0; n--, taps++, weights++) {
            const float *from = x + *taps;
            const float weight = *weights;
            float *to = y;
            for (i = 0; i < height; i++, from += down * row, to += width)
                for (j = 0; j < width; j++) to[j] += weight * from[j * right];
        }
    }
}

/* [section] convolve_i8: */

/* The same with integers; `sums` is room for one output plane. */
static void sb3s_convolve_i8(int n_outputs, int height, int width, int row, int down, int right, const uint32_t *n_taps,
                             const uint32_t *taps, const int8_t *weights, const float *multipliers, const float *bias,
                             const sb3s_integer *x, int32_t *sums, float *y)
{
    int o;
    for (o = 0; o < n_outputs; o++, y += height * width) {
        uint32_t n;
        int i, j;
        for (i = 0; i < height * width; i++) sums[i] = 0;
        for (n = n_taps[o]; n > 0; n--, taps++, weights++) {
            const sb3s_integer *from = x + *taps;
            const int32_t weight = *weights;
            int32_t *to = sums;
            for (i = 0; i < height; i++, from += down * row, to += width)
                for (j = 0; j < width; j++) to[j] += weight * from[j * right];
        }
        for (i = 0; i < height * width; i++) y[i] = (float)sums[i] * multipliers[o] + bias[o];
    }
}

/* [section] avx512: */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(SB3S_PORTABLE)
#define SB3S_AVX512 1
#include <immintrin.h>
#define SB3S_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#endif

/* [section] panels_f32: avx512 */

#ifdef SB3S_AVX512
/*
 * A sparse layer, sixteen rows at a time. The inputs are looked at through windows of 32, which two registers hold; a step takes
 * any one input of the window for each row by a permutation. `steps` says how many there are in each window; rows that have fewer
 * weights there are filled up with zeros. Outputs and inputs have room for whole panels and windows.
 */
SB3S_TARGET static void sb3s_panels_f32(int n_panels, int n_windows, const uint8_t *steps, const uint8_t *places,
                                        const float *weights, const float *bias, const float *x, float *y)
{
    for (; n_panels > 0; n_panels--, bias += 16, y += 16) {
        __m512 even = _mm512_loadu_ps(bias), odd = _mm512_setzero_ps();
        int w;
        for (w = 0; w < n_windows; w++) {
            const __m512 low = _mm512_loadu_ps(x + 32 * w), high = _mm512_loadu_ps(x + 32 * w + 16);
            int n = *steps++;
            for (; n >= 2; n -= 2, places += 32, weights += 32) {
                const __m512i first = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)places));
                const __m512i second = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(places + 16)));
                even = _mm512_fmadd_ps(_mm512_loadu_ps(weights), _mm512_permutex2var_ps(low, first, high), even);
                odd = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 16), _mm512_permutex2var_ps(low, second, high), odd);
            }
            if (n > 0) {
                const __m512i last = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)places));
                even = _mm512_fmadd_ps(_mm512_loadu_ps(weights), _mm512_permutex2var_ps(low, last, high), even);
                places += 16;
                weights += 16;
            }
        }
        _mm512_storeu_ps(y, _mm512_add_ps(even, odd));
    }
}
#endif

/* [section] panels_i16: avx512 */

#ifdef SB3S_AVX512
/* The same with integers of 16 bits in lanes of 32, whose upper half is zero in the inputs: a product and its sum are exact. */
SB3S_TARGET static void sb3s_panels_i16(int n_panels, int n_windows, const uint8_t *steps, const uint8_t *places,
                                        const int8_t *weights, const float *multipliers, const float *bias, const int32_t *x,
                                        float *y)
{
    const __m512i lower = _mm512_set1_epi32(0xFFFF);
    for (; n_panels > 0; n_panels--, multipliers += 16, bias += 16, y += 16) {
        __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
        int w;
        for (w = 0; w < n_windows; w++) {
            const __m512i low = _mm512_and_si512(_mm512_loadu_si512((const void *)(x + 32 * w)), lower);
            const __m512i high = _mm512_and_si512(_mm512_loadu_si512((const void *)(x + 32 * w + 16)), lower);
            int n = *steps++;
            for (; n >= 2; n -= 2, places += 32, weights += 32) {
                const __m512i first = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)places));
                const __m512i second = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(places + 16)));
                const __m512i a = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)weights));
                const __m512i b = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(weights + 16)));
                even = _mm512_add_epi32(even, _mm512_madd_epi16(a, _mm512_permutex2var_epi32(low, first, high)));
                odd = _mm512_add_epi32(odd, _mm512_madd_epi16(b, _mm512_permutex2var_epi32(low, second, high)));
            }
            if (n > 0) {
                const __m512i last = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)places));
                const __m512i a = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)weights));
                even = _mm512_add_epi32(even, _mm512_madd_epi16(a, _mm512_permutex2var_epi32(low, last, high)));
                places += 16;
                weights += 16;
            }
        }
        even = _mm512_add_epi32(even, odd);
        _mm512_storeu_ps(y, _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(even), _mm512_loadu_ps(multipliers)),
                                          _mm512_loadu_ps(bias)));
    }
}
#endif

/* [section] tiles_f32_avx512: avx512 */

#ifdef SB3S_AVX512
SB3S_TARGET static void sb3s_tiles_f32_avx512(int n_tiles, int n_inputs, const float *weights, const float *bias, const float *x,
                                              float *y)
{
    for (; n_tiles > 0; n_tiles--, bias += 16, y += 16) {
        __m512 a = _mm512_loadu_ps(bias), b = _mm512_setzero_ps(), c = b, d = b;
        int i;
        for (i = 0; i + 4 <= n_inputs; i += 4, weights += 64) {
            a = _mm512_fmadd_ps(_mm512_loadu_ps(weights), _mm512_set1_ps(x[i]), a);
            b = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 16), _mm512_set1_ps(x[i + 1]), b);
            c = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 32), _mm512_set1_ps(x[i + 2]), c);
            d = _mm512_fmadd_ps(_mm512_loadu_ps(weights + 48), _mm512_set1_ps(x[i + 3]), d);
        }
        for (; i < n_inputs; i++, weights += 16) a = _mm512_fmadd_ps(_mm512_loadu_ps(weights), _mm512_set1_ps(x[i]), a);
        _mm512_storeu_ps(y, _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    }
}
#endif

/* [section] dots_f32_avx512: avx512 */

#ifdef SB3S_AVX512
/* A dense layer of few outputs, two rows at a time. */
SB3S_TARGET static void sb3s_dots_f32_avx512(int n_outputs, int n_inputs, const float *weights, const float *bias, const float *x,
                                             float *y)
{
    int o;
    for (o = 0; o < n_outputs; o += 2) {
        const float *first = weights + (size_t)o * (size_t)n_inputs, *second = o + 1 < n_outputs ? first + n_inputs : first;
        __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
        int i;
        for (i = 0; i + 32 <= n_inputs; i += 32) {
            const __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + i + 16);
            a = _mm512_fmadd_ps(_mm512_loadu_ps(first + i), low, a);
            b = _mm512_fmadd_ps(_mm512_loadu_ps(second + i), low, b);
            c = _mm512_fmadd_ps(_mm512_loadu_ps(first + i + 16), high, c);
            d = _mm512_fmadd_ps(_mm512_loadu_ps(second + i + 16), high, d);
        }
        for (; i < n_inputs; i += 16) {
            const __mmask16 there = (__mmask16)(n_inputs - i < 16 ? (1 << (n_inputs - i)) - 1 : 0xFFFF);
            const __m512 input = _mm512_maskz_loadu_ps(there, x + i);
            a = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, first + i), input, a);
            b = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, second + i), input, b);
        }
        y[o] = bias[o] + _mm512_reduce_add_ps(_mm512_add_ps(a, c));
        if (o + 1 < n_outputs) y[o + 1] = bias[o + 1] + _mm512_reduce_add_ps(_mm512_add_ps(b, d));
    }
}
#endif

/* [section] relu_all_avx512: avx512 */

#ifdef SB3S_AVX512
/* Elementwise functions: the same operations, sixteen numbers at a time. */
SB3S_TARGET static void sb3s_relu_all_avx512(int n, float *x)
{
    for (; n > 0; n -= 16, x += 16) {
        const __mmask16 there = (__mmask16)(n < 16 ? (1 << n) - 1 : 0xFFFF);
        _mm512_mask_storeu_ps(x, there, _mm512_max_ps(_mm512_maskz_loadu_ps(there, x), _mm512_setzero_ps()));
    }
}
#endif

/* [section] quantize_all_avx512: avx512 */

#ifdef SB3S_AVX512
SB3S_TARGET static void sb3s_quantize_all_avx512(int n, float scale, float low, float high, const float *x, int32_t *q)
{
    for (; n > 0; n -= 16, x += 16, q += 16) {
        const __mmask16 there = (__mmask16)(n < 16 ? (1 << n) - 1 : 0xFFFF);
        __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(there, x), _mm512_set1_ps(scale));
        value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(low)), _mm512_set1_ps(high));
        _mm512_mask_storeu_epi32(q, there, _mm512_cvtps_epi32(value));
    }
}
#endif

/* [section] tanh_all_avx512: avx512 */

#ifdef SB3S_AVX512
SB3S_TARGET static void sb3s_tanh_all_avx512(int n, float *x)
{
    const __m512 one = _mm512_set1_ps(1.0f), magic = _mm512_set1_ps(12582912.0f);
    for (; n > 0; n -= 16, x += 16) {
        const __mmask16 there = (__mmask16)(n < 16 ? (1 << n) - 1 : 0xFFFF);
        __m512 bounded = _mm512_maskz_loadu_ps(there, x), size, square, sum, near_zero, beyond, power, rest;
        bounded = _mm512_min_ps(_mm512_max_ps(bounded, _mm512_set1_ps(-10.0f)), _mm512_set1_ps(10.0f));
        size = _mm512_abs_ps(bounded);
        square = _mm512_mul_ps(bounded, bounded);
        sum = _mm512_set1_ps(-0.00570422178f);
        sum = _mm512_add_ps(_mm512_mul_ps(sum, square), _mm512_set1_ps(0.0206384305f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, square), _mm512_set1_ps(-0.0537395217f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, square), _mm512_set1_ps(0.133314401f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, square), _mm512_set1_ps(-0.333332807f));
        near_zero = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(sum, square), bounded), bounded);
        /* exp(2 |x|) */
        beyond = _mm512_add_ps(size, size);
        power = _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(beyond, _mm512_set1_ps(1.44269504f)), magic), magic);
        rest = _mm512_sub_ps(beyond, _mm512_mul_ps(power, _mm512_set1_ps(0.693359375f)));
        rest = _mm512_sub_ps(rest, _mm512_mul_ps(power, _mm512_set1_ps(-0.000212194440f)));
        sum = _mm512_set1_ps(0.00138144335f);
        sum = _mm512_add_ps(_mm512_mul_ps(sum, rest), _mm512_set1_ps(0.00836879667f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, rest), _mm512_set1_ps(0.0416683964f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, rest), _mm512_set1_ps(0.166665196f));
        sum = _mm512_add_ps(_mm512_mul_ps(sum, rest), _mm512_set1_ps(0.49999994f));
        sum = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(sum, rest), rest), rest), one);
        power = _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(power), _mm512_set1_epi32(127)), 23));
        beyond = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(_mm512_mul_ps(sum, power), one)));
        beyond = _mm512_mask_sub_ps(beyond, _mm512_cmp_ps_mask(bounded, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_ps(),
                                    beyond);
        beyond = _mm512_mask_mov_ps(beyond, _mm512_cmp_ps_mask(size, _mm512_set1_ps(0.625f), _CMP_LT_OQ), near_zero);
        _mm512_mask_storeu_ps(x, there, beyond);
    }
}
#endif

/* [section] dots_i8_avx512: avx512 */

#ifdef SB3S_AVX512
/* A dense layer of integers of 16 bits, four rows at a time. */
SB3S_TARGET static void sb3s_dots_i8_avx512(int n_outputs, int n_inputs, const int8_t *weights, const float *multipliers,
                                            const float *bias, const int32_t *x, float *y)
{
    int o, k;
    for (o = 0; o < n_outputs; o += 4) {
        const int8_t *rows[4];
        __m512i sums[4];
        int i;
        for (k = 0; k < 4; k++) {
            rows[k] = weights + (size_t)(o + k < n_outputs ? o + k : o) * (size_t)n_inputs;
            sums[k] = _mm512_setzero_si512();
        }
        for (i = 0; i < n_inputs; i += 32) {
            const int left = n_inputs - i;
            const __mmask32 there = left < 32 ? (1u << left) - 1 : 0xFFFFFFFFu;
            const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi32((__mmask16)there, x + i));
            const __m256i high = _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi32((__mmask16)(there >> 16), x + i + 16));
            const __m512i input = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
            for (k = 0; k < 4; k++) {
                const __m512i weight = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, rows[k] + i));
                sums[k] = _mm512_add_epi32(sums[k], _mm512_madd_epi16(weight, input));
            }
        }
        for (k = 0; k < 4 && o + k < n_outputs; k++)
            y[o + k] = (float)_mm512_reduce_add_epi32(sums[k]) * multipliers[o + k] + bias[o + k];
    }
}
#endif

/*
 * What follows is for small machines: rows one after the other, tables as small as they go. In the sections whose name has an 8,
 * lengths and columns take a byte; code generation makes those with a 16 of them. In those called gaps a byte says how many
 * inputs lie between a weight and the one before it in the row; 255 stands for 255 inputs and no weight. Of those of integers
 * code generation also makes kernels, whose name ends in _relu, that quantize their results for the next layer at once.
 */

/* [section] noinline: */

#if defined(__GNUC__)
#define SB3S_NOINLINE __attribute__((noinline))
#else
#define SB3S_NOINLINE
#endif

/* [section] rows8_f32: noinline */

SB3S_NOINLINE static void sb3s_rows8_f32(int n_rows, const uint8_t *lengths, const uint8_t *columns, const float *weights,
                                         const float *bias, const float *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        float sum = *bias++;
        int n;
        for (n = *lengths++; n > 0; n--) sum += *weights++ * x[*columns++];
        *y++ = sum;
    }
}

/* [section] gaps8_f32: noinline */

SB3S_NOINLINE static void sb3s_gaps8_f32(int n_rows, const uint8_t *lengths, const unsigned char *gaps, const float *weights,
                                         const float *bias, const float *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        float sum = *bias++;
        const float *from = x;
        int n;
        for (n = *lengths++; n > 0; n--) {
            for (; *gaps == 255; gaps++) from += 255;
            from += *gaps++;
            sum += *weights++ * *from;
        }
        *y++ = sum;
    }
}

/* [section] dense_f32: noinline */

SB3S_NOINLINE static void sb3s_dense_f32(int n_rows, int n_inputs, const float *weights, const float *bias, const float *x,
                                         float *y)
{
    for (; n_rows > 0; n_rows--) {
        const float *from = x, *end = x + (n_inputs & ~3);
        float sum = *bias++;
        while (from != end) {
            sum += *weights++ * *from++;
            sum += *weights++ * *from++;
            sum += *weights++ * *from++;
            sum += *weights++ * *from++;
        }
        for (end = x + n_inputs; from != end;) sum += *weights++ * *from++;
        *y++ = sum;
    }
}

/* [section] quantized: */

/* rint(value / scale), halves to even, in [low, high]. */
static sb3s_integer sb3s_quantized(float value, float scale, float low, float high)
{
    union {
        float number;
        int32_t bits;
    } sum;
    value /= scale;
    value = value > low ? value : low;
    value = value < high ? value : high;
    sum.number = value + 12582912.0f;
    return (sb3s_integer)(sum.bits - 0x4B400000);
}

/* [section] positive: */

/* rint(value / scale), halves to even, in [0, high]: what ReLU leaves needs no division where it leaves nothing. */
static sb3s_integer sb3s_positive(float value, float scale, float high)
{
    union {
        float number;
        int32_t bits;
    } sum;
    if (!(value > 0.0f)) return 0;
    value /= scale;
    value = value < high ? value : high;
    sum.number = value + 12582912.0f;
    return (sb3s_integer)(sum.bits - 0x4B400000);
}

/* [section] rows8_i8: noinline */

SB3S_NOINLINE static void sb3s_rows8_i8(int n_rows, const uint8_t *lengths, const uint8_t *columns, const int8_t *weights,
                                        const float *multipliers, const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        int32_t sum = 0;
        int n;
        for (n = *lengths++; n > 0; n--) sum += (int32_t)*weights++ * x[*columns++];
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] gaps8_i8: noinline */

SB3S_NOINLINE static void sb3s_gaps8_i8(int n_rows, const uint8_t *lengths, const unsigned char *gaps, const int8_t *weights,
                                        const float *multipliers, const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        const sb3s_integer *from = x;
        int32_t sum = 0;
        int n;
        for (n = *lengths++; n > 0; n--) {
            for (; *gaps == 255; gaps++) from += 255;
            from += *gaps++;
            sum += (int32_t)*weights++ * *from;
        }
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] rows8_i4: noinline */

/* Two weights in a byte, the first in its lower half, each of them plus 8; a row begins with a new byte. */
SB3S_NOINLINE static void sb3s_rows8_i4(int n_rows, const uint8_t *lengths, const uint8_t *columns, const unsigned char *weights,
                                        const float *multipliers, const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        int32_t sum = 0;
        int n;
        for (n = *lengths++; n > 1; n -= 2, columns += 2, weights++)
            sum += ((int32_t)(*weights & 15) - 8) * x[columns[0]] + ((int32_t)(*weights >> 4) - 8) * x[columns[1]];
        if (n > 0) sum += ((int32_t)(*weights++ & 15) - 8) * x[*columns++];
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] rows8_i2: noinline */

/* Weights of 1 and -1: of each row how many there are, and their columns, first those of 1, then those of -1. */
SB3S_NOINLINE static void sb3s_rows8_i2(int n_rows, const uint8_t *lengths, const uint8_t *columns, const float *multipliers,
                                        const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        int32_t sum = 0;
        int n;
        for (n = *lengths++; n > 0; n--) sum += x[*columns++];
        for (n = *lengths++; n > 0; n--) sum -= x[*columns++];
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] four_products: */

#if defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__) && defined(SB3S_INTEGER16)
#include <arm_acle.h>
#include <string.h>
/* The sum and four products more, two of them in each instruction. */
static int32_t sb3s_four_products(const int8_t *weights, const sb3s_integer *x, int32_t sum)
{
    uint32_t w, low, high, even, odd;
    memcpy(&w, weights, 4);
    memcpy(&low, x, 4);
    memcpy(&high, x + 2, 4);
    /* Compilers do not see what this is */
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(even) : "r"(low), "r"(high));
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(odd) : "r"(high), "r"(low));
    sum = __smlad(__sxtb16((int8x4_t)w), (int16x2_t)even, sum);
    return __smlad(__sxtb16((int8x4_t)(w >> 8 | w << 24)), (int16x2_t)odd, sum);
}
#else
static int32_t sb3s_four_products(const int8_t *weights, const sb3s_integer *x, int32_t sum)
{
    sum += (int32_t)weights[0] * x[0];
    sum += (int32_t)weights[1] * x[1];
    sum += (int32_t)weights[2] * x[2];
    return sum + (int32_t)weights[3] * x[3];
}
#endif

/* [section] dense_i8: noinline, four_products */

SB3S_NOINLINE static void sb3s_dense_i8(int n_rows, int n_inputs, const int8_t *weights, const float *multipliers,
                                        const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        const sb3s_integer *from = x, *end = x + (n_inputs & ~3);
        int32_t sum = 0;
        for (; from != end; from += 4, weights += 4) sum = sb3s_four_products(weights, from, sum);
        for (end = x + n_inputs; from != end;) sum += (int32_t)*weights++ * *from++;
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] dense_i4: noinline */

SB3S_NOINLINE static void sb3s_dense_i4(int n_rows, int n_inputs, const unsigned char *weights, const float *multipliers,
                                        const float *bias, const sb3s_integer *x, float *y)
{
    for (; n_rows > 0; n_rows--) {
        int32_t sum = 0;
        int i;
        for (i = 0; i + 1 < n_inputs; i += 2, weights++)
            sum += ((int32_t)(*weights & 15) - 8) * x[i] + ((int32_t)(*weights >> 4) - 8) * x[i + 1];
        if (i < n_inputs) sum += ((int32_t)(*weights++ & 15) - 8) * x[i];
        *y++ = (float)sum * *multipliers++ + *bias++;
    }
}

/* [section] normalize_f32: */

/*
 * VecNormalize in float32: the mean in two parts, so that nothing is lost where it is much larger than the deviation, and the
 * deviation's reciprocal.
 */
static void sb3s_normalize_f32(int n, const float *mean, const float *rest, const float *factors, float limit, const float *x,
                               float *y)
{
    int i;
    for (i = 0; i < n; i++) {
        float value = ((x[i] - mean[i]) - rest[i]) * factors[i];
        value = value > -limit ? value : -limit;
        y[i] = value < limit ? value : limit;
    }
}

/* [section] quotient: noinline */

/*
 * The float64 quotient of normal numbers, rounded to float32: what a machine without float64 would take a library for. Numbers
 * too small for a float32 number become 0, those too large the largest one.
 */
SB3S_NOINLINE static float sb3s_quotient(double a, double b)
{
    union {
        double number;
        uint64_t bits;
    } wide;
    union {
        uint32_t bits;
        float number;
    } power;
    uint64_t rest, divisor, digits = 0;
    uint32_t result;
    int exponent, i;
    wide.number = b;
    divisor = (wide.bits & 0xFFFFFFFFFFFFFu) | 0x10000000000000u;
    exponent = -(int)((wide.bits >> 52) & 0x7FF);
    wide.number = a;
    rest = (wide.bits & 0xFFFFFFFFFFFFFu) | 0x10000000000000u;
    i = (int)((wide.bits >> 52) & 0x7FF);
    if (i == 0) return 0.0f;
    exponent += i;
    if (rest < divisor) {
        rest <<= 1;
        exponent--;
    }
    for (i = 0; i < 54; i++) {
        digits <<= 1;
        if (rest >= divisor) {
            rest -= divisor;
            digits |= 1;
        }
        rest <<= 1;
    }
    /* To 53 bits, halves to even, then to 24 */
    digits = (digits >> 1) + ((digits & 1) && (rest != 0 || (digits & 2)));
    rest = digits & 0x1FFFFFFF;
    result = (uint32_t)(digits >> 29);
    result += rest > 0x10000000 || (rest == 0x10000000 && (result & 1));
    if (exponent < -100) return 0.0f;
    power.bits = (uint32_t)((exponent > 100 ? 100 : exponent) - 23 + 127) << 23;
    power.number *= (float)(int32_t)result;
    return wide.bits >> 63 ? -power.number : power.number;
}

/* [section] quantize_normalized: quantized, quotient */

/*
 * VecNormalize and quantization together, exactly as in float64 and yet almost always in float32: if the float32 result lies so
 * far from a half that no error can have moved it across, its integer is right; only otherwise it is computed again. `low` and
 * `high` are those of what is clipped to `limit` first.
 */
static void sb3s_quantize_normalized(int n, const float *mean, const float *factors, float safe, float low, float high,
                                     const double *exact_mean, const double *deviation, float scale, const float *x,
                                     sb3s_integer *q)
{
    int i;
    for (i = 0; i < n; i++) {
        union {
            float number;
            int32_t bits;
        } sum;
        float value = (x[i] - mean[i]) * factors[i], distance;
        value = value > low ? value : low;
        value = value < high ? value : high;
        sum.number = value + 12582912.0f;
        distance = value - (sum.number - 12582912.0f);
        q[i] = (sb3s_integer)(sum.bits - 0x4B400000);
        if (distance > safe || distance < -safe)
            q[i] = sb3s_quantized(sb3s_quotient((double)x[i] - exact_mean[i], deviation[i]), scale, low, high);
    }
}
