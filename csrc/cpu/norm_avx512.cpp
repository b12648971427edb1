// The passes of batch normalisation for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

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

}  // namespace gradreg_fast
