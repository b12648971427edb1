// Averages over windows of an activation on the CPU, as their operations see them.

#pragma once

#include "common/average_pool.h"
#include "cpu/capability.h"

namespace gradreg_fast {

// One instruction set's kernels, for the planes [begin, end); see common/average_pool_operations.h.
template <class T>
struct AveragePoolKernels {
    void (*forward)(const AveragePool&, const T* z, T* y, uint8_t* mask, int64_t begin, int64_t end);
    void (*push)(const AveragePool&, const T* z, const uint8_t* mask, const T* xdot, int64_t stack, T* ydot,
                 int64_t begin, int64_t end);
    void (*pull)(const AveragePool&, const T* z, const uint8_t* mask, const T* u, int64_t stack, const T* second,
                 T* below, int64_t begin, int64_t end);
    void (*meet)(const AveragePool&, const T* u, const T* xdot, int64_t stack, T* second, int64_t begin, int64_t end);
};

template <class T, Capability>
const AveragePoolKernels<T>& average_pool_kernels();

}  // namespace gradreg_fast
