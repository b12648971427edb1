// The MLP sweeps for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/mlp_sweeps.h"

namespace gradreg_fast {

template <>
const MlpKernels<float>& mlp_kernels<float, Capability::AVX512>() {
    return Sweeps<float, 64>::kernels();
}

template <>
const MlpKernels<double>& mlp_kernels<double, Capability::AVX512>() {
    return Sweeps<double, 64>::kernels();
}

}  // namespace gradreg_fast
