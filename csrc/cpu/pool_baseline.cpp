// Poolings for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/average_pool_passes.h"
#include "cpu/max_pool_passes.h"

namespace gradreg_fast {

template <>
const MaxPoolKernels<float>& max_pool_kernels<float, Capability::Baseline>() {
    return MaxPoolPasses<float, 16>::kernels();
}

template <>
const MaxPoolKernels<double>& max_pool_kernels<double, Capability::Baseline>() {
    return MaxPoolPasses<double, 16>::kernels();
}

template <>
const AveragePoolKernels<float>& average_pool_kernels<float, Capability::Baseline>() {
    return AveragePoolPasses<float, 16>::kernels();
}

template <>
const AveragePoolKernels<double>& average_pool_kernels<double, Capability::Baseline>() {
    return AveragePoolPasses<double, 16>::kernels();
}

}  // namespace gradreg_fast
