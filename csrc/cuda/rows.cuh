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

constexpr int64_t warp_bytes = 16 << 10;  // of a sample that one warp sums; a block else

// Pieces of 16 bytes that a row is taken in.
template <class S>
GRADREG_FAST_INLINE int64_t pieces_of(int64_t columns) {
    return (columns + width<S> - 1) / width<S>;
}

// sums [parts, batch] of a and b [stack, batch, columns], each part of a sample's pieces.
template <class S>
struct Dots {
    int64_t stack, batch, columns;
    const S *a, *b;
    int64_t parts;
    Wide<S>* sums;
};

// Block (samples, part).
template <class S, int team>
__global__ void __launch_bounds__(row_threads, 4) dot_kernel(const __grid_constant__ Dots<S> p) {
    using T = Wide<S>;
    GRADREG_FAST_STATIC_SHARED(T[row_warps][1], shared);
    const int64_t sample = own_team<team>();
    if (sample >= p.batch) return;  // a whole team
    const int64_t pieces = pieces_of<S>(p.columns), total = pieces * p.stack, each = (total + p.parts - 1) / p.parts;
    const int64_t begin = blockIdx.y * each, end = begin + each < total ? begin + each : total;
    T sum[1] = {}, left[width<S>], right[width<S>];
    for (int64_t piece = begin + threadIdx.x % team; piece < end; piece += team) {
        const int64_t k = piece / pieces, column = (piece - k * pieces) * width<S>;
        const int64_t offset = (k * p.batch + sample) * p.columns;
        load(p.a + offset, column, p.columns, left);
        if (p.a == p.b)
            for (int i = 0; i < width<S>; ++i)
                right[i] = left[i];
        else
            load(p.b + offset, column, p.columns, right);
        for (int i = 0; i < width<S>; ++i)
            sum[0] += left[i] * right[i];
    }
    add_team<team>(sum, shared);
    if (threadIdx.x % team == 0) p.sums[blockIdx.y * p.batch + sample] = sum[0];
}

// For a `launch(kernel, columns, rows of blocks, shared bytes, parameters)`; there must be samples.
template <class S, class Launch>
void launch_dots(const Dots<S>& p, const Launch& launch) {
    const bool small = p.stack * p.columns * int64_t(sizeof(S)) <= warp_bytes;
    const int64_t each = small ? row_warps : 1;
    launch(small ? dot_kernel<S, 32> : dot_kernel<S, row_threads>, int((p.batch + each - 1) / each), int(p.parts), 0,
           p);
}

template <class S>
__global__ void __launch_bounds__(row_threads, 4)
    scale_kernel(const Stack of, const S* a, const S* b, const Wide<S>* factor, S* result) {
    using T = Wide<S>;
    const int64_t pieces = pieces_of<S>(of.columns), index = int64_t(blockIdx.x) * row_threads + threadIdx.x;
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
