// The sweeps of a fully connected network over rows of a batch, as kernels see them: plain pointers, no tensors.
//
// Layer l maps h_{l-1} to h_l = phi_l(z_l), z_l = h_{l-1} W_l^T + b_l. What callers give and get is row-major; what the
// sweeps keep is a `stride` wide: the width rounded up to whole registers, so that no loop has a ragged end. It is in
// panels (product.h), or, where a library multiplies wide layers' matrices, in plain rows. What lies between width and
// stride is finite and never read into a result. Stacks of K cotangents are interleaved: line b K + k belongs to sample
// b. Rows are swept a tile at a time, and each tile's state and cotangents are matrices of their own, one behind the
// other: both operations must cut a batch into the same tiles.

#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/loss.h"
#include "cpu/capability.h"

namespace gradreg_fast {

constexpr int64_t max_depth = 64;

// Whether a product may read a weight as it is: rows of whole registers that are not a multiple of a kilobyte apart,
// since such would evict one another from the first-level cache, or that are no wider than a panel.
constexpr bool serves_plain(int64_t inputs, int64_t lanes, int64_t element_size) {
    return inputs % lanes == 0 && (inputs * element_size <= 256 || inputs * element_size % 1024 != 0);
}

// Whether a library's products serve a network of this width better than those of product.h, for which its weights
// would have to be packed: measured on one thread with AVX-512 registers.
constexpr bool prefers_library(int64_t widest, int64_t element_size) {
    return widest > (element_size == 4 ? 512 : 256);
}

// A library's product: C [m, n] (+)= op(A) op(B), op the transpose where asked for, in plain rows a `stride` apart.
template <class T>
struct Operand {
    const T* base;
    int64_t stride;
    bool transposed;
};
template <class T>
using LibraryProduct = void (*)(int64_t m, int64_t n, int64_t depth, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                                bool accumulate);

template <class T>
struct Layer {
    int64_t inputs, outputs;              // widths of h_{l-1} and h_l
    int64_t input_stride, output_stride;  // and their strides
    Kind kind;
    Settings settings;
    const T* weight;      // W [outputs, input_stride] in panels, or in plain rows; zero behind the width
    bool plain;           // which of the two
    const T* transposed;  // W^T in panels [inputs, output_stride], likewise; null: not needed
    const T* bias;        // [output_stride], likewise; zero without a bias
    T* state;             // what `derivatives` takes, [B, output_stride]; null: not kept
    T* cotangent;         // u, the cotangent of h_l, [B K, output_stride]; null: not kept
    LibraryProduct<T> multiply = nullptr;  // null: the products of product.h, and all in panels; else all in plain rows
};

template <class T>
struct ForwardPull {
    const Layer<T>* layers;
    int64_t depth;
    int64_t rows;
    int64_t stack;       // K
    bool unit_seed;      // pull ones and multiply g by the cotangent at the end (K = 1, one output)
    const T* x;          // [B, inputs]
    const T* cotangent;  // [K, B, outputs]; null: ones, or what the loss makes
    Target<T> target;
    const T* offset;  // [K, B, inputs], subtracted from g; null: nothing
    T* y;             // [B, outputs]
    T* g;             // [K, B, inputs]
    T* norms;         // [B]: sum_k ||g^k||^2
};

// A layer's own gradients: one thread's partial sums.
template <class T>
struct LayerGradient {
    T* weight;        // [outputs, input_stride], or [inputs, output_stride] if `transposed`; null: not wanted
    T* bias;          // [output_stride]; null: not wanted
    bool transposed;  // whichever wastes fewer lanes
    bool plain;       // in plain rows, not in panels
};

template <class T>
struct PushAdjoint {
    const Layer<T>* layers;
    int64_t depth;
    int64_t rows;
    int64_t stack;        // K; 0 if nothing depends on g
    bool proportional;    // d = ybar u: one output, piecewise linear, unit seed
    bool curvature_free;  // every phi'' = 0, and no loss
    int64_t lowest;       // the adjoint sweep stops at this layer
    const T* x;           // [B, inputs]
    const T* cotangent;   // [B], read if proportional; null: ones
    Target<T> target;
    const T* ybar;     // [B, outputs]; null: zero
    const T* gbar;     // [K, B, inputs]
    const T* weights;  // [B], of the norms: then gbar is g, and its adjoint 2 weight g; null: gbar as is
    T* xbar;           // [B, inputs]; null: not wanted
    T* cotangent_bar;  // [K, B, outputs]; null: not wanted
    const LayerGradient<T>* gradients;  // [depth]
    bool accumulate;                    // whether the gradients already hold sums
};

// One instruction set's kernels. `scratch` holds `..._scratch` numbers; rows [begin, end) at most `tile` at a time.
template <class T>
struct MlpKernels {
    int64_t lanes;
    int64_t (*forward_scratch)(const ForwardPull<T>&, int64_t tile);
    int64_t (*backward_scratch)(const PushAdjoint<T>&, int64_t tile);
    void (*forward)(const ForwardPull<T>&, int64_t begin, int64_t end, int64_t tile, T* scratch);
    void (*backward)(const PushAdjoint<T>&, int64_t begin, int64_t end, int64_t tile, T* scratch);
    // Row-major [rows, columns] to panels [rows, stride] with zeros behind the columns, or, transposed, from its
    // transpose [columns, rows].
    void (*pack)(const T* from, int64_t rows, int64_t columns, bool transposed, T* to);
    // And back.
    void (*unpack)(const T* from, int64_t rows, int64_t columns, bool transposed, T* to);
    void (*activate)(Kind, Settings, const T* z, int64_t count, T* value, T* slope, T* bend);
};

template <class T, Capability>
const MlpKernels<T>& mlp_kernels();

}  // namespace gradreg_fast
