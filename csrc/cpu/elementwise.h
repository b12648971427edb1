// The passes of an activation on the CPU, as its operations see them.

#pragma once

#include "common/elementwise.h"
#include "cpu/capability.h"

namespace gradreg_fast {

// One instruction set's kernels, for numbers [begin, end), where `begin` is a multiple of 64; see
// common/elementwise_operations.h for what they compute.
template <class T>
struct ElementwiseKernels {
    void (*value)(const Elementwise&, const T* z, T* y, uint8_t* mask, int64_t begin, int64_t end);
    void (*slope)(const Elementwise&, const T* v, int64_t stack, T* result, int64_t begin, int64_t end);
    void (*meet)(const Elementwise&, const T* u, const T* xdot, int64_t stack, T* w, T* ydot, int64_t begin,
                 int64_t end);
    void (*bend)(const Elementwise&, const T* d, const T* w, bool below, T* result, int64_t begin, int64_t end);
};

template <class T, Capability>
const ElementwiseKernels<T>& elementwise_kernels();

}  // namespace gradreg_fast
