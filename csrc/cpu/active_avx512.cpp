// Products with active rows and columns, for avx512.

#include "common/math.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#if !defined(__clang__)  // which knows no such pragma
#include "cpu/compress_avx512.h"
#endif
#endif

#include "cpu/active_products.h"

namespace gradreg_fast {

template <>
const ActiveKernels<float>& active_kernels<float, Capability::AVX512>() {
    return ActiveProducts<float, 64>::kernels();
}

template <>
const ActiveKernels<double>& active_kernels<double, Capability::AVX512>() {
    return ActiveProducts<double, 64>::kernels();
}

}  // namespace gradreg_fast
