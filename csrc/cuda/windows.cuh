// Where numbers of images lie that a kernel's threads take, one each.

#pragma once

#include "common/windows.h"
#include "cuda/device.cuh"

namespace gradreg_fast::cuda {

constexpr int pool_threads = 256;

// Blocks of this many threads in all.
inline dim3 pool_blocks(int64_t threads) {
    return {unsigned((threads + pool_threads - 1) / pool_threads), 1, 1};
}

// Where a number of images lies: its plane, row, column and channel.
struct Position {
    int64_t plane;
    int row, column, channel;
};

// Of a number of images whose planes have rows of `width` pixels.
__device__ __forceinline__ Position position(int64_t index, int64_t image, int64_t width, int64_t channels) {
    const int64_t plane = index / image;
    const unsigned rest = unsigned(index - plane * image), pixel = rest / unsigned(channels);
    const unsigned row = pixel / unsigned(width);
    return {plane, int(row), int(pixel - row * unsigned(width)), int(rest - pixel * unsigned(channels))};
}

__device__ __forceinline__ int64_t thread_number() {
    return int64_t(blockIdx.x) * pool_threads + threadIdx.x;
}

// Of the windows that a pixel is in: function(row, column, the pixel's place, the window's number in y).
template <class Function>
__device__ __forceinline__ void each_window_of(const Windows& windows, const Position& at, Function&& function) {
    const int row = at.row + int(windows.margin[0]), column = at.column + int(windows.margin[1]);
    const int window[2] = {int(windows.window[0]), int(windows.window[1])};
    const int step[2] = {int(windows.step[0]), int(windows.step[1])};
    const int first_row = row < window[0] ? 0 : (row - window[0]) / step[0] + 1;
    const int first_column = column < window[1] ? 0 : (column - window[1]) / step[1] + 1;
    for (int i = first_row; i < windows.pooled[0] && i * step[0] <= row; ++i)
        for (int j = first_column; j < windows.pooled[1] && j * step[1] <= column; ++j) {
            const int64_t pixel = (at.plane * windows.pooled[0] + i) * windows.pooled[1] + j;
            function(i, j, (row - i * step[0]) * window[1] + column - j * step[1],
                     pixel * windows.channels + at.channel);
        }
}

}  // namespace gradreg_fast::cuda
