// Maxima over windows of images and a piecewise linear activation of them, y = phi(max z), as kernels see them.

#pragma once

#include "common/windows.h"

namespace gradreg_fast {

// What a forward pass leaves is a byte for each number of y: the winner's place in its window, and a bit if y <= 0.
struct MaxPool : Windows {
    bool rectifies;  // y = max(z, 0), else y = z or negative_slope z
    double negative_slope;

    static constexpr int bent = 128;
    static constexpr int64_t most_places = bent;
};

}  // namespace gradreg_fast
