// The passes of normalisations for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/layer_norm_passes.h"
#include "cpu/norm_passes.h"

namespace gradreg_fast {

template <>
const NormKernels<float>& norm_kernels_avx512<float>() {
    return NormPasses<float, 64>::kernels();
}

template <>
const NormKernels<double>& norm_kernels_avx512<double>() {
    return NormPasses<double, 64>::kernels();
}

template <>
const RowNormKernels<float>& row_norm_kernels_avx512<float>() {
    return RowNormPasses<float, 64>::kernels();
}

template <>
const RowNormKernels<double>& row_norm_kernels_avx512<double>() {
    return RowNormPasses<double, 64>::kernels();
}

}  // namespace gradreg_fast
