// The kernels of average_pool.h, a template over the register's size. Lanes run along the channels.
//
// With n numbers of z a window, PyTorch's lines move 3 n + 1 numbers a window and sweep (an activation reads and writes
// all, the pooling reads or writes them again), these n + 1: the values between are never in memory. Where phi is
// piecewise linear z is not kept, either. Without an activation they would save nothing, and are not used;
// nor where numbers are in several windows, and read as often (passes.py says how many).
//
// Kernel forward: y = A phi(z), and a bit of the slope for each place of a window where that is enough
//   dtypes     float32 float64
//   bound      memory: reads each number of z once where windows are tiles, writes 1 number and n bits per window
//
// Kernel push: A phi' xdot for a stack
//   dtypes     float32 float64
//   bound      memory: reads K + 1 numbers an element of z (K and n bits per window with a mask), writes K per window
//
// Kernel pull: phi' A^T u, for one with a second-order term, for a stack
//   dtypes     float32 float64
//   bound      memory: reads K numbers per window and 1 (or n bits per window) an element of z, writes K
//
// Kernel meet: sum_k (A^T u) xdot
//   dtypes     float32 float64
//   bound      memory: reads K numbers per window and K an element of z, writes 1

#pragma once

#include <algorithm>

#include "common/dispatch.h"
#include "cpu/average_pool.h"
#include "cpu/vector_math.h"
#include "cpu/windows.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct AveragePoolPasses {
    using V = Vector<T, Bytes>;
    using Math = VectorMath<T, Bytes>;
    using Register = typename V::T;
    using Bits = decltype(Register{} > Register{});

    // The mask of a register's windows, which begin at a number of y.
    struct Mask {
        typedef uint8_t Narrow __attribute__((vector_size(V::lanes)));
        uint8_t* const mask;
        const int64_t first, apart;  // apart: bytes of the same window
        const int count;
        int64_t byte = -1;
        Bits bits{};

        GRADREG_FAST_INLINE Mask(const AveragePool& pool, const uint8_t* mask, int64_t number, int count)
            : mask(const_cast<uint8_t*>(mask)), first(number), apart(pool.planes * pool.pooled_image()), count(count) {}

        GRADREG_FAST_INLINE Bits read(int64_t place) const {
            Narrow narrow{};
            move(&narrow, mask + place / 8 * apart + first);
            return (__builtin_convertvector(narrow, Bits) & (1 << place % 8)) != 0;
        }
        // Of places in their order; `finish` follows.
        GRADREG_FAST_INLINE void write(int64_t place, Bits is_set) {
            if (place / 8 != byte) finish();
            byte = place / 8;
            bits |= is_set & (1 << place % 8);
        }
        GRADREG_FAST_INLINE void finish() {
            const Narrow narrow = __builtin_convertvector(bits, Narrow);
            if (byte >= 0) move(mask + byte * apart + first, &narrow);
            bits = Bits{};
        }
        GRADREG_FAST_INLINE void move(void* to, const void* from) const {
            if (count == V::lanes)
                __builtin_memcpy(to, from, V::lanes);
            else
                __builtin_memcpy(to, from, count);
        }
    };

    // Calls function(derivatives), which gives phi' and phi'' at a register of numbers: their first, that of the
    // plane's images and the window's in y, the place, and how many there are.
    template <class Function>
    static GRADREG_FAST_INLINE void with_derivatives(const AveragePool& pool, const T* z, const uint8_t* mask,
                                                     Function&& function) {
        const Register zero{}, one = Math::constant(1), other = Math::constant(pool.negative_slope());
        if (mask)
            return function([&](int64_t, int64_t window, int64_t place, int count) {
                return Derivatives<Register>{
                    zero, Math::select(Mask(pool, mask, window, count).read(place), one, other), zero};
            });
        with_kind<Math>(pool.kind, pool.settings, [&](const auto& phi) {
            if constexpr (!std::decay_t<decltype(phi)>::curvature_free)
                function([&](int64_t pixel, int64_t, int64_t, int count) {
                    return derivatives_at(phi, V::load(z + pixel, count));
                });
        });
    }

    static void forward(const AveragePool& pool, const T* z, T* y, uint8_t* mask, int64_t begin, int64_t end) {
        with_kind<Math>(pool.kind, pool.settings, [&](const auto& phi) {
            constexpr bool masked = std::decay_t<decltype(phi)>::curvature_free;
            for (int64_t plane = begin; plane < end; ++plane)
                each_window(pool, plane, [&](int64_t row, int64_t column, int64_t first) {
                    const Register share = V::broadcast(pool.template share<T>(row, column));
                    each_part<V>(0, pool.channels, [&](int64_t i, int count) {
                        Register sum{};
                        Mask bits(pool, mask, first + i, count);
                        each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                            const Register number = V::load(z + plane * pool.image() + pixel + i, count);
                            sum += phi.value(number);
                            if constexpr (masked) bits.write(place, number > Register{});
                        });
                        if constexpr (masked) bits.finish();
                        V::store(y + first + i, share * sum, count);
                    });
                });
        });
    }

    static void push(const AveragePool& pool, const T* z, const uint8_t* mask, const T* xdot, int64_t stack, T* ydot,
                     int64_t begin, int64_t end) {
        with_derivatives(pool, z, mask, [&](const auto& derivatives) {
            for (int64_t k = 0; k < stack; ++k)
                for (int64_t plane = begin; plane < end; ++plane) {
                    const int64_t image = plane * pool.image();
                    const T* const from = xdot + k * pool.planes * pool.image();
                    T* const to = ydot + k * pool.planes * pool.pooled_image();
                    each_window(pool, plane, [&](int64_t row, int64_t column, int64_t first) {
                        const Register share = V::broadcast(pool.template share<T>(row, column));
                        each_part<V>(0, pool.channels, [&](int64_t i, int count) {
                            Register sum{};
                            each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                                const int64_t at = image + pixel + i;
                                sum += derivatives(at, first + i, place, count).slope * V::load(from + at, count);
                            });
                            V::store(to + first + i, share * sum, count);
                        });
                    });
                }
        });
    }

    static void pull(const AveragePool& pool, const T* z, const uint8_t* mask, const T* u, int64_t stack,
                     const T* second, T* below, int64_t begin, int64_t end) {
        const bool tiles = pool.are_tiles();
        with_derivatives(pool, z, mask, [&](const auto& derivatives) {
            const auto bend = [&](const auto& at, int64_t number, int count) {
                return second ? at.bend * V::load(second + number, count) : Register{};
            };
            for (int64_t k = 0; k < stack; ++k)
                for (int64_t plane = begin; plane < end; ++plane) {
                    const int64_t image = plane * pool.image();
                    const T* const from = u + k * pool.planes * pool.pooled_image();
                    T* const to = below + k * pool.planes * pool.image();
                    if (!tiles && !second) std::fill_n(to + image, pool.image(), T(0));
                    if (!tiles && second)
                        each_part<V>(image, image + pool.image(), [&](int64_t number, int count) {
                            V::store(to + number, bend(derivatives(number, 0, 0, count), number, count), count);
                        });
                    each_window(pool, plane, [&](int64_t row, int64_t column, int64_t first) {
                        const Register share = V::broadcast(pool.template share<T>(row, column));
                        each_part<V>(0, pool.channels, [&](int64_t i, int count) {
                            const Register cotangent = share * V::load(from + first + i, count);
                            each_place(pool, row, column, [&](int64_t place, int64_t pixel) {
                                const int64_t number = image + pixel + i;
                                const auto at = derivatives(number, first + i, place, count);
                                const Register others = tiles ? bend(at, number, count) : V::load(to + number, count);
                                V::store(to + number, at.slope * cotangent + others, count);
                            });
                        });
                    });
                }
        });
    }

    static void meet(const AveragePool& pool, const T* u, const T* xdot, int64_t stack, T* second, int64_t begin,
                     int64_t end) {
        const bool tiles = pool.are_tiles();
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t image = plane * pool.image();
            if (!tiles) std::fill_n(second + image, pool.image(), T(0));
            each_window(pool, plane, [&](int64_t row, int64_t column, int64_t first) {
                const Register share = V::broadcast(pool.template share<T>(row, column));
                each_part<V>(0, pool.channels, [&](int64_t i, int count) {
                    each_place(pool, row, column, [&](int64_t, int64_t pixel) {
                        const int64_t number = image + pixel + i;
                        Register sum{};
                        for (int64_t k = 0; k < stack; ++k)
                            sum += V::load(u + k * pool.planes * pool.pooled_image() + first + i, count) *
                                   V::load(xdot + k * pool.planes * pool.image() + number, count);
                        const Register others = tiles ? Register{} : V::load(second + number, count);
                        V::store(second + number, share * sum + others, count);
                    });
                });
            });
        }
    }

    static const AveragePoolKernels<T>& kernels() {
        static constexpr AveragePoolKernels<T> table{&forward, &push, &pull, &meet};
        return table;
    }
};

}  // namespace gradreg_fast
