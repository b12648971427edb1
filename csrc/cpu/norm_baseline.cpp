// The passes of normalisations for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/layer_norm_passes.h"
#include "cpu/norm_passes.h"

namespace gradreg_fast {

template <>
const NormKernels<float>& norm_kernels_baseline<float>() {
    return NormPasses<float, 16>::kernels();
}

template <>
const NormKernels<double>& norm_kernels_baseline<double>() {
    return NormPasses<double, 16>::kernels();
}

template <>
const RowNormKernels<float>& row_norm_kernels_baseline<float>() {
    return RowNormPasses<float, 16>::kernels();
}

template <>
const RowNormKernels<double>& row_norm_kernels_baseline<double>() {
    return RowNormPasses<double, 16>::kernels();
}

}  // namespace gradreg_fast
