// Batch normalisation with batch statistics: sums over each channel, then one pass over the elements.
//
// First every block sums its part of a channel (or, channels last, of 32), in an order that nothing but the sizes
// decides; then a thread a channel adds the parts up; then the pass. Memory bounds all: few operations an element.
//
// Kernel channel_sums: of v and v xhat; with cotangents, of u, u xhat, v, v xhat and u v
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 numbers an element and k, with cotangents 3
//   registers  64
//   shared     10240
//
// Kernel add_parts: a channel's sums, and its weight's gradient
//   dtypes     float32 float64
//   bound      latency: parts numbers a sum, a thread a channel
//   registers  64
//
// Kernel project_kernel: J v, plus a second-order term
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K + 1 numbers an element (one more with the term), writes K
//   registers  64
//
// Kernel meet_norm: the second-order term and J v
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 K + 1 numbers an element, writes K + 1
//   registers  64

#pragma once

#include "cuda/device.cuh"
#include "cuda/norm.h"

namespace gradreg_fast::cuda {

constexpr int norm_threads = 256;
constexpr int norm_warps = norm_threads / 32;
constexpr int projected_sums = 2;  // of v, v xhat
constexpr int meeting_sums = 5;    // of u, u xhat, v, v xhat, u v

// Where a channel's element number i lies.
__device__ __forceinline__ int64_t element(const Norm& norm, int64_t channel, uint32_t i) {
    if (norm.channels_last) return i * norm.channels + channel;
    const uint32_t pixels = uint32_t(norm.pixels), sample = i / pixels;
    return (sample * norm.channels + channel) * norm.pixels + (i - sample * pixels);
}

// Which channel an element belongs to.
__device__ __forceinline__ int64_t channel_of(const Norm& norm, int64_t place) {
    const uint32_t channels = uint32_t(norm.channels);
    if (norm.channels_last) return place < (int64_t(1) << 32) ? uint32_t(place) % channels : place % norm.channels;
    return place < (int64_t(1) << 32) ? uint32_t(place) / uint32_t(norm.pixels) % channels
                                      : place / norm.pixels % norm.channels;
}

// Block (channels, part, k). parts [parts, K, sums, channels]. Channels last, a lane has a channel and a warp every
// eighth element; else all threads share the elements of one channel.
template <class S, int sums>
__global__ void __launch_bounds__(norm_threads, 4)
    channel_sums(const Norm norm, const S* u, const S* v, uint32_t each, Wide<S>* parts) {
    using T = Wide<S>;
    GRADREG_FAST_STATIC_SHARED(T[norm_warps][32][meeting_sums], shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool last = norm.channels_last;
    const int64_t channel = last ? int64_t(blockIdx.x) * 32 + lane : blockIdx.x;
    const int64_t stack = gridDim.z, k = blockIdx.z, numbers = norm.batch * norm.channels * norm.pixels;
    const uint32_t count = uint32_t(norm.batch * norm.pixels), begin = blockIdx.y * each;
    const uint32_t end = begin + each < count ? begin + each : count;
    T sum[sums] = {};
    if (channel < norm.channels) {
        const T mean = static_cast<const T*>(norm.mean)[channel],
                inverse = static_cast<const T*>(norm.inverse)[channel];
        const S* x = static_cast<const S*>(norm.x);
        for (uint32_t i = begin + (last ? warp : threadIdx.x); i < end; i += last ? norm_warps : norm_threads) {
            const int64_t place = element(norm, channel, i);
            const T xhat = (T(x[place]) - mean) * inverse, tangent = v[k * numbers + place];
            sum[sums == projected_sums ? 0 : 2] += tangent;
            sum[sums == projected_sums ? 1 : 3] += tangent * xhat;
            if constexpr (sums == meeting_sums) {
                const T cotangent = u[k * numbers + place];
                sum[0] += cotangent;
                sum[1] += cotangent * xhat;
                sum[4] += cotangent * tangent;
            }
        }
    }
    for (int f = 0; f < sums; ++f) {
        if (!last) sum[f] = warp_sum(sum[f]);
        shared[warp][lane][f] = sum[f];
    }
    __syncthreads();
    if (warp > 0 || channel >= norm.channels || (!last && lane > 0)) return;
    for (int f = 0; f < sums; ++f) {
        T total = 0;
        for (int other = 0; other < norm_warps; ++other)
            total += shared[other][lane][f];
        parts[((blockIdx.y * stack + k) * sums + f) * norm.channels + channel] = total;
    }
}

// totals [K, sums, channels] from parts; gradient [channels]: see norm.h, null: not wanted.
template <class T, int sums>
__global__ void __launch_bounds__(norm_threads, 4)
    add_parts(const Norm norm, const T* parts, int64_t count, int64_t stack, T* totals, T* gradient) {
    const int64_t channel = int64_t(blockIdx.x) * norm_threads + threadIdx.x;
    if (channel >= norm.channels) return;
    const T scale = T(1) / T(norm.batch * norm.pixels);
    T covariance = 0;
    for (int64_t k = 0; k < stack; ++k) {
        T total[sums] = {};
        for (int f = 0; f < sums; ++f) {
            for (int64_t part = 0; part < count; ++part)
                total[f] += parts[((part * stack + k) * sums + f) * norm.channels + channel];
            totals[(k * sums + f) * norm.channels + channel] = total[f];
        }
        if constexpr (sums == meeting_sums)
            covariance += total[4] - (total[0] * total[2] + total[1] * total[3]) * scale;
    }
    if (gradient) gradient[channel] = static_cast<const T*>(norm.inverse)[channel] * covariance;
}

// An element's xhat, its channel's weight times the inverse, and sums' places.
template <class S>
struct At {
    int64_t channel;
    Wide<S> xhat, inverse, factor, scale;

    __device__ __forceinline__ At(const Norm& norm, int64_t place) : channel(channel_of(norm, place)) {
        using T = Wide<S>;
        inverse = static_cast<const T*>(norm.inverse)[channel];
        xhat = (T(static_cast<const S*>(norm.x)[place]) - static_cast<const T*>(norm.mean)[channel]) * inverse;
        factor = norm.weight ? inverse * static_cast<const T*>(norm.weight)[channel] : inverse;
        scale = T(1) / T(norm.batch * norm.pixels);
    }
};

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    project_kernel(const Norm norm, const S* v, int64_t stack, const Wide<S>* totals, const S* second, S* result) {
    using T = Wide<S>;
    const int64_t place = int64_t(blockIdx.x) * norm_threads + threadIdx.x;
    const int64_t numbers = norm.batch * norm.channels * norm.pixels;
    if (place >= numbers) return;
    const At<S> at(norm, place);
    for (int64_t k = 0; k < stack; ++k) {
        const T* of = totals + k * projected_sums * norm.channels + at.channel;
        const T mean = of[0] * at.scale, along = of[norm.channels] * at.scale;
        const T projected = at.factor * (T(v[k * numbers + place]) - mean - at.xhat * along);
        result[k * numbers + place] = narrow<S>(second ? projected + T(second[place]) : projected);
    }
}

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    meet_norm(const Norm norm, const S* u, const S* v, int64_t stack, const Wide<S>* totals, S* second, S* ydot) {
    using T = Wide<S>;
    const int64_t place = int64_t(blockIdx.x) * norm_threads + threadIdx.x;
    const int64_t numbers = norm.batch * norm.channels * norm.pixels;
    if (place >= numbers) return;
    const At<S> at(norm, place);
    T sum = 0, along = 0;  // of v_xhat (u - u_mean) + u_xhat (v - v_mean), and of what xhat is multiplied by
    for (int64_t k = 0; k < stack; ++k) {
        const T* of = totals + k * meeting_sums * norm.channels + at.channel;
        const T u_mean = of[0] * at.scale, u_xhat = of[norm.channels] * at.scale;
        const T v_mean = of[2 * norm.channels] * at.scale, v_xhat = of[3 * norm.channels] * at.scale;
        const T tangent = T(v[k * numbers + place]) - v_mean;
        sum += v_xhat * (T(u[k * numbers + place]) - u_mean) + u_xhat * tangent;
        along += of[4 * norm.channels] * at.scale - u_mean * v_mean - 3 * u_xhat * v_xhat;
        if (ydot) ydot[k * numbers + place] = narrow<S>(at.factor * (tangent - at.xhat * v_xhat));
    }
    second[place] = narrow<S>(-at.factor * at.inverse * (sum + at.xhat * along));
}

}  // namespace gradreg_fast::cuda
