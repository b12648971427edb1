// Products with active rows and columns, for avx2.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#if !defined(__clang__)  // which knows no such pragma
#include "cpu/compress_avx2.h"
#endif
#endif

#include "cpu/active_products.h"

namespace gradreg_fast {

template <>
const ActiveKernels<float>& active_kernels<float, Capability::AVX2>() {
    return ActiveProducts<float, 32>::kernels();
}

template <>
const ActiveKernels<double>& active_kernels<double, Capability::AVX2>() {
    return ActiveProducts<double, 32>::kernels();
}

}  // namespace gradreg_fast
