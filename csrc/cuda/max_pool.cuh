// Maxima over windows of images and a piecewise linear activation of them, and their sweeps.
//
// A thread takes one number of the result, of each member of a stack: neighbours lie next to each other in memory
// whichever layout the images have, and nothing is summed by several threads. Functions are in float32, of float64 in
// itself. Memory bounds all of them: while an H100 moves the 9 bytes of the smallest result (3.35 TB/s), it has time
// for 180 operations (67 TFLOP/s), and finding a number's place takes about 60.
//
// Kernel max_pool_kernel: y = phi(max z), and each winner's place and slope
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads each number of z once where windows are tiles, writes 1 number and a byte per window
//   registers  64
//
// Kernel max_push_kernel: phi' xdot of the winners for a stack
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K numbers (in lines that hold the others of their windows) and a byte per window, writes K
//   registers  64
//
// Kernel max_pull_kernel: phi' u for the winners, and zeros for the others, for a stack
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K numbers and a byte per window, writes K numbers an element of z
//   registers  64

#pragma once

#include "cuda/max_pool.h"
#include "cuda/windows.cuh"

namespace gradreg_fast::cuda {

// phi' of a winner.
template <class T>
__device__ __forceinline__ T slope_of(const MaxPool& pool, int code) {
    return code & MaxPool::bent ? T(pool.negative_slope) : T(1);
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    max_pool_kernel(const MaxPool pool, const S* z, S* y, uint8_t* code) {
    using T = Wide<S>;
    const int64_t index = thread_number();
    if (index >= pool.planes * pool.pooled_image()) return;
    const Position at = position(index, pool.pooled_image(), pool.pooled[1], pool.channels);
    const int top = at.row * int(pool.step[0]) - int(pool.margin[0]);
    const int left = at.column * int(pool.step[1]) - int(pool.margin[1]);
    const S* const from = z + at.plane * pool.image() + at.channel;
    T best = 0;
    int winner = -1;
    for (int i = 0; i < pool.window[0]; ++i)
        for (int j = 0; j < pool.window[1]; ++j) {
            const int row = top + i, column = left + j;
            if (row < 0 || row >= pool.size[0] || column < 0 || column >= pool.size[1]) continue;
            const T number = from[(row * pool.size[1] + column) * pool.channels];
            if (winner >= 0 && !(number > best) && number == number) continue;
            best = number;
            winner = i * int(pool.window[1]) + j;
        }
    const bool bent = !(best > T(0));
    if (bent) best = pool.rectifies ? (best <= T(0) ? T(0) : best) : best * T(pool.negative_slope);
    y[index] = narrow<S>(best);
    code[index] = uint8_t(winner | (bent ? MaxPool::bent : 0));
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    max_push_kernel(const MaxPool pool, const uint8_t* code, const S* xdot, int64_t stack, S* ydot) {
    using T = Wide<S>;
    const int64_t index = thread_number(), count = pool.planes * pool.pooled_image();
    if (index >= count) return;
    const Position at = position(index, pool.pooled_image(), pool.pooled[1], pool.channels);
    const int of = code[index], place = of & (MaxPool::bent - 1), window = int(pool.window[1]);
    const int64_t row = at.row * pool.step[0] - pool.margin[0] + place / window;
    const int64_t column = at.column * pool.step[1] - pool.margin[1] + place % window;
    const S* from = xdot + at.plane * pool.image() + (row * pool.size[1] + column) * pool.channels + at.channel;
    const T slope = slope_of<T>(pool, of);
    for (int64_t k = 0; k < stack; ++k, from += pool.planes * pool.image())
        ydot[k * count + index] = narrow<S>(slope * T(*from));
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    max_pull_kernel(const MaxPool pool, const uint8_t* code, const S* u, int64_t stack, S* below) {
    using T = Wide<S>;
    const int64_t index = thread_number(), count = pool.planes * pool.image();
    if (index >= count) return;
    const Position at = position(index, pool.image(), pool.size[1], pool.channels);
    for (int64_t k = 0; k < stack; ++k) {
        T sum = 0;
        each_window_of(pool, at, [&](int, int, int place, int64_t from) {
            const int of = code[from];
            if ((of & (MaxPool::bent - 1)) == place)
                sum += slope_of<T>(pool, of) * T(u[k * pool.planes * pool.pooled_image() + from]);
        });
        below[k * count + index] = narrow<S>(sum);
    }
}

}  // namespace gradreg_fast::cuda
