// Averages over windows of an activation on a GPU, as callers see them: plain pointers. See
// common/average_pool_operations.h.

#pragma once

#include "common/average_pool.h"
#include "cuda/types.h"

namespace gradreg_fast::cuda {

void average_values(Type type, const AveragePool& pool, const void* z, void* y, uint8_t* mask, void* stream);

void push_averages(Type type, const AveragePool& pool, const void* z, const uint8_t* mask, const void* xdot,
                   int64_t stack, void* ydot, void* stream);

void pull_averages(Type type, const AveragePool& pool, const void* z, const uint8_t* mask, const void* u, int64_t stack,
                   const void* second, void* below, void* stream);

void meet_averages(Type type, const AveragePool& pool, const void* u, const void* xdot, int64_t stack, void* second,
                   void* stream);

}  // namespace gradreg_fast::cuda
