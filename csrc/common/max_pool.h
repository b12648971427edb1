// Maxima over windows of images and a piecewise linear activation of them, y = phi(max z), as kernels see them.

#pragma once

#include <cstdint>

#include "common/math.h"

namespace gradreg_fast {

// Images are [planes, height, width, channels]: a plane is a sample, or one of its channels where these come first.
//
// What a forward pass leaves is a byte for each number of y: the winner's place in its window, and a bit if y <= 0.
struct MaxPool {
    int64_t planes, channels;
    int64_t size[2], pooled[2], window[2], step[2], margin[2];  // of heights and widths; size is that of z
    bool rectifies;                                             // y = max(z, 0), else y = z or negative_slope z
    double negative_slope;

    static constexpr int bent = 128;
    static constexpr int64_t most_places = bent;

    GRADREG_FAST_INLINE int64_t image() const { return size[0] * size[1] * channels; }
    GRADREG_FAST_INLINE int64_t pooled_image() const { return pooled[0] * pooled[1] * channels; }
    // Each pixel of z is in one window.
    GRADREG_FAST_INLINE bool windows_are_tiles() const {
        return step[0] == window[0] && step[1] == window[1] && margin[0] == 0 && margin[1] == 0 &&
               pooled[0] * step[0] == size[0] && pooled[1] * step[1] == size[1];
    }
};

}  // namespace gradreg_fast
