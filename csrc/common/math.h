// Elementary functions of one number, for host and device: what activation.h is written in.
//
// The CPU's vectors offer the same names over whole registers (cpu/vector_math.h), so that an activation is written
// once.

#pragma once

#if !defined(__CUDACC_RTC__)
#include <math.h>  // with these names for float, too, in the global namespace: there NVRTC has them by itself
#endif

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
    static GRADREG_FAST_INLINE T absolute(T x) { return ::fabs(x); }
    static GRADREG_FAST_INLINE T exp(T x) { return ::exp(x); }
    static GRADREG_FAST_INLINE T expm1(T x) { return ::expm1(x); }
    static GRADREG_FAST_INLINE T log1p(T x) { return ::log1p(x); }
    static GRADREG_FAST_INLINE T tanh(T x) { return ::tanh(x); }
    static GRADREG_FAST_INLINE void sincos(T x, T& sine, T& cosine) {
#if defined(__CUDA_ARCH__)
        // CUDA's own reduce large angles with an array in local memory. In half turns, to twice the precision of
        // double.
        constexpr double high = 0.31830988618379069, low = -1.9678676675182486e-17;  // 1 / pi
        const double angle = x, turns = angle * high;
        const double rest = ::fma(angle, high, -turns) + angle * low;
        const T reduced = T(turns - 2 * ::rint(0.5 * turns) + rest);
        ::sincospi(reduced, &sine, &cosine);
#else
        sine = ::sin(x);
        cosine = ::cos(x);
#endif
    }

    // Density of the standard normal distribution and its upper tail, P(X > x) for x >= 0.
    static GRADREG_FAST_INLINE void normal(T x, T& density, T& tail) {
        density = ::exp(T(-0.5) * x * x) * T(0.39894228040143267794);
        tail = T(0.5) * ::erfc(x * T(0.70710678118654752440));
    }
};

}  // namespace gradreg_fast
