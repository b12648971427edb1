// The passes of normalisations for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/layer_norm_passes.h"
#include "cpu/norm_passes.h"

namespace gradreg_fast {

template <>
const NormKernels<float>& norm_kernels<float, Capability::Baseline>() {
    return NormPasses<float, 16>::kernels();
}

template <>
const NormKernels<double>& norm_kernels<double, Capability::Baseline>() {
    return NormPasses<double, 16>::kernels();
}

template <>
const RowNormKernels<float>& row_norm_kernels<float, Capability::Baseline>() {
    return RowNormPasses<float, 16>::kernels();
}

template <>
const RowNormKernels<double>& row_norm_kernels<double, Capability::Baseline>() {
    return RowNormPasses<double, 16>::kernels();
}

}  // namespace gradreg_fast
