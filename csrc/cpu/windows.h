// Walks over windows of images on the CPU.

#pragma once

#include <algorithm>

#include "common/windows.h"

namespace gradreg_fast {

// Of a window, as far as it lies in the image: function(place, the pixel's first number in the plane).
template <class Function>
GRADREG_FAST_INLINE void each_place(const Windows& windows, int64_t row, int64_t column, Function&& function) {
    const int64_t top = row * windows.step[0] - windows.margin[0];
    const int64_t left = column * windows.step[1] - windows.margin[1];
    const int64_t first = left < 0 ? -left : 0;
    const int64_t last = std::min(windows.size[1] - left, windows.window[1]);
    for (int64_t i = top < 0 ? -top : 0; i < windows.window[0] && top + i < windows.size[0]; ++i)
        for (int64_t j = first; j < last; ++j)
            function(i * windows.window[1] + j, ((top + i) * windows.size[1] + left + j) * windows.channels);
}

// Of a plane's windows: function(row, column, the window's first number in y).
template <class Function>
GRADREG_FAST_INLINE void each_window(const Windows& windows, int64_t plane, Function&& function) {
    int64_t first = plane * windows.pooled_image();
    for (int64_t row = 0; row < windows.pooled[0]; ++row)
        for (int64_t column = 0; column < windows.pooled[1]; ++column, first += windows.channels)
            function(row, column, first);
}

}  // namespace gradreg_fast
