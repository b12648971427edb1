// The sweeps of a convolution block for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/conv_sweeps.h"

namespace gradreg_fast {

template <>
const ConvKernels<float>& conv_kernels<float, Capability::AVX512>() {
    return ConvSweeps<float, 64>::kernels();
}

template <>
const ConvKernels<double>& conv_kernels<double, Capability::AVX512>() {
    return ConvSweeps<double, 64>::kernels();
}

}  // namespace gradreg_fast
