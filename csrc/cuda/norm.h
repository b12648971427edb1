// The sweeps of batch normalisation with batch statistics, as callers see them: plain pointers.

#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace gradreg_fast::cuda {

// A normalisation at x. Per channel, over N = batch pixels elements: xhat = (x - mean) inverse, y = weight xhat + ...,
// J = weight inverse P with P v = v - m(v) - xhat m(xhat v), m the mean.
struct Norm {
    Type type;
    int64_t batch, channels, pixels;
    bool channels_last;  // x is [batch, pixels, channels], else [batch, channels, pixels]; so are all others
    const void* x;
    const void* mean;     // [channels], of the type that x's numbers are summed in; so are all sums
    const void* inverse;  // [channels], likewise
    const void* weight;   // [channels], likewise; null: ones
};

// Sums of a channel are taken in so many parts, each by one block.
int64_t norm_parts(const Norm& norm);

// Numbers of workspace for a stack of K.
int64_t norm_workspace(const Norm& norm, int64_t stack);

// result^k = J v^k, plus `second` (K = 1) unless it is null; sums [K, 2, channels]: of v^k and of v^k xhat.
void project(const Norm& norm, const void* v, int64_t stack, const void* second, void* result, void* sums,
             void* workspace, void* stream);

// Where tangents v meet cotangents u: second = d/dx sum_k <u^k, J v^k>; gradient [channels], the same by the weight;
// ydot^k = J v^k unless it is null.
void meet(const Norm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream);

}  // namespace gradreg_fast::cuda
