// The passes of batch normalisation for baseline.

// No instructions beyond what every processor of this family has.

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

}  // namespace gradreg_fast
