// The sweeps of a convolution block for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#include "cpu/conv_sweeps.h"

namespace gradreg_fast {

template <>
const ConvKernels<float>& conv_kernels<float, Capability::AVX2>() {
    return ConvSweeps<float, 32>::kernels();
}

template <>
const ConvKernels<double>& conv_kernels<double, Capability::AVX2>() {
    return ConvSweeps<double, 32>::kernels();
}

}  // namespace gradreg_fast
