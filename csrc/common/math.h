// Elementary functions of one number, for host and device: what activation.h is written in.
//
// The CPU's vectors offer the same names over whole registers (cpu/vector_math.h), so that an activation is written
// once.

#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define GRADREG_FAST_INLINE __host__ __device__ __forceinline__
#else
#define GRADREG_FAST_INLINE inline __attribute__((always_inline))
#endif

namespace gradreg_fast {

template <class Number>
struct ScalarMath {
    using T = Number;
    using Scalar = Number;

    static GRADREG_FAST_INLINE T constant(double value) { return static_cast<T>(value); }
    static GRADREG_FAST_INLINE T select(bool condition, T yes, T no) { return condition ? yes : no; }
    static GRADREG_FAST_INLINE T absolute(T x) { return std::fabs(x); }
    static GRADREG_FAST_INLINE T exp(T x) { return std::exp(x); }
    static GRADREG_FAST_INLINE T expm1(T x) { return std::expm1(x); }
    static GRADREG_FAST_INLINE T log1p(T x) { return std::log1p(x); }
    static GRADREG_FAST_INLINE T tanh(T x) { return std::tanh(x); }
    static GRADREG_FAST_INLINE void sincos(T x, T& sine, T& cosine) {
        sine = std::sin(x);
        cosine = std::cos(x);
    }

    // Density of the standard normal distribution and its upper tail, P(X > x) for x >= 0.
    static GRADREG_FAST_INLINE void normal(T x, T& density, T& tail) {
        density = std::exp(T(-0.5) * x * x) * T(0.39894228040143267794);
        tail = T(0.5) * std::erfc(x * T(0.70710678118654752440));
    }
};

}  // namespace gradreg_fast
