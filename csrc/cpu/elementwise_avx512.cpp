// The passes of activations for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/elementwise_passes.h"

namespace gradreg_fast {

template <>
const ElementwiseKernels<float>& elementwise_kernels<float, Capability::AVX512>() {
    return ElementwisePasses<float, 64>::kernels();
}

template <>
const ElementwiseKernels<double>& elementwise_kernels<double, Capability::AVX512>() {
    return ElementwisePasses<double, 64>::kernels();
}

}  // namespace gradreg_fast
