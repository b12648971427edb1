// Poolings for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#include "cpu/average_pool_passes.h"
#include "cpu/max_pool_passes.h"

namespace gradreg_fast {

template <>
const MaxPoolKernels<float>& max_pool_kernels<float, Capability::AVX2>() {
    return MaxPoolPasses<float, 32>::kernels();
}

template <>
const MaxPoolKernels<double>& max_pool_kernels<double, Capability::AVX2>() {
    return MaxPoolPasses<double, 32>::kernels();
}

template <>
const AveragePoolKernels<float>& average_pool_kernels<float, Capability::AVX2>() {
    return AveragePoolPasses<float, 32>::kernels();
}

template <>
const AveragePoolKernels<double>& average_pool_kernels<double, Capability::AVX2>() {
    return AveragePoolPasses<double, 32>::kernels();
}

}  // namespace gradreg_fast
