// Averages over windows of images whose numbers pass through an activation first, and their sweeps.
//
// With n numbers of z a window, PyTorch's lines move 3 n + 1 numbers a window and sweep (an activation reads and writes
// all, the pooling reads or writes them again), these n + 1: the values between are never in memory. Where phi is
// piecewise linear z is not kept, either, but a bit for each place. Without an activation there is nothing to save;
// where a number is in several windows, it is read again from the caches (passes.py says up to how many).
//
// Up, a team of threads of a warp takes a number of y, of each member of a stack, and a thread the places of a byte of
// the mask; neighbours have neighbouring windows, which lie next to each other in channels last. Down, a thread takes
// a number of z and gathers from its windows, so that nothing is summed by several. Sums and functions are in float32,
// of float64 in itself. Memory bounds all of them: while an H100 moves 4 bytes (3.35 TB/s), it has time for 80
// operations (67 TFLOP/s); finding a number's place takes about 60 going down and a few going up, and the heaviest
// activation's derivatives another 60, where 8 bytes and more are moved.
//
// Kernel average_pool_kernel: y = A phi(z), and a bit of the slope for each place of a window where that is enough
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads each number of z once where windows are tiles, writes 1 number and n bits per window
//   registers  64
//
// Kernel average_push_kernel: A phi' xdot for a stack
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K + 1 numbers an element of z (K and n bits per window with a mask), writes K per window
//   registers  80
//
// Kernel average_pull_kernel: phi' A^T u, for one with a second-order term, for a stack
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K numbers per window and 1 (or n bits per window) an element of z, writes K
//   registers  64
//
// Kernel average_meet_kernel: sum_k (A^T u) xdot
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K numbers per window and K an element of z, writes 1
//   registers  64

#pragma once

#include "common/dispatch.h"
#include "cuda/average_pool.h"
#include "cuda/windows.cuh"

namespace gradreg_fast::cuda {

template <class T>
__device__ __forceinline__ Derivatives<T> derivatives_of(const AveragePool& pool, T z) {
    Derivatives<T> result{};
    with_kind<ScalarMath<T>>(pool.kind, pool.settings, [&](const auto& phi) { result = derivatives_at(phi, z); });
    return result;
}

// A number of y that a team of threads has: lanes of a warp, of which neighbours have neighbouring numbers.
struct Team {
    int64_t number;
    int members, member;

    __device__ __forceinline__ explicit Team(int members)
        : number(thread_number() / 32 * (32 / members) + threadIdx.x % (32 / members)),
          members(members),
          member(threadIdx.x % 32 / (32 / members)) {}

    // The sum over the team, in all members.
    template <class T>
    __device__ __forceinline__ T sum(T value) const {
        for (int step = 16; step >= 32 / members; step /= 2)
            value += __shfl_xor_sync(~0u, value, step);
        return value;
    }

    // Of the member's bytes of the mask: function(byte, first place, last place).
    template <class Function>
    __device__ __forceinline__ void each_byte(const AveragePool& pool, Function&& function) const {
        const int places = int(pool.places());
        for (int byte = member; byte < int(pool.mask_bytes()); byte += members)
            function(byte, 8 * byte, 8 * byte + 8 < places ? 8 * byte + 8 : places);
    }
};

// Of places of a window, as far as they lie in the image: function(place, the pixel's number of z).
template <class Function>
__device__ __forceinline__ void each_place(const AveragePool& pool, const Position& at, int first, int last,
                                           Function&& function) {
    const int top = at.row * int(pool.step[0]) - int(pool.margin[0]), width = int(pool.window[1]);
    const int left = at.column * int(pool.step[1]) - int(pool.margin[1]);
    for (int place = first; place < last; ++place) {
        const int row = top + place / width, column = left + place % width;
        if (row < 0 || row >= pool.size[0] || column < 0 || column >= pool.size[1]) continue;
        function(place, ((at.plane * pool.size[0] + row) * pool.size[1] + column) * pool.channels + at.channel);
    }
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    average_pool_kernel(const AveragePool pool, int members, const S* z, S* y, uint8_t* mask) {
    using T = Wide<S>;
    const Team team(members);
    const int64_t count = pool.planes * pool.pooled_image();
    const bool there = team.number < count;
    const Position at = position(there ? team.number : 0, pool.pooled_image(), pool.pooled[1], pool.channels);
    T sum = 0;
    team.each_byte(pool, [&](int byte, int first, int last) {
        int bits = 0;
        each_place(pool, at, first, last, [&](int place, int64_t pixel) {
            const T number = T(z[pixel]);
            sum += derivatives_of(pool, number).value;
            bits |= int(number > T(0)) << place % 8;
        });
        if (mask && there) mask[byte * count + team.number] = uint8_t(bits);
    });
    sum = team.sum(sum);
    if (there && team.member == 0) y[team.number] = narrow<S>(pool.share<T>(at.row, at.column) * sum);
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 3)
    average_push_kernel(const AveragePool pool, int members, const S* z, const uint8_t* mask, const S* xdot,
                        int64_t stack, S* ydot) {
    using T = Wide<S>;
    const Team team(members);
    const int64_t count = pool.planes * pool.pooled_image();
    const bool there = team.number < count;
    const Position at = position(there ? team.number : 0, pool.pooled_image(), pool.pooled[1], pool.channels);
    const T other = T(pool.negative_slope());
    for (int64_t k = 0; k < stack; ++k) {
        T sum = 0;
        team.each_byte(pool, [&](int byte, int first, int last) {
            const int bits = mask && there ? mask[byte * count + team.number] : 0;
            each_place(pool, at, first, last, [&](int place, int64_t pixel) {
                const T slope = !mask ? derivatives_of(pool, T(z[pixel])).slope : bits >> place % 8 & 1 ? T(1) : other;
                sum += slope * T(xdot[k * pool.planes * pool.image() + pixel]);
            });
        });
        sum = team.sum(sum);
        if (there && team.member == 0)
            ydot[k * count + team.number] = narrow<S>(pool.share<T>(at.row, at.column) * sum);
    }
}

// (A^T u) of one pixel, and `place` and `number` of the last of its windows.
template <class T, class S>
__device__ __forceinline__ T spread(const AveragePool& pool, const Position& at, const S* u, int& place,
                                    int64_t& number) {
    T sum = 0;
    each_window_of(pool, at, [&](int row, int column, int own, int64_t window) {
        sum += pool.share<T>(row, column) * T(u[window]);
        place = own;
        number = window;
    });
    return sum;
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    average_pull_kernel(const AveragePool pool, const S* z, const uint8_t* mask, const S* u, int64_t stack,
                        const S* second, S* below) {
    using T = Wide<S>;
    const int64_t index = thread_number(), count = pool.planes * pool.image();
    const int64_t windows = pool.planes * pool.pooled_image();
    if (index >= count) return;
    const Position at = position(index, pool.image(), pool.size[1], pool.channels);
    Derivatives<T> phi{};
    if (!mask) phi = derivatives_of(pool, T(z[index]));
    const T added = second ? phi.bend * T(second[index]) : T(0);
    for (int64_t k = 0; k < stack; ++k) {
        int place = 0;
        int64_t number = -1;
        const T cotangent = spread<T>(pool, at, u + k * windows, place, number);
        if (mask && number >= 0)
            phi.slope = mask[place / 8 * windows + number] >> place % 8 & 1 ? T(1) : T(pool.negative_slope());
        below[k * count + index] = narrow<S>(phi.slope * cotangent + added);
    }
}

template <class S>
__global__ void __launch_bounds__(pool_threads, 4)
    average_meet_kernel(const AveragePool pool, const S* u, const S* xdot, int64_t stack, S* second) {
    using T = Wide<S>;
    const int64_t index = thread_number(), count = pool.planes * pool.image();
    if (index >= count) return;
    const Position at = position(index, pool.image(), pool.size[1], pool.channels);
    T sum = 0;
    for (int64_t k = 0; k < stack; ++k) {
        int place = 0;
        int64_t number = 0;
        sum +=
            spread<T>(pool, at, u + k * pool.planes * pool.pooled_image(), place, number) * T(xdot[k * count + index]);
    }
    second[index] = narrow<S>(sum);
}

}  // namespace gradreg_fast::cuda
