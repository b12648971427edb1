// Products with active rows and columns, for baseline.

// No instructions beyond what every processor of this family has.

#include "common/math.h"
#include "cpu/active_products.h"

namespace gradreg_fast {

template <>
const ActiveKernels<float>& active_kernels<float, Capability::Baseline>() {
    return ActiveProducts<float, 16>::kernels();
}

template <>
const ActiveKernels<double>& active_kernels<double, Capability::Baseline>() {
    return ActiveProducts<double, 16>::kernels();
}

}  // namespace gradreg_fast
