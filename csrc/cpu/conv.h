// A convolution block over tiles of samples, as kernels see it: plain pointers, no tensors.
//
//   z = W * x + b,   y = pool(phi(z)) or phi(pool(z))
//
// Lanes run along the samples: a tile is as many samples as a register has numbers, and a pixel of a tile is one
// register. So no loop over a channel, an image, a kernel or a window has a ragged end, however few or odd they are,
// and strides, paddings and poolings of any kind are nothing but addresses. The lanes behind the last sample hold
// finite numbers that reach no result.

#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/pooling.h"
#include "cpu/capability.h"

namespace gradreg_fast {

// Where the pixels of a tile's image lie, perhaps within a border.
struct Layout {
    int64_t plane, pitch, origin;
    GRADREG_FAST_INLINE int64_t at(int64_t channel, int64_t y, int64_t x) const {
        return channel * plane + y * pitch + x + origin;
    }
};

// The images of a batch, or a stack of batches, without gaps: [.., C, H, W] or, channels last, [.., H, W, C].
template <class T>
struct Images {
    T* data;
    bool channels_last;
};

// Some rows and columns of an image `out` as correlations of another one, `in`. Positions count pixels.
template <class T>
struct Phase {
    int64_t rows, columns;
    int64_t out, out_row, out_column;  // the first pixel, and the steps from one to the next
    int64_t in, in_row, in_column;
    int64_t taps;            // terms of a sum
    const int64_t* offsets;  // [taps], of numbers in `in`
    const T* weights;        // for each block of channels: [taps, channels of the block]
};

// All of an image: `z` of `x`, or what is pulled to `x` from `z`, whose rows and columns differ by their taps.
template <class T>
struct Correlation {
    int64_t channels, out_plane;
    int64_t count;
    const Phase<T>* phases;
};

template <class T>
struct ConvBlock {
    int64_t inputs, outputs;                // channels of x and z
    int64_t size[2], summed[2], pooled[2];  // height and width of x, z and y
    Layout padded;                          // x within its padding
    Layout bordered;                        // cotangents of z within zeros, as far as `transposed` reaches
    Correlation<T> straight, transposed;    // a single phase; one for each remainder of a division by the strides
    Pooling pooling;
    int64_t window[2], step[2], margin[2];  // of the pooling
    Kind kind;
    Settings settings;
    bool curved;  // phi'' is not zero everywhere

    GRADREG_FAST_INLINE bool pools_maxima() const { return pooling == Pooling::Max || pooling == Pooling::MaxFirst; }
    GRADREG_FAST_INLINE bool windows_are_disjoint() const { return step[0] >= window[0] && step[1] >= window[1]; }
    // Each pixel of z is in one window.
    GRADREG_FAST_INLINE bool windows_are_tiles() const {
        return pooling == Pooling::None ||
               (step[0] == window[0] && step[1] == window[1] && margin[0] == 0 && margin[1] == 0 &&
                pooled[0] * step[0] == summed[0] && pooled[1] * step[1] == summed[1]);
    }
    GRADREG_FAST_INLINE int64_t x_pixels() const { return inputs * size[0] * size[1]; }
    GRADREG_FAST_INLINE int64_t z_pixels() const { return outputs * summed[0] * summed[1]; }
    GRADREG_FAST_INLINE int64_t y_pixels() const { return outputs * pooled[0] * pooled[1]; }
    // Pixels that have a slope: where maxima are pooled only the winners.
    GRADREG_FAST_INLINE int64_t slope_pixels() const {
        return kind == Kind::Identity ? 0 : pools_maxima() ? y_pixels() : z_pixels();
    }
    // A tile keeps phi', phi'' if curved, and the number of each window's winner.
    GRADREG_FAST_INLINE int64_t kept_pixels() const {
        return slope_pixels() * (curved ? 2 : 1) + (pools_maxima() ? y_pixels() : 0);
    }
    GRADREG_FAST_INLINE int64_t scratch_pixels() const {
        const int64_t z = z_pixels() > x_pixels() ? z_pixels() : x_pixels();
        return inputs * padded.plane + outputs * bordered.plane + z + y_pixels();
    }
};

// Stacks of cotangents and tangents are [K, B, ..]; `kept` and `second` are [tiles, pixels, lanes].

template <class T>
struct ConvForward {
    const ConvBlock<T>* block;
    int64_t samples;
    const T* bias;  // null: zero
    Images<const T> x;
    Images<T> y;
    T* kept;
};

template <class T>
struct ConvPush {
    const ConvBlock<T>* block;
    int64_t samples, stack;
    const T* kept;
    Images<const T> xdot;
    Images<const T> u;  // cotangents of y; read if one of the last two is wanted
    Images<T> ydot;     // null: not wanted
    T* second;          // sum_k phi'' u zdot; null: not wanted
    T* weight_sums;     // one thread's, as `Phase::weights` with a register for each number; null: not wanted
};

template <class T>
struct ConvPull {
    const ConvBlock<T>* block;
    int64_t samples, stack;
    const T* kept;
    Images<const T> u;  // cotangents, or adjoints, of y; null: zero
    const T* second;    // added to those of z; null: zero
    Images<const T> x;  // read if the next is wanted
    T* weight_sums;     // see ConvPush
    T* bias_sums;       // [outputs] registers; null: not wanted
    Images<T> below;    // cotangents, or adjoints, of x; null: not wanted
};

// One instruction set's kernels, for the tiles [begin, end) of a batch. `scratch` holds `scratch_pixels` registers.
template <class T>
struct ConvKernels {
    int64_t lanes;
    int64_t block_channels;  // the most channels of a block; blocks differ by one at most
    void (*forward)(const ConvForward<T>&, int64_t begin, int64_t end, T* scratch);
    void (*push)(const ConvPush<T>&, int64_t begin, int64_t end, T* scratch);
    void (*pull)(const ConvPull<T>&, int64_t begin, int64_t end, T* scratch);
    void (*reduce)(const T* sums, int64_t count, T* to);  // each register's lanes added up
};

// Blocks of nearly the same size, and where each begins.
GRADREG_FAST_INLINE int64_t block_count(int64_t channels, int64_t most) {
    return (channels + most - 1) / most;
}
GRADREG_FAST_INLINE int64_t block_begin(int64_t channels, int64_t count, int64_t block) {
    return channels * block / count;
}

template <class T, Capability>
const ConvKernels<T>& conv_kernels();

}  // namespace gradreg_fast
