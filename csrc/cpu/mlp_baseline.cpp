// The MLP sweeps for baseline.

// No instructions beyond what every processor of this family has.

#include "common/math.h"
#include "cpu/mlp_sweeps.h"

namespace gradreg_fast {

template <>
const MlpKernels<float>& mlp_kernels<float, Capability::Baseline>() {
    return Sweeps<float, 16>::kernels();
}

template <>
const MlpKernels<double>& mlp_kernels<double, Capability::Baseline>() {
    return Sweeps<double, 16>::kernels();
}

}  // namespace gradreg_fast
