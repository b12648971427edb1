// The sweeps of normalisations whose channels share statistics over samples and pixels, as callers see them: plain
// pointers. Batch normalisation with batch statistics, group and instance normalisation.

#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace gradreg_fast::cuda {

// A normalisation at x. Over a set of N = batch (channels / groups) pixels elements: xhat = (x - mean) inverse, y =
// weight xhat + ..., J = diag(weight) inverse P with P v = v - m(v) - xhat m(xhat v), m the mean.
struct Norm {
    Type type;
    int64_t samples;  // apart from each other, each of so many that share statistics:
    int64_t batch;    // (1 and B for batch normalisation, else B and 1)
    int64_t channels, pixels;
    int64_t groups;      // of channels that share statistics: as many as channels for all but group norm
    bool channels_last;  // x is [samples, batch, pixels, channels], else [samples, batch, channels, pixels]
    const void* x;
    const void* mean;     // [samples, groups], of the type that x's numbers are summed in; so are all sums
    const void* inverse;  // [samples, groups], likewise
    const void* weight;   // [channels], likewise; null: ones
};

// Sums of a channel are taken in so many parts, each by one block.
int64_t norm_parts(const Norm& norm);

// Numbers of workspace for a stack of K.
int64_t norm_workspace(const Norm& norm, int64_t stack);

// result^k = J v^k if `push`, else J^T v^k plus `second` unless it is null; gradients [2, channels] unless null, with K
// = 1: sums of v xhat and of v, the gradients by the weight and the bias.
void project(const Norm& norm, const void* v, int64_t stack, bool push, const void* second, void* result,
             void* gradients, void* workspace, void* stream);

// Where tangents v meet cotangents u: second = d/dx sum_k <u^k, J v^k>; gradient [channels], the same by the weight;
// ydot^k = J v^k unless it is null.
void meet(const Norm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream);

}  // namespace gradreg_fast::cuda
