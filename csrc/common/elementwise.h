// The passes of an activation, as callers see them: plain pointers.

#pragma once

#include <cstdint>

#include "common/activation.h"

namespace gradreg_fast {

// An activation of `count` numbers, and what its forward pass left: a bit for each number where a bit says the slope
// (piecewise linear kinds), else what `derivatives` takes.
struct Elementwise {
    Kind kind;
    Settings settings;
    int64_t count;
    const void* kept;     // [count]; null with a mask
    const uint8_t* mask;  // [mask_bytes]; null with kept
};

// A byte of the mask belongs to the numbers in 16 bytes.
constexpr int64_t mask_bytes(int64_t count, int64_t element_size) {
    return (count * element_size + 15) / 16;
}

}  // namespace gradreg_fast
