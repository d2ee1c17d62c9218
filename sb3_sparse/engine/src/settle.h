// The own mask of a target layer: its largest weights, as many as it has had.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include "network.h"
#include "panels.h"

namespace engine {

enum class Settled {
    kAlready,  // no weight outside of the mask: nothing is done
    kNow,      // there were some
    kLeft,     // a weight is NaN: nothing is done
};

// The n-th largest of `size` values >= 0, 1 <= n <= size. Counting by exponent first leaves few to be sorted.
template <class T>
T nth_largest(const T* values, size_t size, size_t n) {
    constexpr int kBits = 12;
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    const auto bucket_of = [](T value) {  // a larger value never has a smaller one
        Bits bits;
        std::memcpy(&bits, &value, sizeof(T));
        return size_t(bits >> (8 * sizeof(T) - 1 - kBits));
    };
    // Two histograms: neighbours that are equal need not wait for each other
    std::vector<uint32_t> counts(2 << kBits, 0);
    for (size_t i = 0; i < size; ++i) ++counts[2 * bucket_of(values[i]) + i % 2];
    size_t bucket = (1 << kBits) - 1;
    for (;; --bucket) {
        const size_t count = size_t(counts[2 * bucket]) + counts[2 * bucket + 1];
        if (count >= n) break;
        n -= count;
    }
    std::vector<T> inside;
    for (size_t i = 0; i < size; ++i)
        if (bucket_of(values[i]) == bucket) inside.push_back(values[i]);
    std::nth_element(inside.begin(), inside.begin() + (n - 1), inside.end(), std::greater<T>());
    return inside[n - 1];
}

// Keeps n_kept weights, as many as the mask has, at least one; the largest by magnitude, of equal ones those with the lower index.
// A weight inside of the mask counts as 1e-37 if it is smaller. The others become 0. The mask comes as numbers too.
template <class T>
Settled settle(size_t size, size_t n_kept, T* weight, uint8_t* mask, T* mask_numbers) {
    const Kernels<T>& of = *kernels<T>();
    size_t n_not_numbers = 0, n_equal = 0;
    if (of.outside(size, weight, mask_numbers, &n_not_numbers) == 0) return Settled::kAlready;
    if (n_not_numbers != 0) return Settled::kLeft;
    const Loan<T> room(size);
    T* score = room.data();
    of.scores(size, weight, mask_numbers, score);
    const T threshold = nth_largest(score, size, n_kept);
    size_t n_left = n_kept - of.larger(size, score, threshold, &n_equal);
    if (n_left < n_equal)
        for (size_t i = 0; i < size; ++i)
            if (score[i] == threshold && n_left-- == 0) {
                // From here on equal ones are too many
                for (; i < size; ++i)
                    if (score[i] == threshold) score[i] = T(0);
            }
    of.keep(size, score, threshold, weight, mask, mask_numbers);
    return Settled::kNow;
}

}  // namespace engine
