// Convolutions of images that lie channels last, as products (conv.cuh), with the sweeps' epilogues: plain pointers.

#pragma once

#include "cuda/layerwise.h"

namespace gradreg_fast::cuda {

// Pairs are of the height and the width. Images are [N, H, W, C], weights [outputs, kernel, kernel, inputs].
struct Convolution {
    int64_t samples;
    int inputs, outputs;
    int size[2], summed[2], kernel[2], stride[2], padding[2], dilation[2];  // size of x, summed of z

    int taps() const { return kernel[0] * kernel[1]; }
    int64_t pixels() const { return samples * summed[0] * summed[1]; }
};

// Images as operands: lines are pixels of a grid, `inner` is taps and channels. Pixel (i, j) and tap (k, l) meet at row
// origin + step i + reach k, and likewise column, of the image; outside there are zeros.
struct Gather {
    int64_t lines;
    int grid[2], step[2], origin[2], taps[2], reach[2];
    int size[2], channels;
};

inline Gather gather_forward(const Convolution& c, int64_t stack) {
    Gather g{};
    g.lines = stack * c.pixels(), g.channels = c.inputs;
    for (int i = 0; i < 2; ++i) {
        g.grid[i] = c.summed[i], g.step[i] = c.stride[i], g.origin[i] = -c.padding[i];
        g.taps[i] = c.kernel[i], g.reach[i] = c.dilation[i];
        g.size[i] = c.size[i];
    }
    return g;
}

// Pixels of x with the same remainder of a division by the strides get from the same taps of the kernel, first_tap +
// tap_step k: `from` are z's pixels.
struct Phase {
    Gather from;
    int remainder[2], first_tap[2], tap_step[2];
};

// Where strides and dilations both exceed 1, taps are not so regular.
inline bool is_regular(const Convolution& c) {
    return (c.stride[0] == 1 || c.dilation[0] == 1) && (c.stride[1] == 1 || c.dilation[1] == 1);
}

inline Phase phase_of(const Convolution& c, int64_t stack, int y, int x) {
    Phase phase{};
    Gather& g = phase.from;
    g.channels = c.outputs;
    for (int i = 0; i < 2; ++i) {
        const int remainder = i ? x : y, stride = c.stride[i], first = (remainder + c.padding[i]) % stride;
        phase.remainder[i] = remainder, phase.first_tap[i] = first, phase.tap_step[i] = stride;
        g.grid[i] = int(ceiling(std::max(c.size[i] - remainder, 0), stride)), g.step[i] = 1;
        g.origin[i] = (remainder + c.padding[i] - first) / stride;
        g.taps[i] = int(ceiling(std::max(c.kernel[i] - first, 0), stride)), g.reach[i] = -c.dilation[i];
        g.size[i] = c.summed[i];
    }
    g.lines = stack * c.samples * g.grid[0] * g.grid[1];
    return phase;
}

// Behind a convolution's transpose: where pixels of a phase lie in x, and what the activation that made x does there.
template <class S>
struct Placed {
    int64_t lines;
    int columns;
    int grid[2], step[2], origin[2], size[2];
    Down<S> below;
};

// A weight's gradient in slices: sums over parts of the pixels, [slices, outputs, taps, inputs], then of these, with
// taps behind inputs.
template <class S>
struct WeightSums {
    int outputs, columns;  // taps times inputs
    int slices;
    Wide<S>* sums;
};
template <class S>
struct SliceSums {
    int64_t count;
    int slices, taps, inputs;
    const Wide<S>* sums;
    S* result;
};

// Sizes of a weight's gradient: of its tiles, and how many slices.
struct GradientPlan {
    int size, slices;
};

template <class S>
GradientPlan plan_gradient(const Convolution& c, int64_t stack, const Device& device) {
    const int64_t lines = stack * c.pixels(), columns = int64_t(c.taps()) * c.inputs;
    for (int size = large_tile<S>;; size = small_tile) {
        const int64_t tiles = ceiling(c.outputs, size) * ceiling(columns, size);
        const int64_t slices =
            std::max<int64_t>(std::min(ceiling(lines, least_slice), ceiling(device.multiprocessors, tiles)), 1);
        if (size == small_tile || tiles * slices >= device.multiprocessors) return {size, int(slices)};
    }
}

// y = phi(W * x + b), [N, h, w, outputs]; z itself to `state` if that is not null.
template <class S>
struct ImageForward {
    const S *x, *weight, *bias;
    Kind kind;
    Settings settings;
    S *y, *state;
};

// ydot = phi' (W * xdot) of a stack, and second = sum_k phi'' u (W * xdot^k). u: of y where `bends_where_flat`, else of
// z, which has phi' in it.
template <class S>
struct ImagePush {
    int64_t stack;
    const S *xdot, *weight, *state, *u;
    Kind kind;
    Settings settings;
    S* ydot;          // null: not wanted
    Wide<S>* second;  // [N, h, w, outputs]; null: not wanted
    Wide<S>* terms;   // [K, N, h, w, outputs], for more than one cotangent
};

template <class Arithmetic, class S>
void launch_image_forward(const Convolution& c, const ImageForward<S>& p, const Device& device, void* stream);
template <class Arithmetic, class S>
void launch_image_push(const Convolution& c, const ImagePush<S>& p, const Device& device, void* stream);
// The transposed convolution of a stack u, of z, with what is `below` as its epilogue, whose lines are x's pixels.
template <class Arithmetic, class S>
void launch_image_pull(const Convolution& c, int64_t stack, const S* u, const S* weight, const Down<S>& below,
                       const Device& device, void* stream);
// The weight's gradient, sum_k u^k (x) x^k, [outputs, inputs, kernel, kernel]; sums [slices, outputs, columns].
template <class Arithmetic, class S>
void launch_image_gradient(const Convolution& c, int64_t stack, const S* u, const S* x, const GradientPlan& plan,
                           Wide<S>* sums, S* gradient, const Device& device, void* stream);
// That epilogue alone.
template <class S>
void launch_between(const Down<S>& down, void* stream);

}  // namespace gradreg_fast::cuda
