// The passes of activations for baseline.

// No instructions beyond what every processor of this family has.

#include "cpu/elementwise_passes.h"

namespace gradreg_fast {

template <>
const ElementwiseKernels<float>& elementwise_kernels<float, Capability::Baseline>() {
    return ElementwisePasses<float, 16>::kernels();
}

template <>
const ElementwiseKernels<double>& elementwise_kernels<double, Capability::Baseline>() {
    return ElementwisePasses<double, 16>::kernels();
}

}  // namespace gradreg_fast
