// Windows that slide over images, as kernels of poolings see them.

#pragma once

#include <cstdint>

#include "common/math.h"

namespace gradreg_fast {

// Images are [planes, height, width, channels]: a plane is a sample, or one of its channels where these come first.
// Windows begin within the image or the margin before it, and may end behind it.
struct Windows {
    int64_t planes, channels;
    int64_t size[2], pooled[2], window[2], step[2], margin[2];  // of heights and widths; size is that of z

    GRADREG_FAST_INLINE int64_t image() const { return size[0] * size[1] * channels; }
    GRADREG_FAST_INLINE int64_t pooled_image() const { return pooled[0] * pooled[1] * channels; }
    GRADREG_FAST_INLINE int64_t places() const { return window[0] * window[1]; }
    // Each pixel of z is in one window.
    GRADREG_FAST_INLINE bool are_tiles() const {
        return step[0] == window[0] && step[1] == window[1] && margin[0] == 0 && margin[1] == 0 &&
               pooled[0] * step[0] == size[0] && pooled[1] * step[1] == size[1];
    }
};

}  // namespace gradreg_fast
