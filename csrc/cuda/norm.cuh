// Normalisations with statistics of channels: sums over each channel, then one pass over the elements.
//
// First every block sums its part of a channel (or, channels last, of 32), of each sample where samples have their own
// statistics, in an order that nothing but the sizes decides; then a warp adds up what shares statistics; then the
// pass, whose first threads also add up the parameters' gradients. Three launches a sweep; with K = 1 pull, push and
// adjoint move 5, 5 and 6 numbers an element in all, a meeting of both 8. Memory bounds all: at most 25 operations an
// element, for which an H100 has 160 in the time that 8 bytes take.
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
constexpr int in_flight = 4;  // elements of a sum that a thread has asked memory for
template <class S>
constexpr int pass_each = sizeof(S) == 8 ? 1 : 2;  // elements of a thread in a pass
constexpr int projected_sums = 2;                  // of v, v xhat
constexpr int meeting_sums = 5;                    // of u, u xhat, v, v xhat, u v

// Channels of all samples, each a line of batch pixels elements with sums of its own.
__device__ __forceinline__ int64_t lines_of(const Norm& norm) {
    return norm.samples * norm.channels;
}

// Where the elements of a sample's channel lie.
struct Line {
    int64_t start, unit, jump;
    uint32_t run;  // elements, `unit` apart; the next ones are `jump` further

    __device__ __forceinline__ Line(const Norm& norm, int64_t sample, int64_t channel)
        : start(sample * norm.batch * norm.channels * norm.pixels +
                (norm.channels_last ? channel : channel * norm.pixels)),
          unit(norm.channels_last ? norm.channels : 1),
          jump(norm.channels * norm.pixels),
          run(uint32_t(norm.channels_last ? norm.batch * norm.pixels : norm.pixels)) {}

    __device__ __forceinline__ int64_t operator[](uint32_t i) const {
        const uint32_t which = i / run;
        return start + which * jump + (i - which * run) * unit;
    }
};

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
    const int64_t numbers_each = norm.samples * norm.batch * norm.channels * norm.pixels;
    const uint32_t count = uint32_t(norm.batch * norm.pixels), begin = blockIdx.y * each;
    const uint32_t end = begin + each < count ? begin + each : count;
    T sum[sums] = {};
    if (inside) {
        const int64_t set = set_of(norm, sample, channel);
        const T mean = static_cast<const T*>(norm.mean)[set], inverse = static_cast<const T*>(norm.inverse)[set];
        const S* x = static_cast<const S*>(norm.x);
        const Line line(norm, sample, channel);
        const uint32_t step = last ? norm_warps : team;
        for (uint32_t i = begin + (last ? warp : threadIdx.x % team); i < end; i += in_flight * step) {
            S numbers[in_flight], cotangents[in_flight], tangents[in_flight];
            for (int j = 0; j < in_flight; ++j) {  // all loads before the first sum
                const int64_t place = line[i + j * step < end ? i + j * step : i];
                numbers[j] = x[place];
                tangents[j] = v[k * numbers_each + place];
                if constexpr (sums == meeting_sums) cotangents[j] = u[k * numbers_each + place];
            }
            for (int j = 0; j < in_flight; ++j) {
                const bool there = i + j * step < end;  // no branch, or loads would wait behind it
                const T xhat = (T(numbers[j]) - mean) * inverse, tangent = there ? T(tangents[j]) : T(0);
                sum[sums == projected_sums ? 0 : 2] += tangent;
                sum[sums == projected_sums ? 1 : 3] += tangent * xhat;
                if constexpr (sums == meeting_sums) {
                    const T cotangent = there ? T(cotangents[j]) : T(0);
                    sum[0] += cotangent;
                    sum[1] += cotangent * xhat;
                    sum[4] += cotangent * tangent;
                }
            }
        }
    }
    for (int f = 0; f < sums; ++f) {
        if (!last) sum[f] = warp_sum(sum[f]);
        shared[warp][lane][f] = sum[f];
    }
    __syncthreads();
    if (!inside || (warp > 0 && !alone) || (lane > 0 && !last)) return;
    const int64_t row = sample * norm.channels + channel;
    for (int f = 0; f < sums; ++f) {
        T total = alone ? sum[f] : T(0);
        if (!alone)
            for (int other = 0; other < norm_warps; ++other)
                total += shared[other][lane][f];
        parts[((blockIdx.y * stack + k) * sums + f) * lines_of(norm) + row] = total;
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

// The elements of a thread in a pass, and what they and all that share their statistics have.
template <class S>
struct Places {
    int64_t place[pass_each<S>], set[pass_each<S>];
    Wide<S> xhat[pass_each<S>], inverse[pass_each<S>], weight[pass_each<S>];
    int64_t numbers;

    __device__ __forceinline__ explicit Places(const Norm& norm) {
        using T = Wide<S>;
        const int64_t sample_size = norm.batch * norm.channels * norm.pixels;
        numbers = norm.samples * sample_size;
        const bool small = numbers < int64_t(1) << 32;  // division takes a quarter of the time
        for (int j = 0; j < pass_each<S>; ++j) {
            place[j] = (int64_t(blockIdx.x) * pass_each<S> + j) * norm_threads + threadIdx.x;
            const int64_t at = within(j);
            const int64_t sample = norm.samples == 1 ? 0
                                   : small           ? uint32_t(at) / uint32_t(sample_size)
                                                     : at / sample_size;
            const int64_t line = norm.channels_last ? at
                                 : small            ? uint32_t(at) / uint32_t(norm.pixels)
                                                    : at / norm.pixels;
            const int64_t channel = small ? uint32_t(line) % uint32_t(norm.channels) : line % norm.channels;
            set[j] = set_of(norm, sample, channel);
            weight[j] = weight_of<T>(norm, channel);
            xhat[j] = T(static_cast<const S*>(norm.x)[at]);
        }
        for (int j = 0; j < pass_each<S>; ++j) {
            inverse[j] = static_cast<const T*>(norm.inverse)[set[j]];
            xhat[j] = (xhat[j] - static_cast<const T*>(norm.mean)[set[j]]) * inverse[j];
        }
    }

    __device__ __forceinline__ bool is_there(int j) const { return place[j] < numbers; }

    // Where to read: somewhere, for elements behind the end.
    __device__ __forceinline__ int64_t within(int j) const { return is_there(j) ? place[j] : 0; }

    // Their numbers in a member of a stack.
    __device__ __forceinline__ void load(const S* member, Wide<S> (&to)[pass_each<S>]) const {
        for (int j = 0; j < pass_each<S>; ++j)
            to[j] = member[within(j)];
    }
    __device__ __forceinline__ void store(const Wide<S> (&from)[pass_each<S>], S* member) const {
        for (int j = 0; j < pass_each<S>; ++j)
            if (is_there(j)) member[place[j]] = narrow<S>(from[j]);
    }
};

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    project_kernel(const Norm norm, const S* v, int64_t stack, bool push, const Wide<S>* parts, int64_t count,
                   const Wide<S>* totals, const S* second, S* result, Wide<S>* gradients) {
    using T = Wide<S>;
    const int64_t sets = norm.samples * norm.groups;
    const Places<S> at(norm);
    const T scale = share<T>(norm);
    T tangent[pass_each<S>], term[pass_each<S>] = {};
    for (int64_t k = 0; k < stack; ++k) {
        at.load(v + k * at.numbers, tangent);
        if (second) at.load(second, term);
        for (int j = 0; j < pass_each<S>; ++j) {
            const T* of = totals + k * projected_sums * sets + at.set[j];
            const T mean = of[0] * scale, along = of[sets] * scale;
            const T projected = (push ? T(1) : at.weight[j]) * tangent[j] - mean - at.xhat[j] * along;
            tangent[j] = (push ? at.weight[j] : T(1)) * at.inverse[j] * projected + term[j];
        }
        at.store(tangent, result + k * at.numbers);
    }
    if (!gradients) return;
    for (int j = 0; j < pass_each<S>; ++j) {
        const int64_t channel = at.place[0] + j * norm_threads;
        if (channel >= norm.channels) return;
        T sum[projected_sums] = {};
        for (int64_t sample = 0; sample < norm.samples; ++sample)
            for (int f = 0; f < projected_sums; ++f)
                sum[f] += line_sum<projected_sums>(norm, parts, count, 1, 0, f, sample * norm.channels + channel);
        gradients[channel] = sum[1];
        gradients[norm.channels + channel] = sum[0];
    }
}

template <class S>
__global__ void __launch_bounds__(norm_threads, 4)
    meet_norm(const Norm norm, const S* u, const S* v, int64_t stack, const Wide<S>* parts, int64_t count,
              const Wide<S>* totals, S* second, Wide<S>* gradient, S* ydot) {
    using T = Wide<S>;
    const int64_t sets = norm.samples * norm.groups;
    const Places<S> at(norm);
    const T scale = share<T>(norm);
    T bend[pass_each<S>] = {}, cotangent[pass_each<S>], tangent[pass_each<S>];
    for (int64_t k = 0; k < stack; ++k) {
        at.load(u + k * at.numbers, cotangent);
        at.load(v + k * at.numbers, tangent);
        for (int j = 0; j < pass_each<S>; ++j) {  // with w = weight u: v_xhat (w - w_mean) + w_xhat (v - v_mean) + ...
            const T* of = totals + k * meeting_sums * sets + at.set[j];
            const T w_mean = of[0] * scale, w_xhat = of[sets] * scale;
            const T v_mean = of[2 * sets] * scale, v_xhat = of[3 * sets] * scale;
            const T centred = tangent[j] - v_mean;
            bend[j] += v_xhat * (at.weight[j] * cotangent[j] - w_mean) + w_xhat * centred;
            bend[j] += at.xhat[j] * (of[4 * sets] * scale - w_mean * v_mean - 3 * w_xhat * v_xhat);
            tangent[j] = at.weight[j] * at.inverse[j] * (centred - at.xhat[j] * v_xhat);
        }
        if (ydot) at.store(tangent, ydot + k * at.numbers);
    }
    for (int j = 0; j < pass_each<S>; ++j)
        bend[j] *= -at.inverse[j] * at.inverse[j];
    at.store(bend, second);
    for (int j = 0; j < pass_each<S>; ++j) {
        const int64_t channel = at.place[0] + j * norm_threads;
        if (channel >= norm.channels) return;
        T total = 0;
        for (int64_t sample = 0; sample < norm.samples; ++sample) {
            const int64_t line = sample * norm.channels + channel, set = set_of(norm, sample, channel);
            T covariance = 0;
            for (int64_t k = 0; k < stack; ++k) {
                const T* of = totals + k * meeting_sums * sets + set;
                const auto own = [&](int f) { return line_sum<meeting_sums>(norm, parts, count, stack, k, f, line); };
                covariance += own(4) - (own(0) * of[2 * sets] + own(1) * of[3 * sets]) * scale;
            }
            total += static_cast<const T*>(norm.inverse)[set] * covariance;
        }
        gradient[channel] = total;
    }
}

}  // namespace gradreg_fast::cuda
