// The kernels behind conv.h: tiled products (tiled.cuh) whose left operands are gathered from images, no patch ever
// written to memory.
//
// A convolution is [N h w, outputs] = [N h w, taps inputs] [taps inputs, outputs]; its transpose the same with z's
// pixels under flipped taps, a phase of pixels for each remainder of a division by the strides, so that no product is
// with zeros between pixels; a weight's gradient [outputs, taps inputs], summed over pixels in slices that are added in
// their order.
//
// With C inputs, O outputs, T taps, P pixels of z, s bytes a number: 2 P O C T operations a product, of which a step
// has six. Bytes beside the weight: s P C (strides aside) and s P O a product, each pixel once, and T times from the
// caches. Epilogues save the pass behind a library's product in each of the four sweeps (2 s P O or 2 s P C bytes), so
// that only the topmost activation of a run of convolutions takes one of its own. At 3.35 TB/s that pays by itself only
// up to C = 24 or so (layerwise.cuh), beyond it only where the library is far from its best, as for few channels: so
// these kernels are chosen by measurement (CHANNELS in gradreg_fast/measured.py).
//
//   T = 9, P = 64 x 32 x 32   operations a product   bytes of bfloat16   at 990 TFLOP/s   at 3.35 TB/s
//   C = O = 16                302e6                  4.2e6               0.3 us           1.3 us
//   C = O = 64                4.8e9                  16.8e6              4.9 us           5.0 us
//   C = O = 256               77e9                   68e6                78 us            20 us
//
// Kernel convolve_back: the transposed convolution of cotangents or adjoints, times phi' of what made x, plus phi''
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      memory up to about 64 channels, K P O, P C (2 P C) in, K P C out; beyond, 2 K P O C T operations
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel correlate: sums over pixels of u (x) x, a slice of them a block
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      memory up to about 64 channels, K P (C + O) in; beyond, 2 K P O C T operations
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel sum_slices: a gradient from its slices, in the order of PyTorch's weights
//   dtypes     float32 float64 bfloat16 float16
//   bound      latency: slices O C T wide numbers in, O C T out
//   registers  64

#pragma once

#include "cuda/conv.h"
#include "cuda/layerwise.cuh"

namespace gradreg_fast::cuda {

template <class S, bool across_>
struct Images {
    struct Pixel {
        int64_t image;  // where it begins; -1: behind the last
        int y, x;
    };
    struct Tap {
        int y, x, channel;  // -1: behind the last
    };
    using Storage = S;
    using Outer = std::conditional_t<across_, Tap, Pixel>;
    static constexpr bool across = across_;
    const S* data;
    Gather gather;
    bool whole;

    __device__ __forceinline__ Pixel pixel(int64_t i) const {
        if (i >= gather.lines) return {-1, 0, 0};
        const uint32_t area = uint32_t(gather.grid[0]) * uint32_t(gather.grid[1]);
        const int64_t image = i < (int64_t(1) << 32) ? uint32_t(i) / area : i / area;
        const uint32_t rest = uint32_t(i - image * area), y = rest / uint32_t(gather.grid[1]);
        const int x = int(rest - y * uint32_t(gather.grid[1]));
        return {image * gather.size[0] * gather.size[1] * gather.channels, gather.origin[0] + gather.step[0] * int(y),
                gather.origin[1] + gather.step[1] * x};
    }
    __device__ __forceinline__ Tap tap(int64_t i) const {
        const uint32_t number = uint32_t(i), channels = uint32_t(gather.channels), tap = number / channels;
        const int y = int(tap / uint32_t(gather.taps[1]));
        if (y >= gather.taps[0]) return {0, 0, -1};
        return {gather.reach[0] * y, gather.reach[1] * int(tap - uint32_t(y) * uint32_t(gather.taps[1])),
                int(number - tap * channels)};
    }
    __device__ __forceinline__ const S* meet(Pixel pixel, Tap tap) const {
        const int y = pixel.y + tap.y, x = pixel.x + tap.x;
        const bool there =
            pixel.image >= 0 && tap.channel >= 0 && y >= 0 && y < gather.size[0] && x >= 0 && x < gather.size[1];
        return there ? data + pixel.image + (int64_t(y) * gather.size[1] + x) * gather.channels + tap.channel : nullptr;
    }

    __device__ __forceinline__ Outer outer(int64_t i) const {
        if constexpr (across)
            return tap(i);
        else
            return pixel(i);
    }
    __device__ __forceinline__ auto inner(int64_t k) const {
        if constexpr (across)
            return pixel(k);
        else
            return tap(k);
    }
    __device__ __forceinline__ const S* at(Pixel outer, Tap inner) const { return meet(outer, inner); }
    __device__ __forceinline__ const S* at(Tap outer, Pixel inner) const { return meet(inner, outer); }
};

// A weight [outputs, kernel, kernel, inputs] as [a phase's taps and outputs, inputs].
template <class S>
struct TurnedWeight {
    using Storage = S;
    using Outer = int;
    static constexpr bool across = true;
    const S* data;
    int inputs, outputs, taps[2], first_tap[2], tap_step[2], kernel[2];
    bool whole;

    __device__ __forceinline__ Outer outer(int64_t i) const { return i < inputs ? int(i) : -1; }
    __device__ __forceinline__ const S* inner(int64_t k) const {
        const uint32_t number = uint32_t(k), tap = number / uint32_t(outputs);
        const int y = int(tap / uint32_t(taps[1])), x = int(tap - uint32_t(y) * uint32_t(taps[1]));
        if (y >= taps[0]) return nullptr;
        const int place = (first_tap[0] + tap_step[0] * y) * kernel[1] + first_tap[1] + tap_step[1] * x;
        const int64_t output = number - tap * uint32_t(outputs);
        return data + (output * kernel[0] * kernel[1] + place) * inputs;
    }
    __device__ __forceinline__ const S* at(Outer outer, const S* line) const {
        return outer < 0 || !line ? nullptr : line + outer;
    }
};

template <class S>
using ImageProduct = LayerProduct<Images<S, false>, Matrix<S, false>, Up<S>>;
template <class S>
using BackProduct = LayerProduct<Images<S, false>, TurnedWeight<S>, Placed<S>>;
template <class S>
using CorrelationProduct = LayerProduct<Matrix<S, true>, Images<S, true>, WeightSums<S>>;

template <class Arithmetic, int size>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    convolve_back(const __grid_constant__ BackProduct<typename Arithmetic::Storage> p) {
    const int64_t inner = int64_t(p.right.taps[0]) * p.right.taps[1] * p.right.outputs;
    layer_tile<Arithmetic, size>(p, inner, [&](int64_t line, int64_t column, auto& sums) {
        const auto& to = p.after;
        const uint32_t area = uint32_t(to.grid[0]) * uint32_t(to.grid[1]);
        const int64_t image = line < (int64_t(1) << 32) ? uint32_t(line) / area : line / area;
        const uint32_t rest = uint32_t(line - image * area), i = rest / uint32_t(to.grid[1]);
        const int64_t y = to.origin[0] + to.step[0] * int(i);
        const int64_t x = to.origin[1] + to.step[1] * int(rest - i * uint32_t(to.grid[1]));
        const int64_t pixel = (image * to.size[0] + y) * to.size[1] + x;
        down_piece(to.below, pixel, column, sums);
    });
}

// Block (tile, slice).
template <class Arithmetic, int size>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    correlate(const __grid_constant__ CorrelationProduct<typename Arithmetic::Storage> p) {
    using S = typename Arithmetic::Storage;
    const int64_t lines = p.left.inners, each = slice_lines(lines, p.after.slices, Staged<S, true, size>::depth);
    const int64_t begin = blockIdx.y * each, end = begin + each < lines ? begin + each : lines;
    const int across = (p.after.columns + size - 1) / size;
    Wide<S>* const sums_of = p.after.sums + int64_t(blockIdx.y) * p.after.outputs * p.after.columns;
    multiply_tile<Arithmetic, size>(p.left, p.right, blockIdx.x / across * size, blockIdx.x % across * size, begin,
                                    end < begin ? begin : end, p.after.outputs, p.after.columns,
                                    [&](int64_t row, int64_t column, auto& sums) {
                                        const int64_t at = row * p.after.columns + column;
                                        for (int i = 0; i < width<S>; ++i)
                                            if (column + i < p.after.columns) sums_of[at + i] = sums[i];
                                    });
}

template <class S>
__global__ void __launch_bounds__(threads, 4) sum_slices(const __grid_constant__ SliceSums<S> p) {
    const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x;
    if (index >= p.count) return;
    Wide<S> sum = 0;
    for (int slice = 0; slice < p.slices; ++slice)
        sum += p.sums[slice * p.count + index];
    const int64_t line = index / p.inputs, output = line / p.taps;
    const int64_t input = index - line * p.inputs, tap = line - output * p.taps;
    p.result[(output * p.inputs + input) * p.taps + tap] = narrow<S>(sum);
}

// The sweeps' kernels, for a `launch(kernel, columns, rows of blocks, shared bytes, parameters)`.
template <class Arithmetic, class Launch>
class Convolve {
    using S = typename Arithmetic::Storage;

  public:
    Convolve(const Convolution& c, const Device& device, Launch launch) : c(c), device(device), launch(launch) {}

    void forward(const ImageForward<S>& p) const {
        Up<S> up = up_of<S>(1, c.pixels(), c.outputs, p.kind, p.settings);
        up.bias = p.bias;
        up.state = p.state;
        up.value = p.y;
        straight(forward_layer<Arithmetic, large_tile<S>, ImageProduct<S>>,
                 forward_layer<Arithmetic, small_tile, ImageProduct<S>>, 1, p.x, p.weight, up);
    }

    void push(const ImagePush<S>& p) const {
        Up<S> up = up_of<S>(p.stack, c.pixels(), c.outputs, p.kind, p.settings);
        up.state = const_cast<S*>(p.state);
        up.below = !bends_where_flat(p.kind);
        up.u = p.u;
        up.tangent = p.ydot;
        up.second = p.second && p.stack > 1 ? p.terms : p.second;
        straight(push_layer<Arithmetic, large_tile<S>, ImageProduct<S>>,
                 push_layer<Arithmetic, small_tile, ImageProduct<S>>, p.stack, p.xdot, p.weight, up);
        if (p.second && p.stack > 1) add_stack(up, p.stack, p.second, launch);
    }

    void pull(int64_t stack, const S* u, const S* weight, const Down<S>& below) const {
        for (int i = 0; i < std::min(c.stride[0], c.size[0]); ++i)
            for (int j = 0; j < std::min(c.stride[1], c.size[1]); ++j) {
                const Phase phase = phase_of(c, stack, i, j);
                BackProduct<S> p{};
                p.left = {u, phase.from, has_whole_pieces(u, c.outputs)};
                p.right.data = weight, p.right.inputs = c.inputs, p.right.outputs = c.outputs;
                p.right.whole = has_whole_pieces(weight, c.inputs);
                p.after.lines = phase.from.lines, p.after.columns = c.inputs, p.after.below = below;
                for (int d = 0; d < 2; ++d) {
                    p.right.taps[d] = phase.from.taps[d], p.right.kernel[d] = c.kernel[d];
                    p.right.first_tap[d] = phase.first_tap[d], p.right.tap_step[d] = phase.tap_step[d];
                    p.after.grid[d] = phase.from.grid[d], p.after.size[d] = c.size[d];
                    p.after.step[d] = c.stride[d], p.after.origin[d] = phase.remainder[d];
                }
                multiply(convolve_back<Arithmetic, large_tile<S>>, convolve_back<Arithmetic, small_tile>, p);
            }
    }

    void gradient(int64_t stack, const S* u, const S* x, const GradientPlan& plan, Wide<S>* sums, S* result) const {
        const int columns = c.taps() * c.inputs;
        const int64_t lines = stack * c.pixels(), count = int64_t(c.outputs) * columns;
        const CorrelationProduct<S> p{{u, nullptr, c.outputs, lines, lines, has_whole_pieces(u, c.outputs)},
                                      {x, gather_forward(c, stack), has_whole_pieces(x, c.inputs)},
                                      {c.outputs, columns, plan.slices, sums}};
        const auto kernel =
            plan.size == small_tile ? correlate<Arithmetic, small_tile> : correlate<Arithmetic, large_tile<S>>;
        launch(kernel, int(ceiling(c.outputs, plan.size) * ceiling(columns, plan.size)), plan.slices,
               tile_bytes(plan.size, sizeof(S), sizeof(Wide<S>)), p);
        launch(sum_slices<S>, int(ceiling(count, threads)), 1, 0,
               SliceSums<S>{count, plan.slices, c.taps(), c.inputs, sums, result});
    }

  private:
    const Convolution& c;
    const Device& device;
    const Launch launch;

    template <class Kernel, class Product>
    void multiply(Kernel large, Kernel small, const Product& p) const {
        launch_product<S>(large, small, p, device, launch);
    }

    template <class Kernel>
    void straight(Kernel large, Kernel small, int64_t stack, const S* x, const S* weight, const Up<S>& up) const {
        const int64_t inner = int64_t(c.taps()) * c.inputs;
        multiply(large, small,
                 ImageProduct<S>{{x, gather_forward(c, stack), has_whole_pieces(x, c.inputs)},
                                 {weight, c.outputs, inner, has_whole_pieces(weight, inner)},
                                 up});
    }
};

}  // namespace gradreg_fast::cuda
