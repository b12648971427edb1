// Poolings for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#include "cpu/average_pool_passes.h"
#include "cpu/max_pool_passes.h"

namespace gradreg_fast {

template <>
const MaxPoolKernels<float>& max_pool_kernels<float, Capability::AVX512>() {
    return MaxPoolPasses<float, 64>::kernels();
}

template <>
const MaxPoolKernels<double>& max_pool_kernels<double, Capability::AVX512>() {
    return MaxPoolPasses<double, 64>::kernels();
}

template <>
const AveragePoolKernels<float>& average_pool_kernels<float, Capability::AVX512>() {
    return AveragePoolPasses<float, 64>::kernels();
}

template <>
const AveragePoolKernels<double>& average_pool_kernels<double, Capability::AVX512>() {
    return AveragePoolPasses<double, 64>::kernels();
}

}  // namespace gradreg_fast
