// Maxima over windows on the CPU, as their operations see them.

#pragma once

#include "common/max_pool.h"
#include "cpu/capability.h"

namespace gradreg_fast {

// One instruction set's kernels, for the planes [begin, end); see common/max_pool_operations.h.
template <class T>
struct MaxPoolKernels {
    void (*forward)(const MaxPool&, const T* z, T* y, uint8_t* code, int64_t begin, int64_t end);
    void (*push)(const MaxPool&, const uint8_t* code, const T* xdot, int64_t stack, T* ydot, int64_t begin,
                 int64_t end);
    void (*pull)(const MaxPool&, const uint8_t* code, const T* u, int64_t stack, T* below, int64_t begin, int64_t end);
};

template <class T, Capability>
const MaxPoolKernels<T>& max_pool_kernels();

}  // namespace gradreg_fast
