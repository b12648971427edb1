// Poolings for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/average_pool_passes.h"
#include "cpu/max_pool_passes.h"

namespace gradreg_fast {

template <>
const MaxPoolKernels<float>& max_pool_kernels_baseline<float>() {
    return MaxPoolPasses<float, 16>::kernels();
}

template <>
const MaxPoolKernels<double>& max_pool_kernels_baseline<double>() {
    return MaxPoolPasses<double, 16>::kernels();
}

template <>
const AveragePoolKernels<float>& average_pool_kernels_baseline<float>() {
    return AveragePoolPasses<float, 16>::kernels();
}

template <>
const AveragePoolKernels<double>& average_pool_kernels_baseline<double>() {
    return AveragePoolPasses<double, 16>::kernels();
}

}  // namespace gradreg_fast
