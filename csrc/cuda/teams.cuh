// Teams of threads, a warp or a block, and their sums.
//
// Kernel add_blocks: sums of columns over blocks
//   dtypes     float32 float64
//   bound      memory: reads at most 512 numbers a column
//   registers  64
//   shared     2112

#pragma once

#include "cuda/device.cuh"

namespace gradreg_fast::cuda {

constexpr int row_threads = 256;
constexpr int row_warps = row_threads / 32;

// The first row of this thread's team, and how many teams there are.
template <int team>
__device__ __forceinline__ int64_t own_team() {
    return int64_t(blockIdx.x) * (row_threads / team) + threadIdx.x / team;
}
template <int team>
__device__ __forceinline__ int64_t teams() {
    return int64_t(gridDim.x) * (row_threads / team);
}

template <int team>
__device__ __forceinline__ void meet_team() {
    if constexpr (team == 32)
        __syncwarp();
    else
        __syncthreads();
}

// Sums over the team's threads, in all of them.
template <int team, int sums, class T>
__device__ __forceinline__ void add_team(T (&sum)[sums], T (*shared)[sums]) {
    for (int f = 0; f < sums; ++f)
        sum[f] = warp_sum(sum[f]);
    if constexpr (team > 32) {
        __syncthreads();  // all have read what is there
        if (threadIdx.x % 32 == 0)
            for (int f = 0; f < sums; ++f)
                shared[threadIdx.x / 32][f] = sum[f];
        __syncthreads();
        for (int f = 0; f < sums; ++f) {
            sum[f] = 0;
            for (int warp = 0; warp < row_warps; ++warp)
                sum[f] += shared[warp][f];
        }
    }
}

// sums [columns] of parts [count, columns]: a block takes 32 columns, its warps every eighth part.
template <class T>
__global__ void __launch_bounds__(row_threads, 4) add_blocks(const T* parts, int64_t count, int64_t columns, T* sums) {
    GRADREG_FAST_STATIC_SHARED(T[row_warps][33], shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t column = int64_t(blockIdx.x) * 32 + lane;
    T total = 0;
    if (column < columns)
        for (int64_t part = warp; part < count; part += row_warps)
            total += parts[part * columns + column];
    shared[warp][lane] = total;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    total = 0;
    for (int other = 0; other < row_warps; ++other)
        total += shared[other][lane];
    sums[column] = total;
}

}  // namespace gradreg_fast::cuda
