// The passes of normalisations for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#include "cpu/layer_norm_passes.h"
#include "cpu/norm_passes.h"

namespace gradreg_fast {

template <>
const NormKernels<float>& norm_kernels<float, Capability::AVX2>() {
    return NormPasses<float, 32>::kernels();
}

template <>
const NormKernels<double>& norm_kernels<double, Capability::AVX2>() {
    return NormPasses<double, 32>::kernels();
}

template <>
const RowNormKernels<float>& row_norm_kernels<float, Capability::AVX2>() {
    return RowNormPasses<float, 32>::kernels();
}

template <>
const RowNormKernels<double>& row_norm_kernels<double, Capability::AVX2>() {
    return RowNormPasses<double, 32>::kernels();
}

}  // namespace gradreg_fast
