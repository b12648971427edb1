// The passes of batch normalisation with batch statistics, as kernels see them: plain pointers, no tensors.
//
// Of a channel, over N = batch pixels elements, xhat = (x - mean) inverse and J = weight inverse P with P v = v - m(v)
// - xhat m(xhat v), m the mean: every sweep takes a few sums of each channel, and then one pass whose results are
// linear in what it reads, with coefficients for each channel.

#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace gradreg_fast {

// Where numbers lie: in lines of all channels (channels last), or of one channel's pixels in one sample.
template <class T>
struct NormLayout {
    int64_t batch, channels, pixels;
    bool channels_last;
    const T* x;
    const T* mean;  // [channels]

    int64_t lines() const { return batch * (channels_last ? pixels : channels); }
    int64_t length() const { return channels_last ? channels : pixels; }
    int64_t first_channel(int64_t line) const { return channels_last ? 0 : line % channels; }
    int64_t numbers() const { return batch * channels * pixels; }
};

// Of v and v (x - mean); where tangents v meet cotangents u also of u, u (x - mean) and u v.
constexpr int projected_sums = 2;
constexpr int meeting_sums = 5;

// With d = x - mean, for a stack of K and with coefficients [4 + 4 K, channels], of which the first is the mean:
//   result^k = c_1 v^k + c_{4+4k} d + c_{5+4k} + added,    second = c_2 d + c_3 + sum_k (c_{6+4k} u^k + c_{7+4k} v^k)
template <class T>
struct NormPass {
    const T* u;  // null: no second
    const T* v;
    int64_t stack;
    const T* added;  // null: nothing
    const T* coefficients;
    T* result;  // null: not wanted
    T* second;  // null: not wanted
};

// One instruction set's kernels, for lines [begin, end).
template <class T>
struct NormKernels {
    // sums [K, projected_sums or meeting_sums, channels] are added to; u is null for the former.
    void (*sums)(const NormLayout<T>&, const T* u, const T* v, int64_t stack, int64_t begin, int64_t end, T* sums);
    void (*pass)(const NormLayout<T>&, const NormPass<T>&, int64_t begin, int64_t end);
};

template <class T, Capability>
const NormKernels<T>& norm_kernels();

}  // namespace gradreg_fast
