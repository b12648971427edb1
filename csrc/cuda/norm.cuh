// Normalisations with statistics of channels: sums over each channel, then one pass over the elements.
//
// First every block sums its part of a channel (or, channels last, of 32), of each sample where samples have their own
// statistics, in an order that nothing but the sizes decides; then a warp adds up what shares statistics; then the
// pass, whose first threads also add up the parameters' gradients. Three launches a sweep. Memory bounds all: at most
// 25 operations an element, for which an H100 has 160 in the time that its 8 bytes take.
//
// Kernel channel_sums: of v and v xhat; with cotangents, of u, u xhat, v, v xhat and u v
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 numbers an element and k, with cotangents 3
//   registers  64
//   shared     10240
//
// Kernel add_channels: the sums of what shares statistics
//   dtypes     float32 float64
//   bound      latency: (parts channels / groups) / 32 numbers a sum, a warp for each mean
//   registers  64
//
// Kernel project_kernel: J v, or J^T v plus a second-order term; the parameters' gradients
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K + 1 numbers an element (one more with the term), writes K
//   registers  64
//
// Kernel meet_norm: the second-order term and J v; the weight's gradient
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

// Channels of all samples, each a line of batch pixels elements with sums of its own.
__device__ __forceinline__ int64_t lines_of(const Norm& norm) {
    return norm.samples * norm.channels;
}

// Where the element number i of a sample's channel lies.
__device__ __forceinline__ int64_t element(const Norm& norm, int64_t sample, int64_t channel, uint32_t i) {
    const int64_t start = sample * norm.batch * norm.channels * norm.pixels;
    if (norm.channels_last) return start + i * norm.channels + channel;
    const uint32_t pixels = uint32_t(norm.pixels), of_batch = i / pixels;
    return start + (of_batch * norm.channels + channel) * norm.pixels + (i - of_batch * pixels);
}

// Whose mean and inverse a channel has.
__device__ __forceinline__ int64_t set_of(const Norm& norm, int64_t sample, int64_t channel) {
    if (norm.groups == norm.channels) return sample * norm.groups + channel;
    return sample * norm.groups + uint32_t(channel) / uint32_t(norm.channels / norm.groups);
}

template <class T>
__device__ __forceinline__ T share(const Norm& norm) {
    return T(1) / T(norm.batch * norm.pixels * (norm.channels / norm.groups));
}

template <class T>
__device__ __forceinline__ T weight_of(const Norm& norm, int64_t channel) {
    return norm.weight ? static_cast<const T*>(norm.weight)[channel] : T(1);
}

// Block (channels, part, k), `team` threads a channel. parts [parts, K, sums, lines]. Channels last, a lane has a
// channel and a warp every eighth element; else a warp, or all threads, share the elements of one channel.
template <class S, int sums>
__global__ void __launch_bounds__(norm_threads, 4)
    channel_sums(const Norm norm, const S* u, const S* v, int team, uint32_t each, Wide<S>* parts) {
    using T = Wide<S>;
    GRADREG_FAST_STATIC_SHARED(T[norm_warps][32][meeting_sums], shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool last = norm.channels_last, alone = !last && team == 32;
    const uint32_t blocks = last ? uint32_t(norm.channels + 31) / 32 : uint32_t(norm.channels);
    const uint32_t block = alone ? blockIdx.x * norm_warps + warp : blockIdx.x;
    const int64_t sample = block / blocks;
    const int64_t channel = last ? int64_t(block % blocks) * 32 + lane : block % blocks;
    const bool inside = sample < norm.samples && channel < norm.channels;
    const int64_t stack = gridDim.z, k = blockIdx.z;
    const int64_t numbers = norm.samples * norm.batch * norm.channels * norm.pixels;
    const uint32_t count = uint32_t(norm.batch * norm.pixels), begin = blockIdx.y * each;
    const uint32_t end = begin + each < count ? begin + each : count;
    T sum[sums] = {};
    if (inside) {
        const int64_t set = set_of(norm, sample, channel);
        const T mean = static_cast<const T*>(norm.mean)[set], inverse = static_cast<const T*>(norm.inverse)[set];
        const S* x = static_cast<const S*>(norm.x);
        const uint32_t step = last ? norm_warps : team;
        for (uint32_t i = begin + (last ? warp : threadIdx.x % team); i < end; i += step) {
            const int64_t place = element(norm, sample, channel, i);
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
    if (!inside || (warp > 0 && !alone) || (lane > 0 && !last)) return;
    const int64_t line = sample * norm.channels + channel;
    for (int f = 0; f < sums; ++f) {
        T total = alone ? sum[f] : T(0);
        if (!alone)
            for (int other = 0; other < norm_warps; ++other)
                total += shared[other][lane][f];
        parts[((blockIdx.y * stack + k) * sums + f) * lines_of(norm) + line] = total;
    }
}

// totals [K, sums, samples groups] from parts, a warp for each; `weighted`: bits of the sums that take the weight.
template <class T, int sums>
__global__ void __launch_bounds__(norm_threads, 4)
    add_channels(const Norm norm, const T* parts, int64_t count, int64_t stack, int weighted, T* totals) {
    const int64_t sets = norm.samples * norm.groups, lines = lines_of(norm);
    const int64_t set = int64_t(blockIdx.x) * norm_warps + threadIdx.x / 32;
    if (set >= sets) return;
    const int lane = threadIdx.x % 32, each = int(norm.channels / norm.groups);
    const int64_t first = set * each;  // its first line
    for (int64_t k = 0; k < stack; ++k)
        for (int f = 0; f < sums; ++f) {
            const T* of = parts + (k * sums + f) * lines + first;
            T total = 0;
            for (int64_t i = lane; i < count * each; i += 32) {
                const int64_t part = i / each, line = i - part * each;
                const T weight = weighted >> f & 1 ? weight_of<T>(norm, (first + line) % norm.channels) : T(1);
                total += weight * of[part * stack * sums * lines + line];
            }
            total = warp_sum(total);
            if (lane == 0) totals[(k * sums + f) * sets + set] = total;
        }
}

// A sum of a line over its parts.
template <int sums, class T>
__device__ __forceinline__ T line_sum(const Norm& norm, const T* parts, int64_t count, int64_t stack, int64_t k, int f,
                                      int64_t line) {
    T total = 0;
    for (int64_t part = 0; part < count; ++part)
        total += parts[((part * stack + k) * sums + f) * lines_of(norm) + line];
    return total;
}

// What an element and all that share its statistics have.
template <class S>
struct At {
    int64_t channel, set;
    Wide<S> xhat, inverse, weight;

    __device__ __forceinline__ At(const Norm& norm, int64_t place) {
        using T = Wide<S>;
        const int64_t sample_size = norm.batch * norm.channels * norm.pixels;
        const bool small = norm.samples * sample_size < int64_t(1) << 32;  // division takes a quarter of the time
        const int64_t sample = norm.samples == 1 ? 0
                               : small           ? uint32_t(place) / uint32_t(sample_size)
                                                 : place / sample_size;
        const int64_t line = norm.channels_last ? place
                             : small            ? uint32_t(place) / uint32_t(norm.pixels)
                                                : place / norm.pixels;
        channel = small ? uint32_t(line) % uint32_t(norm.channels) : line % norm.channels;
        set = set_of(norm, sample, channel);
        inverse = static_cast<const T*>(norm.inverse)[set];
        xhat = (T(static_cast<const S*>(norm.x)[place]) - static_cast<const T*>(norm.mean)[set]) * inverse;
        weight = weight_of<T>(norm, channel);
    }
};

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    project_kernel(const Norm norm, const S* v, int64_t stack, bool push, const Wide<S>* parts, int64_t count,
                   const Wide<S>* totals, const S* second, S* result, Wide<S>* gradients) {
    using T = Wide<S>;
    const int64_t place = int64_t(blockIdx.x) * norm_threads + threadIdx.x;
    const int64_t numbers = norm.samples * norm.batch * norm.channels * norm.pixels;
    const int64_t sets = norm.samples * norm.groups;
    if (place >= numbers) return;
    const At<S> at(norm, place);
    const T scale = share<T>(norm), before = push ? T(1) : at.weight;
    const T after = push ? at.weight * at.inverse : at.inverse;
    for (int64_t k = 0; k < stack; ++k) {
        const T* of = totals + k * projected_sums * sets + at.set;
        const T mean = of[0] * scale, along = of[sets] * scale;
        const T projected = after * (before * T(v[k * numbers + place]) - mean - at.xhat * along);
        result[k * numbers + place] = narrow<S>(second ? projected + T(second[place]) : projected);
    }
    if (!gradients || place >= norm.channels) return;
    T sum[projected_sums] = {};
    for (int64_t sample = 0; sample < norm.samples; ++sample)
        for (int f = 0; f < projected_sums; ++f)
            sum[f] += line_sum<projected_sums>(norm, parts, count, 1, 0, f, sample * norm.channels + place);
    gradients[place] = sum[1];
    gradients[norm.channels + place] = sum[0];
}

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    meet_norm(const Norm norm, const S* u, const S* v, int64_t stack, const Wide<S>* parts, int64_t count,
              const Wide<S>* totals, S* second, Wide<S>* gradient, S* ydot) {
    using T = Wide<S>;
    const int64_t place = int64_t(blockIdx.x) * norm_threads + threadIdx.x;
    const int64_t numbers = norm.samples * norm.batch * norm.channels * norm.pixels;
    const int64_t sets = norm.samples * norm.groups;
    if (place >= numbers) return;
    const At<S> at(norm, place);
    const T scale = share<T>(norm);
    T sum = 0, along = 0;  // of v_xhat (w - w_mean) + w_xhat (v - v_mean) for w = weight u, and what xhat comes times
    for (int64_t k = 0; k < stack; ++k) {
        const T* of = totals + k * meeting_sums * sets + at.set;
        const T w_mean = of[0] * scale, w_xhat = of[sets] * scale;
        const T v_mean = of[2 * sets] * scale, v_xhat = of[3 * sets] * scale;
        const T tangent = T(v[k * numbers + place]) - v_mean;
        sum += v_xhat * (at.weight * T(u[k * numbers + place]) - w_mean) + w_xhat * tangent;
        along += of[4 * sets] * scale - w_mean * v_mean - 3 * w_xhat * v_xhat;
        if (ydot) ydot[k * numbers + place] = narrow<S>(at.weight * at.inverse * (tangent - at.xhat * v_xhat));
    }
    second[place] = narrow<S>(-at.inverse * at.inverse * (sum + at.xhat * along));
    if (place >= norm.channels) return;
    T total = 0;
    for (int64_t sample = 0; sample < norm.samples; ++sample) {
        const int64_t line = sample * norm.channels + place, set = set_of(norm, sample, place);
        T covariance = 0;
        for (int64_t k = 0; k < stack; ++k) {
            const T* of = totals + k * meeting_sums * sets + set;
            const auto own = [&](int f) { return line_sum<meeting_sums>(norm, parts, count, stack, k, f, line); };
            covariance += own(4) - (own(0) * of[2 * sets] + own(1) * of[3 * sets]) * scale;
        }
        total += static_cast<const T*>(norm.inverse)[set] * covariance;
    }
    gradient[place] = total;
}

}  // namespace gradreg_fast::cuda
