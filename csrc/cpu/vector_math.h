// Registers of numbers as GCC's vector types, and elementary functions of them.
//
// Everything is a template over the register's size in bytes, so that the same lines serve every instruction set and no
// two of them share a symbol. They are accurate to about 2 units in the last place over the whole range (tests/csrc
// checks them); the float polynomials are minimax fits, the double ones series. Sine, cosine and the normal
// distribution in double call the standard library lane by lane: correct, not fast.

#pragma once

#include <cstdint>
#include <type_traits>

#include "common/math.h"

namespace gradreg_fast {

template <class Number, int Bytes>
struct Vector {
    static constexpr int lanes = Bytes / int(sizeof(Number));
    typedef Number T __attribute__((vector_size(Bytes)));

    static GRADREG_FAST_INLINE T load(const Number* from) {
        T v;
        __builtin_memcpy(&v, from, Bytes);
        return v;
    }
    static GRADREG_FAST_INLINE void store(Number* to, T v) { __builtin_memcpy(to, &v, Bytes); }
    // The first `count` lanes; the others are zeros.
    static GRADREG_FAST_INLINE T load(const Number* from, int count) {
        if (count == lanes) return load(from);
        T v{};
        __builtin_memcpy(&v, from, count * sizeof(Number));
        return v;
    }
    static GRADREG_FAST_INLINE void store(Number* to, T v, int count) {
        if (count == lanes) return store(to, v);
        __builtin_memcpy(to, &v, count * sizeof(Number));
    }
    // minus zero changes no value, so that this is a single load; plus zero would be an addition (-0 + 0 = 0)
    static GRADREG_FAST_INLINE T broadcast(Number value) { return value - T{}; }

    static GRADREG_FAST_INLINE Number sum(T v) {
        if constexpr (Bytes > 16) {  // in halves, always in the same order
            using Half = Vector<Number, Bytes / 2>;
            typename Half::T low, high;
            __builtin_memcpy(&low, &v, Bytes / 2);
            __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + Bytes / 2, Bytes / 2);
            return Half::sum(low + high);
        } else {
            Number total = v[0];
            for (int lane = 1; lane < lanes; ++lane)
                total += v[lane];
            return total;
        }
    }
};

// Calls function(registers, i) for whole registers of `count` numbers, and for the rest one by one.
template <class Number, int Bytes, class Function>
GRADREG_FAST_INLINE void each_register(int64_t count, Function&& function) {
    using Wide = Vector<Number, Bytes>;
    using One = Vector<Number, int(sizeof(Number))>;
    int64_t i = 0;
    for (; i + Wide::lanes <= count; i += Wide::lanes)
        function(Wide{}, i);
    for (; i < count; ++i)
        function(One{}, i);
}

// Calls function(i, count) for registers of the numbers [begin, end), of which the last may have fewer than its lanes.
template <class V, class Function>
GRADREG_FAST_INLINE void each_part(int64_t begin, int64_t end, Function&& function) {
    int64_t i = begin;
    for (; i + V::lanes <= end; i += V::lanes)
        function(i, V::lanes);
    if (i < end) function(i, int(end - i));
}

template <class Number, int Bytes>
struct VectorMath;

template <int Bytes>
struct VectorMath<float, Bytes> {
    using Scalar = float;
    using V = Vector<float, Bytes>;
    using T = typename V::T;
    typedef int32_t Bits __attribute__((vector_size(Bytes)));

    static GRADREG_FAST_INLINE T constant(double value) { return V::broadcast(static_cast<float>(value)); }
    static GRADREG_FAST_INLINE T select(Bits condition, T yes, T no) { return condition ? yes : no; }
    static GRADREG_FAST_INLINE T absolute(T x) { return (T)((Bits)x & 0x7fffffff); }

    static GRADREG_FAST_INLINE T exp(T x) {
        // Beyond these bounds the result is 0 or infinity; a NaN passes both comparisons.
        x = select(x < constant(-105), constant(-105), select(x > constant(89), constant(89), x));
        Bits n;
        const T below_one = reduced_expm1(x, n);
        const Bits half = n >> 1;  // in two factors: 2^n itself may overflow, or be denormal
        return (below_one + 1.0f) * power_of_two(half) * power_of_two(n - half);
    }

    // For x <= 88.
    static GRADREG_FAST_INLINE T expm1(T x) {
        x = select(x < constant(-40), constant(-40), x);
        Bits n;
        const T below_one = reduced_expm1(x, n);
        const T scale = power_of_two(n);
        return scale * below_one + (scale - 1.0f);
    }

    // For 0 <= x <= 1: 2 artanh(s) with s = x / (2 + x).
    static GRADREG_FAST_INLINE T log1p(T x) {
        const T s = x / (x + 2.0f), w = s * s;
        const T p = ((1.401564032e-01f * w + 1.399893165e-01f) * w + 2.001088560e-01f) * w + 3.333320618e-01f;
        return 2.0f * s + 2.0f * s * w * p;
    }

    static GRADREG_FAST_INLINE T tanh(T x) {
        T twice = 2.0f * absolute(x);
        twice = select(twice > constant(20), constant(20), twice);  // 1 to the last bit
        const T m = expm1(twice);
        return copy_sign(m / (m + 2.0f), x);
    }

    static GRADREG_FAST_INLINE void sincos(T x, T& sine, T& cosine) {
        const T far = absolute(x);
        bool large = false;
        for (int lane = 0; lane < V::lanes; ++lane)
            large |= !(far[lane] < 8192.0f);
        if (large) {  // the reduction below would lose digits; also infinities and NaN
            for (int lane = 0; lane < V::lanes; ++lane) {
                sine[lane] = std::sin(x[lane]);
                cosine[lane] = std::cos(x[lane]);
            }
            return;
        }
        // x = n pi / 2 + r; pi / 2 in parts whose products with n are exact
        T shifted = x * 0.63661977236758134f + 12582912.0f;
        const Bits n = (Bits)shifted;
        const T count = shifted - 12582912.0f;
        T r = x - count * 1.5703125f;
        r = r - count * 4.837512969970703125e-4f;
        r = r - count * 7.54953362047672271728515625e-8f;
        r = r - count * 2.5633441515971927e-12f;
        const T w = r * r;
        const T s = r + r * w * ((-1.951083832e-04f * w + 8.332131431e-03f) * w - 1.666665375e-01f);
        const T c = 1.0f - 0.5f * w + w * w * ((2.443120320e-05f * w - 1.388730598e-03f) * w + 4.166664556e-02f);
        const Bits odd = (n & 1) != 0;
        sine = (T)((Bits)select(odd, c, s) ^ ((n & 2) << 30));
        cosine = (T)((Bits)select(odd, s, c) ^ (((n + 1) & 2) << 30));
    }

    // For x >= 0.
    static GRADREG_FAST_INLINE void normal(T x, T& density, T& tail) {
        const T bounded = select(x > constant(16), constant(16), x);  // both are zero from there on
        // exp(-x^2 / 2) with x^2 in two parts: rounding the square would cost the tail its digits
        const T high = (T)((Bits)bounded & ~0xfff);
        const T rest = (bounded - high) * (bounded + high);
        density = exp(-0.5f * high * high) * (1.0f + expm1(-0.5f * rest)) * 0.398942280401f;
        // tail / density = Mills' ratio, a polynomial in t
        const T t = 1.0f / (1.0f + 0.35f * bounded);
        T ratio = constant(-7.085124403e-02);
        ratio = ratio * t + 3.494470417e-01f;
        ratio = ratio * t - 6.154808402e-01f;
        ratio = ratio * t + 3.669838309e-01f;
        ratio = ratio * t - 3.308675438e-02f;
        ratio = ratio * t + 2.521486878e-01f;
        ratio = ratio * t + 3.042683899e-01f;
        ratio = ratio * t + 3.498289883e-01f;
        ratio = ratio * t + 3.500596285e-01f;
        ratio = ratio * t - 3.645574907e-06f;
        tail = density * ratio;
    }

  private:
    // x = n log 2 + r; returns exp(r) - 1.
    static GRADREG_FAST_INLINE T reduced_expm1(T x, Bits& n) {
        const T shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 2^23: the integer is in the low bits
        n = (Bits)shifted - 0x4b400000;
        const T count = shifted - 12582912.0f;
        const T r = (x - count * 0.693359375f) - count * -2.12194440e-4f;
        T q = constant(1.991503086e-04);
        q = q * r + 1.394205960e-03f;
        q = q * r + 8.333271369e-03f;
        q = q * r + 4.166634008e-02f;
        q = q * r + 1.666666716e-01f;
        q = q * r + 5.000000000e-01f;
        return r + r * r * q;
    }

    static GRADREG_FAST_INLINE T power_of_two(Bits n) { return (T)((n + 127) << 23); }
    static GRADREG_FAST_INLINE T copy_sign(T magnitude, T sign) {
        return (T)((Bits)magnitude | ((Bits)sign & int32_t(0x80000000u)));
    }
};

template <int Bytes>
struct VectorMath<double, Bytes> {
    using Scalar = double;
    using V = Vector<double, Bytes>;
    using T = typename V::T;
    using S = ScalarMath<double>;
    typedef int64_t Bits __attribute__((vector_size(Bytes)));

    static GRADREG_FAST_INLINE T constant(double value) { return V::broadcast(value); }
    static GRADREG_FAST_INLINE T select(Bits condition, T yes, T no) { return condition ? yes : no; }
    static GRADREG_FAST_INLINE T absolute(T x) { return (T)((Bits)x & INT64_MAX); }
    static GRADREG_FAST_INLINE T exp(T x) {
        // Beyond these bounds the result is 0 or infinity; a NaN passes both comparisons.
        x = select(x < constant(-746), constant(-746), select(x > constant(710), constant(710), x));
        Bits n;
        const T below_one = reduced_expm1(x, n);
        const Bits half = n >> 1;  // in two factors: 2^n itself may overflow, or be denormal
        return (below_one + 1.0) * power_of_two(half) * power_of_two(n - half);
    }

    // For x <= 709.
    static GRADREG_FAST_INLINE T expm1(T x) {
        x = select(x < constant(-80), constant(-80), x);
        Bits n;
        const T below_one = reduced_expm1(x, n);
        const T scale = power_of_two(n);
        return scale * below_one + (scale - 1.0);
    }

    // For 0 <= x <= 1: 2 artanh(s) with s = x / (2 + x) <= 1/3, by its series.
    static GRADREG_FAST_INLINE T log1p(T x) {
        const T s = x / (x + 2.0), w = s * s;
        T p = constant(1.0 / 33);
#pragma GCC unroll 16
        for (int k = 31; k >= 3; k -= 2)
            p = p * w + 1.0 / k;
        return 2.0 * s + 2.0 * s * w * p;
    }

    static GRADREG_FAST_INLINE T tanh(T x) {
        T twice = 2.0 * absolute(x);
        twice = select(twice > constant(40), constant(40), twice);  // 1 to the last bit
        const T m = expm1(twice);
        return (T)((Bits)(m / (m + 2.0)) | ((Bits)x & INT64_MIN));
    }

    static GRADREG_FAST_INLINE void sincos(T x, T& sine, T& cosine) { pair(&S::sincos, x, sine, cosine); }
    static GRADREG_FAST_INLINE void normal(T x, T& density, T& tail) { pair(&S::normal, x, density, tail); }

  private:
    // x = n log 2 + r with |r| <= log 2 / 2; returns exp(r) - 1 by its series, whose next term is below 1e-17.
    static GRADREG_FAST_INLINE T reduced_expm1(T x, Bits& n) {
        const T shifted = x * 1.4426950408889634074 + 6755399441055744.0;  // 1.5 2^52: the integer is in the low bits
        n = (Bits)shifted - 0x4338000000000000;
        const T count = shifted - 6755399441055744.0;
        const T r = (x - count * 6.93147180369123816490e-01) - count * 1.90821492927058770002e-10;
        T q = constant(1.0 / 87178291200);
        double factorial = 87178291200;
#pragma GCC unroll 16
        for (int k = 14; k > 2; --k) {
            factorial /= k;
            q = q * r + 1.0 / factorial;
        }
        return r + r * r * q;
    }

    static GRADREG_FAST_INLINE T power_of_two(Bits n) { return (T)((n + 1023) << 52); }
    template <class Function>
    static GRADREG_FAST_INLINE void pair(Function function, T x, T& first, T& second) {
        for (int lane = 0; lane < V::lanes; ++lane) {
            double a, b;
            function(x[lane], a, b);
            first[lane] = a;
            second[lane] = b;
        }
    }
};

}  // namespace gradreg_fast
