// Maxima over windows on a GPU, as callers see them: plain pointers. See common/max_pool_operations.h.

#pragma once

#include "common/max_pool.h"
#include "cuda/types.h"

namespace gradreg_fast::cuda {

void pool_values(Type type, const MaxPool& pool, const void* z, void* y, uint8_t* code, void* stream);

void push_maxima(Type type, const MaxPool& pool, const uint8_t* code, const void* xdot, int64_t stack, void* ydot,
                 void* stream);

void pull_maxima(Type type, const MaxPool& pool, const uint8_t* code, const void* u, int64_t stack, void* below,
                 void* stream);

}  // namespace gradreg_fast::cuda
