// The sweeps of normalisations over rows, as callers see them: plain pointers. Layer and root mean square
// normalisation.

#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace gradreg_fast::cuda {

// A normalisation at x [rows, columns]. Per row: xhat = (x - mean) inverse, y = weight xhat + ..., J = diag(weight)
// inverse P with P v = v - m(v) - xhat m(xhat v), m the mean over columns; without the term m(v) if mean is null.
struct LayerNorm {
    Type type;
    int64_t rows, columns;
    const void* x;
    const void* mean;     // [rows], of the type that x's numbers are summed in, so are all sums; null: zeros
    const void* inverse;  // [rows], likewise
    const void* weight;   // [columns], likewise; null: ones
};

// Numbers of workspace for `project` with gradients, and for `meet` with a stack of K.
int64_t project_workspace(const LayerNorm& norm);
int64_t meet_workspace(const LayerNorm& norm, int64_t stack);

// result^k = J v^k if `push`, else J^T v^k plus `second` unless it is null; gradients [2, columns] unless null, with K
// = 1: sums of v xhat and of v, the gradients by the weight and the bias.
void project(const LayerNorm& norm, const void* v, int64_t stack, bool push, const void* second, void* result,
             void* gradients, void* workspace, void* stream);

// Where tangents v meet cotangents u: second = d/dx sum_k <u^k, J v^k>; gradient [columns], the same by the weight,
// unless null; ydot^k = J v^k unless null.
void meet(const LayerNorm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream);

}  // namespace gradreg_fast::cuda
