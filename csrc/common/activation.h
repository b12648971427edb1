// Activations: phi, phi' and phi'' of each, and what a forward sweep has to keep for the two derivatives.
//
// An activation is a struct over a `Math`, which says what a number is: a scalar (common/math.h, also on the device) or
// a register of them (cpu/vector_math.h). It has
//
//   from_output      whether `derivatives` takes y = phi(z), which the next layer keeps anyway, instead of z;
//   curvature_free   whether phi'' = 0 wherever it exists;
//   value(z)         phi(z);
//   derivatives(k)   phi, phi' and phi'' from what was kept.
//
// Not a number in, not a number out; at zero, and at infinities, slopes are PyTorch's.

#pragma once

#include "common/math.h"

namespace gradreg_fast {

// The order is that of `KINDS` in gradreg_fast/mlp.py.
enum class Kind : int { Identity, ReLU, LeakyReLU, Softplus, Tanh, Sigmoid, SiLU, GELU, GELUTanh, Sine, Count };

// Two settings a layer: LeakyReLU's negative slope; Softplus's beta and threshold; Sine's frequency.
struct Settings {
    double first = 0;
    double second = 0;
};

template <class T>
struct Derivatives {
    T value;
    T slope;
    T bend;
};

// s(x) = 1 / (1 + exp(-x)), and s(-x) = 1 - s(x) without cancellation.
template <class Math>
GRADREG_FAST_INLINE void logistic(typename Math::T x, typename Math::T& upper, typename Math::T& lower) {
    using T = typename Math::T;
    const T one = Math::constant(1);
    const T e = Math::exp(-Math::absolute(x));
    const T large = one / (one + e);
    const T small = e * large;
    const auto positive = x >= Math::constant(0);
    upper = Math::select(positive, large, small);
    lower = Math::select(positive, small, large);
}

template <class Math>
struct Identity {
    using T = typename Math::T;
    static constexpr bool from_output = true;
    static constexpr bool curvature_free = true;
    GRADREG_FAST_INLINE explicit Identity(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const { return z; }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T y) const { return {y, Math::constant(1), Math::constant(0)}; }
};

template <class Math>
struct ReLU {
    using T = typename Math::T;
    static constexpr bool from_output = true;
    static constexpr bool curvature_free = true;
    GRADREG_FAST_INLINE explicit ReLU(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const {
        const T zero = Math::constant(0);
        return Math::select(z <= zero, zero, z);
    }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T y) const {
        const T zero = Math::constant(0);
        return {y, Math::select(y <= zero, zero, Math::constant(1)), zero};
    }
};

template <class Math>
struct LeakyReLU {
    using T = typename Math::T;
    static constexpr bool from_output = false;  // a negative slope's own sign may hide that of z
    static constexpr bool curvature_free = true;
    const T negative_slope;
    GRADREG_FAST_INLINE explicit LeakyReLU(Settings settings) : negative_slope(Math::constant(settings.first)) {}
    GRADREG_FAST_INLINE T value(T z) const { return Math::select(z > Math::constant(0), z, z * negative_slope); }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        return {value(z), Math::select(z > Math::constant(0), Math::constant(1), negative_slope), Math::constant(0)};
    }
};

template <class Math>
struct Softplus {
    using T = typename Math::T;
    static constexpr bool from_output = false;  // around a low threshold, two z have the same y
    static constexpr bool curvature_free = false;
    const T beta, reciprocal, threshold;
    GRADREG_FAST_INLINE explicit Softplus(Settings settings)
        : beta(Math::constant(settings.first)),
          reciprocal(Math::constant(1 / settings.first)),
          threshold(Math::constant(settings.second)) {}
    GRADREG_FAST_INLINE T value(T z) const { return derivatives(z).value; }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        const T zero = Math::constant(0), one = Math::constant(1), scaled = z * beta;
        const T e = Math::exp(-Math::absolute(scaled));
        const T large = one / (one + e), small = e * large;
        const auto beyond = scaled > threshold, below = scaled < zero;
        const T smooth = Math::select(below, zero, scaled) + Math::log1p(e);
        return {Math::select(beyond, z, smooth * reciprocal),
                Math::select(beyond, one, Math::select(below, small, large)),
                Math::select(beyond, zero, beta * large * small)};
    }
};

// The same from its output, s(beta z) = 1 - exp(-beta y): for thresholds beyond which y and z are the same number.
template <class Math>
struct SoftplusFromOutput {
    using T = typename Math::T;
    static constexpr bool from_output = true;
    static constexpr bool curvature_free = false;
    static constexpr double least_threshold = 20;  // PyTorch's own: there y is z + 2e-9 / beta
    const Softplus<Math> whole;
    GRADREG_FAST_INLINE explicit SoftplusFromOutput(Settings settings) : whole(settings) {}
    GRADREG_FAST_INLINE T value(T z) const { return whole.value(z); }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T y) const {
        const T zero = Math::constant(0), one = Math::constant(1), scaled = y * whole.beta;
        const auto beyond = scaled > whole.threshold;
        const T slope = -Math::expm1(-scaled);
        return {y, Math::select(beyond, one, slope), Math::select(beyond, zero, whole.beta * slope * (one - slope))};
    }
};

template <class Math>
struct Tanh {
    using T = typename Math::T;
    static constexpr bool from_output = true;
    static constexpr bool curvature_free = false;
    GRADREG_FAST_INLINE explicit Tanh(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const { return Math::tanh(z); }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T y) const {
        const T slope = Math::constant(1) - y * y;
        return {y, slope, Math::constant(-2) * y * slope};
    }
};

template <class Math>
struct Sigmoid {
    using T = typename Math::T;
    static constexpr bool from_output = true;
    static constexpr bool curvature_free = false;
    GRADREG_FAST_INLINE explicit Sigmoid(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const {
        T upper, lower;
        logistic<Math>(z, upper, lower);
        return upper;
    }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T y) const {
        const T one = Math::constant(1);
        const T slope = y * (one - y);
        return {y, slope, slope * (one - y - y)};
    }
};

template <class Math>
struct SiLU {
    using T = typename Math::T;
    static constexpr bool from_output = false;
    static constexpr bool curvature_free = false;
    GRADREG_FAST_INLINE explicit SiLU(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const {
        T upper, lower;
        logistic<Math>(z, upper, lower);
        return z * upper;
    }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        T upper, lower;
        logistic<Math>(z, upper, lower);
        const T product = upper * lower;
        return {z * upper, upper + z * product, product * (Math::constant(2) + z * (lower - upper))};
    }
};

// z Phi(z), Phi the normal distribution function.
template <class Math>
struct GELU {
    using T = typename Math::T;
    static constexpr bool from_output = false;
    static constexpr bool curvature_free = false;
    GRADREG_FAST_INLINE explicit GELU(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const { return derivatives(z).value; }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        T density, tail;
        Math::normal(Math::absolute(z), density, tail);
        const T distribution = Math::select(z > Math::constant(0), Math::constant(1) - tail, tail);
        return {z * distribution, distribution + z * density, density * (Math::constant(2) - z * z)};
    }
};

// z (1 + tanh h) / 2 = z s(2 h) with h = sqrt(2 / pi) (z + 0.044715 z^3).
template <class Math>
struct GELUTanh {
    using T = typename Math::T;
    static constexpr bool from_output = false;
    static constexpr bool curvature_free = false;
    GRADREG_FAST_INLINE explicit GELUTanh(Settings) {}
    GRADREG_FAST_INLINE T value(T z) const { return derivatives(z).value; }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        constexpr double root = 2 * 0.79788456080286535588, cubic = 0.044715;
        const T square = z * z;
        const T angle = z * (Math::constant(root) + Math::constant(root * cubic) * square);
        const T rate = Math::constant(root) + Math::constant(3 * root * cubic) * square;  // d angle / dz
        T upper, lower;
        logistic<Math>(angle, upper, lower);
        const T product = upper * lower;
        const T turn = Math::constant(6 * root * cubic) * z;  // d rate / dz
        const T first = product * rate;
        const T second = product * (turn + rate * rate * (lower - upper));
        return {z * upper, upper + z * first, Math::constant(2) * first + z * second};
    }
};

template <class Math>
struct Sine {
    using T = typename Math::T;
    static constexpr bool from_output = false;
    static constexpr bool curvature_free = false;
    const T frequency;
    GRADREG_FAST_INLINE explicit Sine(Settings settings) : frequency(Math::constant(settings.first)) {}
    GRADREG_FAST_INLINE T value(T z) const { return derivatives(z).value; }
    GRADREG_FAST_INLINE Derivatives<T> derivatives(T z) const {
        T sine, cosine;
        Math::sincos(frequency * z, sine, cosine);
        return {sine, frequency * cosine, -frequency * frequency * sine};
    }
};

}  // namespace gradreg_fast
