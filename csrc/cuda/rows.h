// Passes over stacks of cotangents, a sample at a time, as callers see them: plain pointers.

#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace gradreg_fast::cuda {

// A stack [stack, batch, columns].
struct Stack {
    Type type;
    int64_t stack, batch, columns;
};

// A sample's sum is taken in so many parts, each by one team of threads: numbers of workspace for each sample.
int64_t dot_parts(const Stack& of);

// dots_b = sum_k <a^k_b, b^k_b>, [batch], of the type that numbers are summed in; `workspace` of batch dot_parts.
void dot_rows(const Stack& of, const void* a, const void* b, void* dots, void* workspace, void* stream);

// result^k_b = factor_b a^k_b, times b^k_b unless that is null; factor [batch], of the type that numbers are summed in.
void scale_rows(const Stack& of, const void* a, const void* b, const void* factor, void* result, void* stream);

}  // namespace gradreg_fast::cuda
