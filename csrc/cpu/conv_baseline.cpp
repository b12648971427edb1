// The sweeps of a convolution block for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/conv_sweeps.h"

namespace gradreg_fast {

template <>
const ConvKernels<float>& conv_kernels<float, Capability::Baseline>() {
    return ConvSweeps<float, 16>::kernels();
}

template <>
const ConvKernels<double>& conv_kernels<double, Capability::Baseline>() {
    return ConvSweeps<double, 16>::kernels();
}

}  // namespace gradreg_fast
