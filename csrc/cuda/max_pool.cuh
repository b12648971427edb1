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

#include "cuda/device.cuh"
#include "cuda/max_pool.h"

namespace gradreg_fast::cuda {

constexpr int max_pool_threads = 256;

// Where a number of images lies: its plane, row, column and channel.
struct Position {
    int64_t plane;
    int row, column, channel;
};

// Of this thread's number of images whose planes have rows of `width` pixels.
__device__ __forceinline__ Position position(int64_t index, int64_t image, int64_t width, int64_t channels) {
    const int64_t plane = index / image;
    const unsigned rest = unsigned(index - plane * image), pixel = rest / unsigned(channels);
    const unsigned row = pixel / unsigned(width);
    return {plane, int(row), int(pixel - row * unsigned(width)), int(rest - pixel * unsigned(channels))};
}

__device__ __forceinline__ int64_t thread_number() {
    return int64_t(blockIdx.x) * max_pool_threads + threadIdx.x;
}

// phi' of a winner.
template <class T>
__device__ __forceinline__ T slope_of(const MaxPool& pool, int code) {
    return code & MaxPool::bent ? T(pool.negative_slope) : T(1);
}

template <class S>
__global__ void __launch_bounds__(max_pool_threads, 4)
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
__global__ void __launch_bounds__(max_pool_threads, 4)
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
__global__ void __launch_bounds__(max_pool_threads, 4)
    max_pull_kernel(const MaxPool pool, const uint8_t* code, const S* u, int64_t stack, S* below) {
    using T = Wide<S>;
    const int64_t index = thread_number(), count = pool.planes * pool.image();
    if (index >= count) return;
    const Position at = position(index, pool.image(), pool.size[1], pool.channels);
    const int row = at.row + int(pool.margin[0]), column = at.column + int(pool.margin[1]);
    const int window[2] = {int(pool.window[0]), int(pool.window[1])}, step[2] = {int(pool.step[0]), int(pool.step[1])};
    // the windows that the pixel is in
    const int first_row = row < window[0] ? 0 : (row - window[0]) / step[0] + 1;
    const int first_column = column < window[1] ? 0 : (column - window[1]) / step[1] + 1;
    for (int64_t k = 0; k < stack; ++k) {
        T sum = 0;
        for (int i = first_row; i < pool.pooled[0] && i * step[0] <= row; ++i)
            for (int j = first_column; j < pool.pooled[1] && j * step[1] <= column; ++j) {
                const int64_t pixel = (at.plane * pool.pooled[0] + i) * pool.pooled[1] + j;
                const int64_t from = pixel * pool.channels + at.channel;
                const int of = code[from], place = (row - i * step[0]) * window[1] + column - j * step[1];
                if ((of & (MaxPool::bent - 1)) != place) continue;
                sum += slope_of<T>(pool, of) * T(u[k * pool.planes * pool.pooled_image() + from]);
            }
        below[k * count + index] = narrow<S>(sum);
    }
}

}  // namespace gradreg_fast::cuda
