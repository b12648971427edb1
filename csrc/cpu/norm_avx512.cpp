// The passes of normalisations for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/layer_norm_passes.h"
#include "cpu/norm_passes.h"

namespace gradreg_fast {

template <>
const NormKernels<float>& norm_kernels<float, Capability::AVX512>() {
    return NormPasses<float, 64>::kernels();
}

template <>
const NormKernels<double>& norm_kernels<double, Capability::AVX512>() {
    return NormPasses<double, 64>::kernels();
}

template <>
const RowNormKernels<float>& row_norm_kernels<float, Capability::AVX512>() {
    return RowNormPasses<float, 64>::kernels();
}

template <>
const RowNormKernels<double>& row_norm_kernels<double, Capability::AVX512>() {
    return RowNormPasses<double, 64>::kernels();
}

}  // namespace gradreg_fast
