// The kernels behind layerwise.h: tiled products with the sweeps' epilogues, and the few passes between them.
//
// A layer of n inputs and n outputs, B rows, K = 1, an activation with curvature that keeps its result, s bytes a
// number. Operations of a step: 12 B n^2, with these kernels or a library's. Numbers of [B, n] that move beside the
// operands:
//
//                  in epilogues                          a library's product, then one pass
//   forward        h out                              1  z out; z in, h out                            3
//   pull           h in, u_z out                      2  u out; u, h in, u_z out                       4
//   push           h, u_z in, hdot, second out        4  zdot out; zdot, u_z, h in, hdot, second out   6
//   adjoint        h, second in, d_z out              3  d out; d, h, second in, d_z out               5
//
// so that epilogues save 8 s B n bytes. Where memory is what bounds the passes (3.35 TB/s), that is worth the time of
// the products while 12 n (1 / R - 1 / L) < 8 s / 3.35e12, for products at R operations a second here and L in the
// library. With what mma.sync and plain loops may be expected to reach on an H100, and a library with wgmma: bfloat16
// 300 against 650 TFLOP/s, up to n = 220; TF32 150 and 330, 220; float32 40 and 50, 160; float64, here on CUDA cores,
// 20 and 50, 50; on an A100 (200 and 250; TF32 90 and 120), up to 700 and 400. Small batches are bound by launches
// instead, of which there are 4 a layer here and 8 there, besides what Python takes for each: at 1024 rows a product of
// [256, 256] takes a microsecond. WIDEST_BY_COUNT in gradreg_fast/mlp.py holds what follows, until a GPU says more.
//
//   n      B       operations   library: bytes    epilogues: bytes   bfloat16 at 990 TFLOP/s and 3.35 TB/s
//   256    16384   12.9e9       151e6             84e6               13 us of products; 45 and 25 us of bytes
//   1024   16384   206e9        604e6             336e6              208; 180 and 100
//   4096   16384   3.3e12       2.4e9             1.3e9              3332; 720 and 400
//
// Kernel forward_layer: h of a layer, and its state; of a convolution too (conv.cuh)
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      operations, 2 B n d; below about 256 wide, memory: B d and n d in, B n (2 B n) out
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel push_layer: hdot of a layer, and phi'' u zdot; of a convolution too
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      operations, 2 K B n d; below about 256 wide, memory: K B (d + n), B n, n d in, K B n, B n wide out
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel pull_layer: the cotangent or the adjoint of a layer's z from the next layer's
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      operations, 2 K B n d; below about 256 wide, memory: K B n, n d, B d (2 B d) in, K B d (2 K B d) out
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel layer_gradients: of all weights, u (x) xdot and d (x) x in one sum, or one a slice of the batch
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      operations, 2 (K + 1) B n d; below about 256 wide, memory: (K + 1) B (n + d) in
//   registers  255 in float64, else 128
//   tensor     TF32|Halves
//
// Kernel bias_gradients: of all layers, sums over the batch, a warp every eighth line
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: B n in
//   registers  64
//   shared     2048
//
// Kernel between_layers: pull_layer's epilogue where there is no product
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: K B n (2 K B n) in, K B n out
//   registers  64
//
// Kernel loss_on_top: a loss's gradient, or its Hessian's product with a tangent, a thread a row
//   dtypes     float32 float64 bfloat16 float16
//   bound      latency: a row's outputs one after another
//   registers  64
//
// Kernel combine_lines: c a + d b, line by line
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: K B n (2 B n) in, K B n out
//   registers  64
//
// Kernel add_terms: sums over a stack
//   dtypes     float32 float64
//   bound      memory: K B n wide numbers in, B n out
//   registers  64

#pragma once

#include "cuda/activation.cuh"
#include "cuda/layerwise.h"
#include "cuda/mlp.cuh"
#include "cuda/rows.cuh"
#include "cuda/tiled.cuh"

namespace gradreg_fast::cuda {

constexpr int at_a_time = 4;  // numbers of a call to an activation, where a thread has more

// Some of the wide numbers that belong to a piece.
template <class T, int count>
__device__ __forceinline__ void load_wide(const T* from, int there, T (&to)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i)
        to[i] = i < there ? from[i] : T(0);
}

// Calls use(i, derivatives) for each of a piece's states.
template <class T, int count, class Use>
__device__ __forceinline__ void each_derivative(Kind kind, Settings settings, const T (&states)[count], Use use) {
    constexpr int some = count < at_a_time ? count : at_a_time;
#pragma unroll
    for (int first = 0; first < count; first += some) {
        Several<T, some> these;
#pragma unroll
        for (int i = 0; i < some; ++i)
            these.of[i] = states[first + i];
        const auto found = derivatives_of<T, some>(kind, settings, these);
#pragma unroll
        for (int i = 0; i < some; ++i)
            use(first + i, found.slope[i], found.bend[i]);
    }
}

template <class S>
__device__ __forceinline__ void forward_piece(const Up<S>& up, int64_t line, int64_t column, Wide<S> (&z)[width<S>]) {
    using T = Wide<S>;
    constexpr int some = width<S> < at_a_time ? width<S> : at_a_time;
    const int64_t begin = line * up.columns + column, end = (line + 1) * up.columns;
    T values[width<S>];
#pragma unroll
    for (int first = 0; first < width<S>; first += some) {
        Several<T, some> these;
#pragma unroll
        for (int i = 0; i < some; ++i) {
            const bool there = up.bias && column + first + i < up.columns;
            these.of[i] = z[first + i] + (there ? T(up.bias[column + first + i]) : T(0));
        }
        const auto found = evaluate<S, some>(up.kind, up.settings, these);
#pragma unroll
        for (int i = 0; i < some; ++i) {
            z[first + i] = found.state[i];
            values[first + i] = found.value[i];
        }
    }
    if (up.state) store(z, begin, end, up.state);
    if (up.value) store(values, begin, end, up.value);
}

template <class S>
__device__ __forceinline__ void push_piece(const Up<S>& up, int64_t line, int64_t column, Wide<S> (&zdot)[width<S>]) {
    using T = Wide<S>;
    const int64_t row = line % up.rows, begin = line * up.columns + column, end = (line + 1) * up.columns;
    if (up.kind != Kind::Identity) {
        T states[width<S>], u[width<S>];
        load(static_cast<const S*>(up.state), row * up.columns + column, (row + 1) * up.columns, states);
        if (up.second) load(up.u, begin, end, u);
        each_derivative(up.kind, up.settings, states, [&](int i, T slope, T bend) {
            // where the slope has vanished, so has the cotangent below it
            const T divisor = !up.below ? T(1) : slope == T(0) ? T(INFINITY) : slope;
            if (up.second && column + i < up.columns) up.second[begin + i] = bend / divisor * u[i] * zdot[i];
            zdot[i] *= slope;
        });
    }
    if (up.tangent) store(zdot, begin, end, up.tangent);
}

template <class S>
__device__ __forceinline__ void down_piece(const Down<S>& down, int64_t line, int64_t column, Wide<S> (&v)[width<S>]) {
    using T = Wide<S>;
    const int64_t row = line % down.rows, begin = line * down.columns + column, end = (line + 1) * down.columns;
    const int64_t row_begin = row * down.columns + column, row_end = (row + 1) * down.columns;
    T also[width<S>];
    if (down.above) store(v, begin, end, down.above);
    if (down.state && down.kind != Kind::Identity) {
        load(down.state, row_begin, row_end, also);
        each_derivative(down.kind, down.settings, also, [&](int i, T slope, T) { v[i] *= slope; });
    }
    if (down.second) {
        load_wide(down.second + row_begin, int(row_end - row_begin), also);
        for (int i = 0; i < width<S>; ++i)
            v[i] += also[i];
    }
    if (down.scale)
        for (int i = 0; i < width<S>; ++i)
            v[i] *= T(down.scale[row]);
    if (down.offset) {
        load(down.offset, begin, end, also);
        for (int i = 0; i < width<S>; ++i)
            v[i] -= also[i];
    }
    store(v, begin, end, down.result);
}

template <class Left, class Right, class After>
struct LayerProduct {
    Left left;
    Right right;
    After after;
};

// Runs this block's tile of a product with lines and columns as its epilogue has them.
template <class Arithmetic, int size, class Product, class Piece>
__device__ __forceinline__ void layer_tile(const Product& p, int64_t inner, Piece piece) {
    const int64_t across = (p.after.columns + size - 1) / size;
    multiply_tile<Arithmetic, size>(p.left, p.right, blockIdx.x / across * size, blockIdx.x % across * size, 0, inner,
                                    p.after.lines, p.after.columns, piece);
}

template <class S>
using UpProduct = LayerProduct<Matrix<S, false>, Matrix<S, false>, Up<S>>;
template <class S>
using DownProduct = LayerProduct<Matrix<S, false>, Matrix<S, true>, Down<S>>;

template <class Arithmetic, int size, class Product>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    forward_layer(const __grid_constant__ Product p) {
    layer_tile<Arithmetic, size>(p, p.right.inners, [&](int64_t line, int64_t column, auto& sums) {
        forward_piece(p.after, line, column, sums);
    });
}

template <class Arithmetic, int size, class Product>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    push_layer(const __grid_constant__ Product p) {
    layer_tile<Arithmetic, size>(
        p, p.right.inners, [&](int64_t line, int64_t column, auto& sums) { push_piece(p.after, line, column, sums); });
}

template <class Arithmetic, int size>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    pull_layer(const __grid_constant__ DownProduct<typename Arithmetic::Storage> p) {
    layer_tile<Arithmetic, size>(
        p, p.left.inners, [&](int64_t line, int64_t column, auto& sums) { down_piece(p.after, line, column, sums); });
}

template <class S>
__global__ void __launch_bounds__(threads, 4) between_layers(const __grid_constant__ Down<S> p) {
    const int64_t pieces = (p.columns + width<S> - 1) / width<S>;
    const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x, line = index / pieces;
    if (line >= p.lines) return;
    const int64_t column = index % pieces * width<S>;
    Wide<S> v[width<S>];
    for (int i = 0; i < width<S>; ++i)
        v[i] = p.ones;
    if (p.source) load(p.source, line * p.columns + column, (line + 1) * p.columns, v);
    down_piece(p, line, column, v);
}

// Block (item, slice).
template <class Arithmetic, int size>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    layer_gradients(const __grid_constant__ Gradients<typename Arithmetic::Storage> p) {
    using S = typename Arithmetic::Storage;
    int l = 0, item = blockIdx.x;
    for (; item >= layer_tiles(p.layers[l], size); ++l)
        item -= layer_tiles(p.layers[l], size);
    const LayerGradient<S>& layer = p.layers[l];
    const int64_t lines = p.stacked + (layer.adjoints ? p.rows : 0);
    const Matrix<S, true> left{p.stacked ? layer.u : layer.d,
                               layer.d,
                               layer.outputs,
                               lines,
                               p.stacked,
                               is_aligned(layer.u) && is_aligned(layer.d) && layer.outputs % width<S> == 0};
    const Matrix<S, true> right{p.stacked ? layer.xdot : layer.x,
                                layer.x,
                                layer.inputs,
                                lines,
                                p.stacked,
                                is_aligned(layer.xdot) && is_aligned(layer.x) && layer.inputs % width<S> == 0};
    const int64_t each = slice_lines(lines, p.slices, Staged<S, true, size>::depth), begin = blockIdx.y * each;
    const int64_t end = begin + each < lines ? begin + each : lines;
    const int across = (layer.inputs + size - 1) / size;
    Wide<S>* const slice = p.slice_sums ? p.slice_sums + blockIdx.y * p.slice_size + layer.place : nullptr;
    multiply_tile<Arithmetic, size>(left, right, item / across * size, item % across * size, begin,
                                    end < begin ? begin : end, layer.outputs, layer.inputs,
                                    [&](int64_t row, int64_t column, auto& sums) {
                                        const int64_t at = row * layer.inputs + column, stop = (row + 1) * layer.inputs;
                                        if (!slice) return store(sums, at, stop, layer.weight_gradient);
                                        for (int i = 0; i < width<S>; ++i)
                                            if (at + i < stop) slice[at + i] = sums[i];
                                    });
}

// Block (32 columns, slice of a layer).
template <class S>
__global__ void __launch_bounds__(threads, 4) bias_gradients(const __grid_constant__ Gradients<S> p) {
    using T = Wide<S>;
    GRADREG_FAST_STATIC_SHARED(T[warps][32], shared);
    const LayerGradient<S>& layer = p.layers[blockIdx.y / p.slices];
    const int slice = blockIdx.y % p.slices;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = int(blockIdx.x) * 32 + lane;
    if (!layer.bias_gradient || int(blockIdx.x) * 32 >= layer.outputs) return;
    const int64_t rows = layer.bias_lines ? p.rows : 0, each = slice_lines(rows, p.slices, warps);
    const int64_t begin = slice * each, end = begin + each < rows ? begin + each : rows;
    T sum = 0;
    if (column < layer.outputs)
        for (int64_t b = begin + warp; b < end; b += warps)
            sum += (layer.bias_weights ? T(layer.bias_weights[b]) : T(1)) *
                   T(layer.bias_lines[b * layer.outputs + column]);
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp || column >= layer.outputs) return;
    for (int other = 1; other < warps; ++other)
        sum += shared[other][lane];
    if (p.slice_sums)
        p.slice_sums[slice * p.slice_size + layer.place + int64_t(layer.outputs) * layer.inputs + column] = sum;
    else
        layer.bias_gradient[column] = narrow<S>(sum);
}

template <class S>
__global__ void __launch_bounds__(threads, 4) loss_on_top(const __grid_constant__ OnTop<S> p) {
    using T = Wide<S>;
    const int64_t row = int64_t(blockIdx.x) * threads + threadIdx.x, begin = row * p.columns;
    if (row >= p.rows) return;
    T* const y = p.scratch + begin;
    T* const v = p.scratch + p.rows * p.columns + begin;
    for (int i = 0; i < p.columns; ++i) {
        y[i] = derivatives_of<T, 1>(p.kind, p.settings, {{T(p.state[begin + i])}}).value[0];
        if (p.tangent) v[i] = T(p.tangent[begin + i]);
    }
    if (p.tangent)
        multiply_by_hessian(p.target, row, p.columns, y, v);
    else
        loss_gradient(p.target, row, p.columns, y, v);
    for (int i = 0; i < p.columns; ++i)
        p.result[begin + i] = narrow<S>(v[i] + (p.ybar ? T(p.ybar[begin + i]) : T(0)));
}

template <class S>
__global__ void __launch_bounds__(threads, 4) combine_lines(const __grid_constant__ Combination<S> p) {
    using T = Wide<S>;
    const int64_t pieces = (p.columns + width<S> - 1) / width<S>;
    const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x, line = index / pieces, row = line % p.rows;
    if (line >= p.lines) return;
    const int64_t column = index % pieces * width<S>, begin = line * p.columns + column;
    const T factor = (p.doubled ? 2 * p.doubled[row] : T(1)) * (p.first ? T(p.first[row]) : T(1));
    T a[width<S>], b[width<S>] = {};
    load(p.a, begin, (line + 1) * p.columns, a);
    if (p.b) load(p.b, row * p.columns + column, (row + 1) * p.columns, b);
    for (int i = 0; i < width<S>; ++i)
        a[i] = factor * a[i] + (p.b ? T(p.second[row]) * b[i] : T(0));
    store(a, begin, (line + 1) * p.columns, p.result);
}

template <class S>
__global__ void __launch_bounds__(threads, 4) add_terms(const __grid_constant__ StackSums<S> p) {
    const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x, count = p.rows * p.columns;
    if (index >= count) return;
    Wide<S> sum = 0;
    for (int64_t k = 0; k < p.stack; ++k)
        sum += p.terms[k * count + index];
    p.sums[index] = sum;
}

// What follows is for a `launch(kernel, columns, rows of blocks, shared bytes, parameters)`.

template <class S, class Kernel, class Product, class Launch>
void launch_product(Kernel large, Kernel small, const Product& p, const Device& device, const Launch& launch) {
    const int size = tile_size<S>(p.after.lines, p.after.columns, device);
    const int64_t blocks = ceiling(p.after.lines, size) * ceiling(p.after.columns, size);
    if (blocks)
        launch(size == small_tile ? small : large, int(blocks), 1, tile_bytes(size, sizeof(S), sizeof(Wide<S>)), p);
}

template <class S>
Up<S> up_of(int64_t stack, int64_t rows, int columns, Kind kind, Settings settings) {
    Up<S> up{};
    up.lines = stack * rows, up.rows = rows, up.columns = columns;
    up.kind = kind, up.settings = settings;
    return up;
}

// sums = the second-order terms that a product of a stack has left, added up over the stack.
template <class S, class Launch>
void add_stack(const Up<S>& up, int64_t stack, Wide<S>* sums, const Launch& launch) {
    const int64_t blocks = ceiling(up.rows * up.columns, threads);
    if (blocks) launch(add_terms<S>, int(blocks), 1, 0, StackSums<S>{up.rows, stack, up.columns, up.second, sums});
}

template <class S, class Launch>
void launch_between_layers(const Down<S>& down, const Launch& launch) {
    const int64_t blocks = ceiling(down.lines * ceiling(down.columns, width<S>), threads);
    if (blocks) launch(between_layers<S>, int(blocks), 1, 0, down);
}

template <class Arithmetic, class Launch>
class Layerwise {
    using S = typename Arithmetic::Storage;

  public:
    Layerwise(const Device& device, Launch launch) : device(device), launch(launch) {}

    void forward_pull(const ForwardPull<S>& p, const LayerwiseMemory<S>& also, char* workspace) const {
        const int last = p.depth - 1;
        const Layer<S>& end = p.layers[last];
        S* top;
        Wide<S>* scratch;
        place_top(p, workspace, top, scratch);
        const S* h = p.x;
        for (int l = 0; l <= last; ++l) {
            const Layer<S>& layer = p.layers[l];
            Up<S> up = up_to(p, l, 1);
            up.bias = layer.bias;
            up.value = l == last ? p.y : also.value[l] == layer.state ? nullptr : also.value[l];
            up_product(forward_layer<Arithmetic, large_tile<S>, UpProduct<S>>,
                       forward_layer<Arithmetic, small_tile, UpProduct<S>>, h, layer, up);
            h = also.value[l];
        }
        if (!p.stack) return norms_of(p);
        if (top)
            pass(loss_on_top<S>, ceiling(p.rows, threads),
                 OnTop<S>{p.rows, end.outputs, end.kind, end.settings, p.target, end.state, nullptr, nullptr, scratch,
                          top});
        const bool ones = !top && (!p.cotangent || p.unit_seed);
        Down<S> down = down_of(p, last, p.stack, also.above[last], end.cotangent);
        down.source = ones ? nullptr : top ? top : p.cotangent;
        down.ones = ones;
        between(down);
        for (int l = last; l > 0; --l)
            down_product(p.layers[l].cotangent, p.layers[l],
                         down_of(p, l - 1, p.stack, also.above[l - 1], p.layers[l - 1].cotangent));
        Down<S> first = bottom_of(p, p.stack, p.g);
        first.scale = p.unit_seed ? p.cotangent : nullptr;
        first.offset = p.offset;
        down_product(p.layers[0].cotangent, p.layers[0], first);
        norms_of(p);
    }

    // size: of the gradients' tiles.
    void push_adjoint(const PushAdjoint<S>& p, const LayerwiseMemory<S>& also, char* workspace, int size) const {
        LayerwiseWorkspace<S> space;
        place_layerwise(p, workspace, space);
        const int last = p.depth - 1, inputs = p.layers[0].inputs;
        const bool bent = p.stack && p.target.loss != Loss::None;
        const S* gbar = p.gbar;
        if (space.slope) {
            combine({p.stack * p.rows, p.rows, inputs, p.gbar, p.norm_weights, nullptr, nullptr, nullptr, space.slope});
            gbar = space.slope;
        }
        for (int l = 0; l < p.push_depth; ++l) {
            const Layer<S>& layer = p.layers[l];
            Up<S> up = up_to(p, l, p.stack);
            up.push = true;
            up.below = !bends_where_flat(layer.kind);
            up.u = up.below ? layer.cotangent : also.above[l];
            up.tangent = space.tangent[l];
            up.second = space.second[l] && p.stack > 1 ? space.terms : space.second[l];
            if (up.tangent || up.second)
                up_product(push_layer<Arithmetic, large_tile<S>, UpProduct<S>>,
                           push_layer<Arithmetic, small_tile, UpProduct<S>>, l ? space.tangent[l - 1] : gbar, layer,
                           up);
            if (up.second && p.stack > 1) add_stack(up, p.stack, space.second[l], launch);
        }
        if (p.highest >= 0) {
            const Layer<S>& layer = p.layers[p.highest];
            Down<S> down = down_of(p, p.highest, 1, nullptr, space.adjoint[p.highest]);
            down.second = space.second[p.highest];
            if (p.highest == last && bent) {
                pass(loss_on_top<S>, ceiling(p.rows, threads),
                     OnTop<S>{p.rows, layer.outputs, layer.kind, layer.settings, p.target, layer.state,
                              space.tangent[last], p.ybar, space.scratch, space.top});
                down.source = space.top;
            } else if (p.highest == last && p.descends) {
                down.source = p.ybar;
            }
            between(down);
        }
        for (int l = p.highest; l > p.lowest; --l) {
            Down<S> down = down_of(p, l - 1, 1, nullptr, space.adjoint[l - 1]);
            down.second = space.second[l - 1];
            down_product(space.adjoint[l], p.layers[l], down);
        }
        if (p.xbar) {
            Down<S> down = bottom_of(p, 1, p.xbar);
            if (p.highest >= 0) {
                down_product(space.adjoint[0], p.layers[0], down);
            } else if (p.proportional && p.ybar) {
                down.scale = p.ybar;
                down_product(p.layers[0].cotangent, p.layers[0], down);
            } else {
                between(down);
            }
        }
        gradients(p, also, space, gbar, size);
    }

  private:
    const Device& device;
    const Launch launch;

    static Up<S> up_to(const Network<S>& p, int l, int64_t stack) {
        const Layer<S>& layer = p.layers[l];
        Up<S> up = up_of<S>(stack, p.rows, layer.outputs, layer.kind, layer.settings);
        up.state = layer.state;
        return up;
    }

    static Down<S> down_of(const Network<S>& p, int l, int64_t stack, S* above, S* result) {
        const Layer<S>& layer = p.layers[l];
        Down<S> down{};
        down.lines = stack * p.rows, down.rows = p.rows, down.columns = layer.outputs;
        down.kind = layer.kind, down.settings = layer.settings;
        down.state = layer.state;
        down.above = above;
        down.result = result;
        return down;
    }

    // Down to the input, which no activation made.
    static Down<S> bottom_of(const Network<S>& p, int64_t stack, S* result) {
        Down<S> down{};
        down.lines = stack * p.rows, down.rows = p.rows, down.columns = p.layers[0].inputs;
        down.result = result;
        return down;
    }

    template <class Kernel, class Parameters>
    void pass(Kernel kernel, int64_t blocks, const Parameters& parameters) const {
        if (blocks) launch(kernel, int(blocks), 1, 0, parameters);
    }

    static int shared_bytes(int size) { return tile_bytes(size, sizeof(S), sizeof(Wide<S>)); }

    template <class Kernel>
    void up_product(Kernel large, Kernel small, const S* x, const Layer<S>& layer, const Up<S>& up) const {
        const int64_t inputs = layer.inputs;
        launch_product<S>(large, small,
                          UpProduct<S>{{x, up.lines, inputs, has_whole_pieces(x, inputs)},
                                       {layer.weight, layer.outputs, inputs, has_whole_pieces(layer.weight, inputs)},
                                       up},
                          device, launch);
    }

    void down_product(const S* u, const Layer<S>& layer, const Down<S>& down) const {
        const int64_t outputs = layer.outputs, inputs = layer.inputs;
        launch_product<S>(
            pull_layer<Arithmetic, large_tile<S>>, pull_layer<Arithmetic, small_tile>,
            DownProduct<S>{{u, down.lines, outputs, has_whole_pieces(u, outputs)},
                           {layer.weight, nullptr, inputs, outputs, outputs, has_whole_pieces(layer.weight, inputs)},
                           down},
            device, launch);
    }

    void between(const Down<S>& down) const { launch_between_layers(down, launch); }

    void combine(const Combination<S>& p) const {
        pass(combine_lines<S>, ceiling(p.lines * ceiling(p.columns, width<S>), threads), p);
    }

    void norms_of(const ForwardPull<S>& p) const {
        launch_dots(Dots<S>{p.stack, p.rows, p.layers[0].inputs, p.g, p.g, 1, p.norms}, launch);
    }

    void gradients(const PushAdjoint<S>& p, const LayerwiseMemory<S>& also, const LayerwiseWorkspace<S>& space,
                   const S* gbar, int size) const {
        Gradients<S> g{};
        g.depth = p.depth, g.size = size;
        g.rows = p.rows, g.stacked = p.stack * p.rows;
        g.slices = p.slices, g.slice_sums = space.slice_sums, g.slice_size = p.slice_size;
        int64_t items = 0, widest_bias = 0, most = 0;
        for (int l = 0; l < p.depth; ++l) {
            const Layer<S>& layer = p.layers[l];
            const bool adjoints = l <= p.highest && l >= p.lowest;
            const S* const x = l ? also.value[l - 1] : p.x;
            const S* xdot = l ? space.tangent[l - 1] : gbar;
            if (p.proportional && layer.weight_gradient) {  // c xdot + ybar x; no product needs xdot any more
                S* const to = l ? space.tangent[l - 1] : space.combined;
                combine({p.rows, p.rows, layer.inputs, xdot, nullptr, p.cotangent, p.ybar ? x : nullptr, p.ybar, to});
                xdot = to;
            }
            g.layers[l] = {layer.cotangent,
                           xdot,
                           adjoints ? space.adjoint[l] : nullptr,
                           adjoints ? x : nullptr,
                           layer.weight_gradient,
                           layer.bias_gradient,
                           p.proportional ? (p.ybar ? layer.cotangent : nullptr)
                           : adjoints     ? space.adjoint[l]
                                          : nullptr,
                           p.proportional ? p.ybar : nullptr,
                           layer.outputs,
                           layer.inputs,
                           layer.gradient_place,
                           adjoints};
            items += layer_tiles(g.layers[l], size);
            if (layer.bias_gradient) widest_bias = std::max<int64_t>(widest_bias, layer.outputs);
            most = std::max(most, int64_t(layer.outputs) * (layer.inputs + 1));
        }
        const auto kernel =
            size == small_tile ? layer_gradients<Arithmetic, small_tile> : layer_gradients<Arithmetic, large_tile<S>>;
        if (items) launch(kernel, int(items), p.slices, shared_bytes(size), g);
        if (widest_bias) launch(bias_gradients<S>, int(ceiling(widest_bias, 32)), p.slices * p.depth, 0, g);
        if (!space.slice_sums || !(items || widest_bias)) return;
        PushAdjoint<S> slices = p;
        slices.slice_sums = space.slice_sums;
        launch(add_slices<S>, int(ceiling(most, threads)), p.depth, 0, slices);
    }
};

}  // namespace gradreg_fast::cuda
