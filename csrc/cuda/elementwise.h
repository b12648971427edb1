// The passes of an activation around products that a library computes, as callers see them: plain pointers.

#pragma once

#include <cstdint>

#include "common/activation.h"
#include "cuda/types.h"

namespace gradreg_fast::cuda {

// An activation of `count` numbers, and what its forward pass left: a bit for each number where a bit says the slope
// (piecewise linear kinds), else what `derivatives` takes.
struct Elementwise {
    Type type;
    Kind kind;
    Settings settings;
    int64_t count;
    const void* kept;     // [count]; null with a mask
    const uint8_t* mask;  // [mask_bytes]; null with kept
};

// A byte of the mask belongs to the numbers that one access to memory moves.
constexpr int64_t mask_bytes(int64_t count, int64_t element_size) {
    return (count * element_size + 15) / 16;
}

// y = phi(z), and the mask if it is not null.
void apply_value(const Elementwise& pass, const void* z, void* y, uint8_t* mask, void* stream);

// result^k = phi' v^k for each of a stack [stack, count].
void apply_slope(const Elementwise& pass, const void* v, int64_t stack, void* result, void* stream);

// Where tangents meet cotangents: w = sum_k u^k xdot^k, and ydot^k = phi' xdot^k unless ydot is null.
void meet(const Elementwise& pass, const void* u, const void* xdot, int64_t stack, void* w, void* ydot, void* stream);

// result = phi' d + phi'' w, or phi' d + (phi'' / phi') w if `below`; without d: the second term alone.
void apply_bend(const Elementwise& pass, const void* d, const void* w, bool below, void* result, void* stream);

}  // namespace gradreg_fast::cuda
