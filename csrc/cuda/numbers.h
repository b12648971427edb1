// How numbers are stored on a GPU, for host and device.

#pragma once

#include "common/math.h"

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace gradreg_fast::cuda {

// Sixteen bits; computed with in float32.
struct BFloat16 {
    uint16_t bits;
    GRADREG_FAST_INLINE operator float() const;  // as device.cuh says
};
struct Float16 {
    uint16_t bits;
    GRADREG_FAST_INLINE operator float() const;
};

// What numbers stored as S are computed and summed in.
template <class S>
struct WideOf {
    using T = float;
};
template <>
struct WideOf<double> {
    using T = double;
};
template <class S>
using Wide = typename WideOf<S>::T;

}  // namespace gradreg_fast::cuda
