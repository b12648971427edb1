// The passes of an activation around products that a library computes, as callers see them: plain pointers.

#pragma once

#include <cstdint>

#include "common/elementwise.h"
#include "cuda/types.h"

namespace gradreg_fast::cuda {

// y = phi(z), and the mask if it is not null.
void apply_value(Type type, const Elementwise& pass, const void* z, void* y, uint8_t* mask, void* stream);

// result^k = phi' v^k for each of a stack [stack, count].
void apply_slope(Type type, const Elementwise& pass, const void* v, int64_t stack, void* result, void* stream);

// Where tangents meet cotangents: w = sum_k u^k xdot^k, and ydot^k = phi' xdot^k unless ydot is null.
void apply_meet(Type type, const Elementwise& pass, const void* u, const void* xdot, int64_t stack, void* w, void* ydot,
                void* stream);

// result = phi' d + phi'' w, or phi' d + (phi'' / phi') w if `below`; without d: the second term alone.
void apply_bend(Type type, const Elementwise& pass, const void* d, const void* w, bool below, void* result,
                void* stream);

}  // namespace gradreg_fast::cuda
