// A thread's handling of numbers too small for full precision.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gradreg_fast {

// While it lives, its thread counts numbers too small for full precision (1e-38 in float32) as zero. Slopes such as
// those of a sharp softplus produce many, and a product with one takes a hundred times as long.
class FlushDenormals {
  public:
#if defined(__SSE2__)
    FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }

  private:
    const unsigned before;
#endif
};

}  // namespace gradreg_fast
