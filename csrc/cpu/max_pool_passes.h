// The kernels of max_pool.h, a template over the register's size. Lanes run along the channels.
//
// Kernel forward: y = phi(max z), and each winner's place and slope
//   dtypes     float32 float64
//   bound      memory: reads each number of z once where windows are tiles, writes 1 number and a byte per window
//
// Kernel push: phi' xdot of the winners for a stack
//   dtypes     float32 float64
//   bound      memory: reads K numbers an element of z and a byte per window, writes K numbers per window
//
// Kernel pull: phi' u for the winners, and zeros for the others, for a stack
//   dtypes     float32 float64
//   bound      memory: reads K numbers and a byte per window, writes K numbers an element of z

#pragma once

#include <algorithm>

#include "cpu/max_pool.h"
#include "cpu/vector_math.h"
#include "cpu/windows.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct MaxPoolPasses {
    template <class V>
    using Bits = decltype(typename V::T{} > typename V::T{});

    // A register's bytes of the code, and what they say.
    template <class V>
    struct Code {
        typedef uint8_t Narrow __attribute__((vector_size(V::lanes)));
        Bits<V> place;
        typename V::T slope;

        GRADREG_FAST_INLINE Code(const uint8_t* from, const MaxPool& pool) {
            Narrow bytes;
            __builtin_memcpy(&bytes, from, V::lanes);
            const Bits<V> code = __builtin_convertvector(bytes, Bits<V>);
            place = code & (MaxPool::bent - 1);
            slope = (code & MaxPool::bent) != 0 ? V::broadcast(T(pool.negative_slope)) : V::broadcast(1);
        }
        static GRADREG_FAST_INLINE void store(uint8_t* to, Bits<V> code) {
            const Narrow bytes = __builtin_convertvector(code, Narrow);
            __builtin_memcpy(to, &bytes, V::lanes);
        }
    };

    // Of a plane's windows: function(registers, row, column, channel, number of y).
    template <class Function>
    static GRADREG_FAST_INLINE void each_register_of(const MaxPool& pool, int64_t plane, Function&& function) {
        each_window(pool, plane, [&](int64_t row, int64_t column, int64_t first) {
            each_register<T, Bytes>(pool.channels,
                                    [&](auto registers, int64_t i) { function(registers, row, column, i, first + i); });
        });
    }

    static void forward(const MaxPool& pool, const T* z, T* y, uint8_t* code, int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const T* const from = z + plane * pool.image();
            each_register_of(pool, plane, [&](auto registers, int64_t row, int64_t column, int64_t i, int64_t at) {
                using V = decltype(registers);
                typename V::T best{};
                Bits<V> winner{};
                bool first = true;
                each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                    const auto number = V::load(from + pixel + i);
                    const Bits<V> here = Bits<V>{} + int(place);
                    const Bits<V> better = first ? Bits<V>{} - 1 : (number > best) | (number != number);
                    best = better ? number : best;
                    winner = better ? here : winner;
                    first = false;
                });
                const auto zero = V::broadcast(0);
                const auto bent = pool.rectifies ? (best <= zero ? zero : best) : best * T(pool.negative_slope);
                V::store(y + at, best > zero ? best : bent);
                Code<V>::store(code + at, winner | (best > zero ? Bits<V>{} : Bits<V>{} + MaxPool::bent));
            });
        }
    }

    static void push(const MaxPool& pool, const uint8_t* code, const T* xdot, int64_t stack, T* ydot, int64_t begin,
                     int64_t end) {
        for (int64_t k = 0; k < stack; ++k)
            for (int64_t plane = begin; plane < end; ++plane) {
                const T* const from = xdot + (k * pool.planes + plane) * pool.image();
                T* const to = ydot + k * pool.planes * pool.pooled_image();
                each_register_of(pool, plane, [&](auto registers, int64_t row, int64_t column, int64_t i, int64_t at) {
                    using V = decltype(registers);
                    const Code<V> of(code + at, pool);
                    typename V::T tangent{};
                    each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                        tangent = of.place == int(place) ? V::load(from + pixel + i) : tangent;
                    });
                    V::store(to + at, of.slope * tangent);
                });
            }
    }

    static void pull(const MaxPool& pool, const uint8_t* code, const T* u, int64_t stack, T* below, int64_t begin,
                     int64_t end) {
        const bool tiles = pool.are_tiles();
        for (int64_t k = 0; k < stack; ++k)
            for (int64_t plane = begin; plane < end; ++plane) {
                const T* const from = u + k * pool.planes * pool.pooled_image();
                T* const to = below + (k * pool.planes + plane) * pool.image();
                if (!tiles) std::fill_n(to, pool.image(), T(0));
                each_register_of(pool, plane, [&](auto registers, int64_t row, int64_t column, int64_t i, int64_t at) {
                    using V = decltype(registers);
                    const Code<V> of(code + at, pool);
                    const auto cotangent = of.slope * V::load(from + at), zero = V::broadcast(0);
                    each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                        const auto part = of.place == int(place) ? cotangent : zero;
                        V::store(to + pixel + i, tiles ? part : V::load(to + pixel + i) + part);
                    });
                });
            }
    }

    static const MaxPoolKernels<T>& kernels() {
        static constexpr MaxPoolKernels<T> table{&forward, &push, &pull};
        return table;
    }
};

}  // namespace gradreg_fast
