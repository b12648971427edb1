// The sweeps of a fully connected network over rows of a batch, as kernels see them: plain pointers, no tensors.
//
// Layer l maps h_{l-1} to h_l = phi_l(z_l), z_l = h_{l-1} W_l^T + b_l. Matrices are row-major; a `stride` is the
// distance of two rows, the width rounded up to whole registers, so that no loop has a ragged end. What lies between
// width and stride is finite and never read into a result. Stacks of K cotangents are interleaved: row b K + k belongs
// to sample b.

#pragma once

#include <cstdint>

#include "common/activation.h"

namespace gradreg_fast {

constexpr int64_t max_depth = 64;

template <class T>
struct Layer {
    int64_t inputs, outputs;              // widths of h_{l-1} and h_l
    int64_t input_stride, output_stride;  // and their strides
    Kind kind;
    Settings settings;
    const T* weight;      // W [outputs, input_stride], zero behind the width
    const T* transposed;  // W^T [inputs, output_stride], likewise
    const T* bias;        // [output_stride], likewise; zero without a bias
    T* state;             // what `derivatives` takes, [B, output_stride]; null: not kept
    T* cotangent;         // u, the cotangent of h_l, [B K, output_stride]; null: not kept
};

template <class T>
struct ForwardPull {
    const Layer<T>* layers;
    int64_t depth;
    int64_t rows;
    int64_t stack;       // K
    bool unit_seed;      // pull ones and multiply g by the cotangent at the end (K = 1, one output)
    const T* x;          // [B, inputs]
    const T* cotangent;  // [K, B, outputs]; null: ones
    T* y;                // [B, outputs]
    T* g;                // [K, B, inputs]
};

// A layer's own gradients: one thread's partial sums.
template <class T>
struct LayerGradient {
    T* weight;        // [outputs, input_stride], or [inputs, output_stride] if `transposed`; null: not wanted
    T* bias;          // [output_stride]; null: not wanted
    bool transposed;  // whichever wastes fewer lanes
};

template <class T>
struct PushAdjoint {
    const Layer<T>* layers;
    int64_t depth;
    int64_t rows;
    int64_t stack;                      // K; 0 if nothing depends on g
    bool proportional;                  // d = ybar u: one output, piecewise linear, unit seed
    bool curvature_free;                // every phi'' = 0
    int64_t lowest;                     // the adjoint sweep stops at this layer
    const T* x;                         // [B, inputs]
    const T* cotangent;                 // [B], read if proportional; null: ones
    const T* ybar;                      // [B, outputs]; null: zero
    const T* gbar;                      // [K, B, inputs]
    T* xbar;                            // [B, inputs]; null: not wanted
    T* cotangent_bar;                   // [K, B, outputs]; null: not wanted
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
    void (*transpose)(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to, int64_t to_stride);
    void (*activate)(Kind, Settings, const T* z, int64_t count, T* value, T* slope, T* bend);
};

template <class T>
const MlpKernels<T>& mlp_kernels_avx512();
template <class T>
const MlpKernels<T>& mlp_kernels_avx2();
template <class T>
const MlpKernels<T>& mlp_kernels_baseline();

}  // namespace gradreg_fast
