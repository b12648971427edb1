// Products with the active rows and columns of matrices, sample by sample, as kernels see them: plain pointers, no
// tensors.
//
// In a ReLU network a sample's Jacobian meets only the active units: of a hidden matrix only the rows of the active
// units above and the columns of those below. These are gathered for each sample and multiplied densely.

#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace gradreg_fast {

// K rows a sample, of which only the active columns are there: sample b's [K, stride] begin at b K padded(width), where
// its stride is padded(its active units) and padded() rounds up to whole registers. Behind the active columns: zeros.
template <class T>
struct Stack {
    T* rows;          // null: the identity, K = width
    const T* values;  // [B, width], the active units' are positive; null: all units are active
    int64_t width;
};

// above = below in a layer: `weight` [above.width, below.width] maps the stack `above` to the stack `below`.
template <class T>
struct ActiveLayer {
    int64_t batch, K;
    Stack<T> above, below;
};

// One instruction set's kernels. `scratch` holds `scratch_size` bytes, aligned to 64.
template <class T>
struct ActiveKernels {
    int64_t lanes;
    int64_t (*scratch_size)(const ActiveLayer<T>&);
    // below = above W, of samples [begin, end).
    void (*product)(const ActiveLayer<T>&, const T* weight, int64_t begin, int64_t end, char* scratch);
    // Rows [begin, end) of sum_b factor_b above_b^T below_b, [above.width, below.width]. `symmetric`: both stacks are
    // the same one, and only what lies on and below the diagonal is right.
    void (*outer)(const ActiveLayer<T>&, const T* factor, bool symmetric, int64_t begin, int64_t end, T* gradient,
                  char* scratch);
    // <left, right> of samples [begin, end), for stacks with the same active units.
    void (*dot)(const Stack<T>& left, const Stack<T>& right, int64_t K, int64_t begin, int64_t end, T* result,
                char* scratch);
};

template <class T, Capability>
const ActiveKernels<T>& active_kernels();

}  // namespace gradreg_fast
