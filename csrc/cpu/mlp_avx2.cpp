// The MLP sweeps for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#include "cpu/mlp_sweeps.h"

namespace gradreg_fast {

template <>
const MlpKernels<float>& mlp_kernels<float, Capability::AVX2>() {
    return Sweeps<float, 32>::kernels();
}

template <>
const MlpKernels<double>& mlp_kernels<double, Capability::AVX2>() {
    return Sweeps<double, 32>::kernels();
}

}  // namespace gradreg_fast
