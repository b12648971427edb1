// Where a convolution block pools.

#pragma once

namespace gradreg_fast {

// Average and Max pool phi(z); MaxFirst pools z.
enum class Pooling : int { None, Max, MaxFirst, Average, Count };

}  // namespace gradreg_fast
