// Activations as kernels call them: some numbers at a time, in functions of their own, for their code is long.

#pragma once

#include "common/dispatch.h"
#include "cuda/device.cuh"

namespace gradreg_fast::cuda {

// What an activation makes of some z: what is kept of them, as it is stored, and h.
template <class T, int count>
struct Evaluated {
    T state[count], value[count];
};
template <class T, int count>
struct EvaluatedDerivatives {
    T value[count], slope[count], bend[count];
};
template <class T, int count>
struct Several {
    T of[count];
};

template <class S, int count>
__device__ __noinline__ Evaluated<Wide<S>, count> evaluate(Kind kind, Settings settings, Several<Wide<S>, count> z) {
    using T = Wide<S>;
    Evaluated<T, count> result;
    with_kind<ScalarMath<T>>(kind, settings, [&](auto activation) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const T state = T(narrow<S>(activation.from_output ? activation.value(z.of[i]) : z.of[i]));
            result.state[i] = state;
            result.value[i] = activation.from_output ? state : activation.value(state);
        }
    });
    return result;
}

template <class T, int count>
__device__ __noinline__ EvaluatedDerivatives<T, count> derivatives_of(Kind kind, Settings settings,
                                                                      Several<T, count> state) {
    EvaluatedDerivatives<T, count> result;
    with_kind<ScalarMath<T>>(kind, settings, [&](auto activation) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const Derivatives<T> at = activation.derivatives(state.of[i]);
            result.value[i] = at.value;
            result.slope[i] = at.slope;
            result.bend[i] = at.bend;
        }
    });
    return result;
}

}  // namespace gradreg_fast::cuda
