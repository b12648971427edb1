// The passes of normalisations over rows, layer and root mean square, as kernels see them: plain pointers, no tensors.
//
// Per row, xhat = (x - mean) inverse, y = weight xhat + ..., J = diag(weight) inverse P with P v = v - m(v) - xhat
// m(xhat v), m the mean over columns; without the term m(v) if there are no means.

#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace gradreg_fast {

template <class T>
struct RowNorm {
    int64_t rows, columns;
    const T* x;
    const T* mean;     // [rows]; null: zeros
    const T* inverse;  // [rows]
    const T* weight;   // [columns]; null: ones
};

// One instruction set's kernels, for rows [begin, end); stacks are [K, rows, columns].
template <class T>
struct RowNormKernels {
    // result^k = J v^k if `push`, else J^T v^k plus `added` unless it is null. To gradients [2, columns], unless null,
    // the sums of v xhat and of v are added (K = 1).
    void (*project)(const RowNorm<T>&, const T* v, int64_t stack, bool push, const T* added, T* result, T* gradients,
                    int64_t begin, int64_t end);
    // second = d/dx sum_k <u^k, J v^k>; the same by the weight is added to gradient [columns], unless null; ydot^k =
    // J v^k unless null.
    void (*meet)(const RowNorm<T>&, const T* u, const T* v, int64_t stack, T* second, T* gradient, T* ydot,
                 int64_t begin, int64_t end);
};

template <class T, Capability>
const RowNormKernels<T>& row_norm_kernels();

}  // namespace gradreg_fast
