// What remains of squared Jacobian norms beside products: sums over a sample's cotangents, and their adjoint.
//
// Kernel dot_kernel: sum_k <a^k_b, b^k_b> of each sample
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 numbers an element (1 where a is b), 2 operations each
//   registers  64
//   shared     64
//
// Kernel scale_kernel: factor_b a^k_b, or that times b^k_b
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 1 number an element (2 with b), writes 1
//   registers  64

#pragma once

#include "cuda/rows.h"
#include "cuda/teams.cuh"
#include "cuda/vector.cuh"

namespace gradreg_fast::cuda {

// Pieces of 16 bytes that a row is taken in.
template <class S>
__device__ __forceinline__ int64_t pieces_of(const Stack& of) {
    return (of.columns + width<S> - 1) / width<S>;
}

// Block (samples, part). sums [parts, batch].
template <class S, int team>
__global__ void __launch_bounds__(row_threads, 4)
    dot_kernel(const Stack of, const S* a, const S* b, int64_t each, Wide<S>* sums) {
    using T = Wide<S>;
    GRADREG_FAST_STATIC_SHARED(T[row_warps][1], shared);
    const int64_t sample = own_team<team>();
    if (sample >= of.batch) return;  // a whole team
    const int64_t pieces = pieces_of<S>(of), total = pieces * of.stack, begin = blockIdx.y * each;
    const int64_t end = begin + each < total ? begin + each : total;
    T sum[1] = {}, left[width<S>], right[width<S>];
    for (int64_t piece = begin + threadIdx.x % team; piece < end; piece += team) {
        const int64_t k = piece / pieces, column = (piece - k * pieces) * width<S>;
        const int64_t offset = (k * of.batch + sample) * of.columns;
        load(a + offset, column, of.columns, left);
        if (a == b)
            for (int i = 0; i < width<S>; ++i)
                right[i] = left[i];
        else
            load(b + offset, column, of.columns, right);
        for (int i = 0; i < width<S>; ++i)
            sum[0] += left[i] * right[i];
    }
    add_team<team>(sum, shared);
    if (threadIdx.x % team == 0) sums[blockIdx.y * of.batch + sample] = sum[0];
}

template <class S>
__global__ void __launch_bounds__(row_threads, 4)
    scale_kernel(const Stack of, const S* a, const S* b, const Wide<S>* factor, S* result) {
    using T = Wide<S>;
    const int64_t pieces = pieces_of<S>(of), index = int64_t(blockIdx.x) * row_threads + threadIdx.x;
    if (index >= of.stack * of.batch * pieces) return;
    const int64_t row = index / pieces, column = (index - row * pieces) * width<S>, offset = row * of.columns;
    const T scale = factor[row % of.batch];
    T numbers[width<S>], other[width<S>];
    load(a + offset, column, of.columns, numbers);
    if (b) load(b + offset, column, of.columns, other);
    for (int i = 0; i < width<S>; ++i)
        numbers[i] *= b ? scale * other[i] : scale;
    store(numbers, column, of.columns, result + offset);
}

}  // namespace gradreg_fast::cuda
