// The passes of activations for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#include "cpu/elementwise_passes.h"

namespace gradreg_fast {

template <>
const ElementwiseKernels<float>& elementwise_kernels<float, Capability::AVX2>() {
    return ElementwisePasses<float, 32>::kernels();
}

template <>
const ElementwiseKernels<double>& elementwise_kernels<double, Capability::AVX2>() {
    return ElementwisePasses<double, 32>::kernels();
}

}  // namespace gradreg_fast
