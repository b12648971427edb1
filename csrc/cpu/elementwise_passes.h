// The kernels of elementwise.h, a template over the register's size.
//
// Kernel value: y = phi(z), and a bit of the slope for each number where that is enough
//   dtypes     float32 float64
//   bound      memory: reads 1 and writes 1 number an element, and a byte of mask per 16 bytes
//
// Kernel slope: phi' v for a stack
//   dtypes     float32 float64
//   bound      memory: reads K + 1 numbers an element (K and a byte per 16 with a mask), writes K
//
// Kernel meet: sum_k u xdot and phi' xdot
//   dtypes     float32 float64
//   bound      memory: reads 2 K + 1 numbers an element, writes K + 1
//
// Kernel bend: phi' d + phi'' w
//   dtypes     float32 float64
//   bound      memory: reads 3 numbers an element, writes 1

#pragma once

#include "common/dispatch.h"
#include "cpu/elementwise.h"
#include "cpu/vector_math.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct ElementwisePasses {
    using V = Vector<T, Bytes>;
    using Math = VectorMath<T, Bytes>;
    using Register = typename V::T;
    using Bits = decltype(Register{} > Register{});
    static constexpr int lanes = V::lanes, each = 16 / int(sizeof(T));  // numbers of a byte of the mask

    // The bit of each lane in the bytes of the mask that belong to a register.
    static GRADREG_FAST_INLINE Bits lane_bits() {
        Bits bits{};
        for (int lane = 0; lane < lanes; ++lane)
            bits[lane] = 1 << (8 * (lane / each) + lane % each);
        return bits;
    }

    static GRADREG_FAST_INLINE Bits read_mask(const uint8_t* mask, int64_t i) {
        uint32_t word = 0;
        __builtin_memcpy(&word, mask + i / each, lanes / each);
        return ((Bits{} + int32_t(word)) & lane_bits()) != 0;
    }

    static GRADREG_FAST_INLINE void write_mask(uint8_t* mask, int64_t i, Bits is_set) {
        const uint32_t word = united<Bytes>(is_set & lane_bits());
        __builtin_memcpy(mask + i / each, &word, lanes / each);
    }

    // The bits of all lanes.
    template <int Size, class Lanes>
    static GRADREG_FAST_INLINE uint32_t united(Lanes bits) {
        if constexpr (Size > 16) {
            typedef std::decay_t<decltype(bits[0])> Half __attribute__((vector_size(Size / 2)));
            Half low, high;
            __builtin_memcpy(&low, &bits, Size / 2);
            __builtin_memcpy(&high, reinterpret_cast<const char*>(&bits) + Size / 2, Size / 2);
            return united<Size / 2>(low | high);
        } else {
            uint32_t word = 0;
            for (int lane = 0; lane < each; ++lane)
                word |= uint32_t(bits[lane]);
            return word;
        }
    }

    // Calls `function(derivatives)`, which gives the derivatives of phi at what was kept of the numbers from i on.
    template <class Function>
    static void with_derivatives(const Elementwise& pass, Function&& function) {
        const T* const kept = static_cast<const T*>(pass.kept);
        with_kind<Math>(pass.kind, pass.settings, [&](const auto& phi) {
            function([&](int64_t i, int count) { return phi.derivatives(V::load(kept + i, count)); });
        });
    }

    // Calls `function(slope)`, which gives phi' of the numbers from i on.
    template <class Function>
    static void with_slopes(const Elementwise& pass, Function&& function) {
        if (!pass.mask)
            return with_derivatives(pass, [&](const auto& derivatives) {
                function([&](int64_t i, int count) { return derivatives(i, count).slope; });
            });
        const Register one = Math::constant(1);
        const Register other = Math::constant(pass.kind == Kind::LeakyReLU ? pass.settings.first : 0);
        function([&](int64_t i, int count) {
            if (count == lanes) return Math::select(read_mask(pass.mask, i), one, other);
            Register slopes{};
            for (int lane = 0; lane < count; ++lane)
                slopes[lane] = pass.mask[(i + lane) / each] >> (lane % each) & 1 ? one[0] : other[0];
            return slopes;
        });
    }

    static void value(const Elementwise& pass, const T* z, T* y, uint8_t* mask, int64_t begin, int64_t end) {
        with_kind<Math>(pass.kind, pass.settings, [&](const auto& phi) {
            each_part<V>(begin, end, [&](int64_t i, int count) {
                const Register numbers = V::load(z + i, count);
                V::store(y + i, phi.value(numbers), count);
                if (!mask) return;
                const Bits is_set = numbers > Math::constant(0);
                if (count == lanes) return write_mask(mask, i, is_set);
                for (int lane = 0; lane < count; ++lane) {
                    uint8_t& byte = mask[(i + lane) / each];
                    byte = uint8_t((lane % each ? byte : 0) | (is_set[lane] & 1) << lane % each);
                }
            });
        });
    }

    static void slope(const Elementwise& pass, const T* v, int64_t stack, T* result, int64_t begin, int64_t end) {
        with_slopes(pass, [&](const auto& slope) {
            for (int64_t k = 0; k < stack; ++k)
                each_part<V>(begin, end, [&](int64_t i, int count) {
                    const int64_t at = k * pass.count + i;
                    V::store(result + at, slope(i, count) * V::load(v + at, count), count);
                });
        });
    }

    template <bool Push>
    static void meet(const Elementwise& pass, const T* u, const T* xdot, int64_t stack, T* w, T* ydot, int64_t begin,
                     int64_t end) {
        with_slopes(pass, [&](const auto& slope) {
            each_part<V>(begin, end, [&](int64_t i, int count) {
                Register sum{}, slopes{};
                if (Push) slopes = slope(i, count);
                for (int64_t k = 0; k < stack; ++k) {
                    const Register tangent = V::load(xdot + k * pass.count + i, count);
                    sum += V::load(u + k * pass.count + i, count) * tangent;
                    if (Push) V::store(ydot + k * pass.count + i, slopes * tangent, count);
                }
                V::store(w + i, sum, count);
            });
        });
    }

    static void meet(const Elementwise& pass, const T* u, const T* xdot, int64_t stack, T* w, T* ydot, int64_t begin,
                     int64_t end) {
        return ydot ? meet<true>(pass, u, xdot, stack, w, ydot, begin, end)
                    : meet<false>(pass, u, xdot, stack, w, ydot, begin, end);
    }

    template <bool Below>
    static void bend(const Elementwise& pass, const T* d, const T* w, T* result, int64_t begin, int64_t end) {
        with_derivatives(pass, [&](const auto& derivatives) {
            each_part<V>(begin, end, [&](int64_t i, int count) {
                const auto at = derivatives(i, count);
                const Register zero{};
                Register factor = at.bend;  // where the slope has vanished, so has the cotangent below it
                if (Below) factor = Math::select(at.slope == zero, zero, at.bend / at.slope);
                Register sum = factor * V::load(w + i, count);
                if (d) sum += at.slope * V::load(d + i, count);
                V::store(result + i, sum, count);
            });
        });
    }

    static void bend(const Elementwise& pass, const T* d, const T* w, bool below, T* result, int64_t begin,
                     int64_t end) {
        return below ? bend<true>(pass, d, w, result, begin, end) : bend<false>(pass, d, w, result, begin, end);
    }

    static const ElementwiseKernels<T>& kernels() {
        static constexpr ElementwiseKernels<T> table{&value, &slope, &meet, &bend};
        return table;
    }
};

}  // namespace gradreg_fast
