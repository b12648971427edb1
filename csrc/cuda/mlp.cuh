// The kernels behind mlp.h.
//
// Within a tile, a layer is one product (product.cuh) and one pass over its result: the product leaves its sums in
// shared memory, a pass takes them, computes activations and derivatives, reads and writes what global memory has of
// this layer, and leaves the next product's operand. A warp has whole rows in a pass, so that global memory is read and
// written along rows, and each number always by the same thread: what a pass writes, a later one may read.

#pragma once

#include "cuda/activation.cuh"
#include "cuda/mlp.h"
#include "cuda/product.cuh"

namespace gradreg_fast::cuda {

static_assert(sizeof(PushAdjoint<double>) <= 4096, "what a kernel's parameters may take");

// A tile of rows in shared memory: the operand and the result of its products.
template <class Arithmetic, int tile_rows>
struct Tile {
    using S = typename Arithmetic::Storage;
    using Element = typename Arithmetic::Element;
    using T = Wide<S>;
    static constexpr int own_rows = tile_rows / warps;  // of a warp, in passes
    static constexpr int batch = 4;                     // numbers of a thread that are under way together

    const Network<S>& network;
    Element* const weights;
    Element* const operand;
    T* const result;
    const int operand_distance, result_distance;
    int64_t begin = 0;  // first row
    int rows = 0;       // how many there are

    __device__ __forceinline__ Tile(const Network<S>& network, unsigned char* memory)
        : network(network),
          weights(reinterpret_cast<Element*>(memory)),
          operand(reinterpret_cast<Element*>(memory + network.operand_place)),
          result(reinterpret_cast<T*>(memory + network.result_place)),
          operand_distance(leading(network.widest, sizeof(Element))),
          result_distance(result_leading<S>(network.widest)) {
        for (int l = 0; network.resident && l < network.depth; ++l)
            load_weight(network.layers[l]);
    }

    __device__ __forceinline__ void start(int64_t tile) {
        begin = tile * tile_rows;
        rows = network.rows - begin < tile_rows ? int(network.rows - begin) : tile_rows;
    }

    __device__ __forceinline__ void load_weight(const Layer<S>& layer) const {
        const int width = leading(layer.inputs, sizeof(Element));
        Element* const to = weights + layer.weight_place;
        constexpr int together = 16;  // loads under way
        const int count = padded(layer.outputs, sizeof(Element)) * width;
        for (int first = threadIdx.x; first < count; first += together * threads) {
            T values[together];
#pragma unroll
            for (int i = 0; i < together; ++i) {
                const int row = (first + i * threads) / width, column = (first + i * threads) % width;
                const bool there = row < layer.outputs && column < layer.inputs;
                values[i] = there ? T(layer.weight[row * layer.inputs + column]) : T(0);
            }
#pragma unroll
            for (int i = 0; i < together; ++i)
                if (first + i * threads < count) to[first + i * threads] = Arithmetic::element(values[i]);
        }
    }

    // result = operand W^T, or operand W if Transposed.
    template <bool Transposed>
    __device__ __forceinline__ void product(const Layer<S>& layer) const {
        constexpr int size = sizeof(Element);
        const int columns = padded(Transposed ? layer.inputs : layer.outputs, size);
        const int inner = padded(Transposed ? layer.outputs : layer.inputs, size);
        if (!network.resident) load_weight(layer);  // the last product is behind a barrier
        __syncthreads();                            // the operand is there, and the result has been read
        multiply<Arithmetic, tile_rows, Transposed>(operand, operand_distance, weights + layer.weight_place,
                                                    leading(layer.inputs, size), columns, inner, result,
                                                    result_distance);
        __syncthreads();  // the result is there, and the operand has been read
    }

    // Calls use(row, column, valid, load(row, column), result i of `between`) for this thread's numbers of the tile,
    // and of what is behind a row's width; `load` only where there is something, and for some rows at once, so that
    // they are under way together, and between(loaded) for these together.
    template <class Load, class Between, class Use>
    __device__ __forceinline__ void each(int width, Load load, Between between, Use use) const {
        using Value = decltype(load(0, 0));
        const int end = padded(width, sizeof(Element));
        for (int turn = 0; 32 * (turn / own_rows) < end; turn += batch) {
            const auto row_of = [&](int i) { return int(threadIdx.x) / 32 + warps * ((turn + i) % own_rows); };
            const auto column_of = [&](int i) { return int(threadIdx.x) % 32 + 32 * ((turn + i) / own_rows); };
            Several<Value, batch> values;
#pragma unroll
            for (int i = 0; i < batch; ++i)
                values.of[i] = row_of(i) < rows && column_of(i) < width ? load(row_of(i), column_of(i)) : Value{};
            const auto results = between(values);
#pragma unroll
            for (int i = 0; i < batch; ++i) {
                const bool valid = row_of(i) < rows && column_of(i) < width;
                if (column_of(i) < end) use(row_of(i), column_of(i), valid, values.of[i], i, results);
            }
        }
    }

    // use(row, column, valid, value)
    template <class Load, class Use>
    __device__ __forceinline__ void each(int width, Load load, Use use) const {
        each(
            width, load, [](const auto&) { return 0; },
            [&](int row, int column, bool valid, const auto& value, int, int) { use(row, column, valid, value); });
    }

    // With an activation. load gives z; use(row, column, valid, state, h).
    template <class Load, class Use>
    __device__ __forceinline__ void each_evaluated(const Layer<S>& layer, Load load, Use use) const {
        each(
            layer.outputs, load, [&](const auto& z) { return evaluate<S, batch>(layer.kind, layer.settings, z); },
            [&](int row, int column, bool valid, T, int i, const Evaluated<T, batch>& results) {
                use(row, column, valid, results.state[i], results.value[i]);
            });
    }

    // With an activation's derivatives. load gives a struct with a `state`; use(row, column, valid, loaded,
    // derivatives).
    template <class Load, class Use>
    __device__ __forceinline__ void each_derivative(const Layer<S>& layer, Load load, Use use) const {
        each(
            layer.outputs, load,
            [&](const auto& loaded) {
                Several<T, batch> states;
#pragma unroll
                for (int i = 0; i < batch; ++i)
                    states.of[i] = loaded.of[i].state;
                return derivatives_of<T, batch>(layer.kind, layer.settings, states);
            },
            [&](int row, int column, bool valid, const auto& loaded, int i,
                const EvaluatedDerivatives<T, batch>& results) {
                use(row, column, valid, loaded, Derivatives<T>{results.value[i], results.slope[i], results.bend[i]});
            });
    }

    __device__ __forceinline__ T& sum(int row, int column) const { return result[row * result_distance + column]; }

    __device__ __forceinline__ void set(int row, int column, T value) const {
        operand[row * operand_distance + column] = Arithmetic::element(value);
    }

    // operand = a value of each number, zero behind rows and width.
    template <class Load>
    __device__ __forceinline__ void fill(int width, Load load) const {
        each(width, load, [&](int row, int column, bool, T value) { set(row, column, value); });
    }
};

// What passes load.
template <class T>
struct Loaded {
    T state, first, second;
};

template <class T, class Function>
__device__ __forceinline__ void with_activation(Kind kind, Settings settings, Function&& function) {
    with_kind<ScalarMath<T>>(kind, settings, function);
}

// Kernel forward_pull: sweeps 1 and 2 of an MLP, with the squared norms of g
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      64 wide, memory; 128 wide, memory on tensor cores and multiply-adds on CUDA cores
//   registers  224 in float64, else 128
//   tensor     TF32|Halves
//
// N: all layers' outputs together, W: all weights. Global memory, in numbers a row: d in, n and K d out, N and K N out
// for states and cotangents, if kept; from the second-level cache, K N states in again; K d of an offset and K n of a
// cotangent in; and W once a block. Operations a row: 2 (1 + K) W. Shared memory: the weights, all or the largest, and
// a tile's operand and result, of the widest layer.
template <class Arithmetic, int tile_rows>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    forward_pull(const __grid_constant__ ForwardPull<typename Arithmetic::Storage> p) {
    using S = typename Arithmetic::Storage;
    using T = Wide<S>;
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    Tile<Arithmetic, tile_rows> tile(p, memory);
    const int inputs = p.layers[0].inputs, outputs = p.layers[p.depth - 1].outputs;
    const bool with_loss = p.target.loss != Loss::None;

    for (int64_t number = blockIdx.x; number * tile_rows < p.rows; number += gridDim.x) {
        tile.start(number);
        const int64_t begin = tile.begin, kept = p.keep ? begin : int64_t(blockIdx.x) * tile_rows;

        const S* const x = p.x + begin * inputs;
        tile.fill(inputs, [&](int row, int column) { return T(x[row * inputs + column]); });
        for (int l = 0; l < p.depth; ++l) {
            const Layer<S>& layer = p.layers[l];
            const int width = layer.outputs;
            S* const state = layer.state + kept * width;
            S* const y = l == p.depth - 1 ? p.y + begin * width : nullptr;
            tile.template product<false>(layer);
            tile.each_evaluated(
                layer,
                [&](int row, int column) {
                    return tile.sum(row, column) + (layer.bias ? T(layer.bias[column]) : T(0));
                },
                [&](int row, int column, bool valid, T kept, T h) {
                    tile.set(row, column, valid ? h : T(0));
                    if (!valid) return;
                    state[row * width + column] = narrow<S>(kept);
                    if (!y) return;
                    y[row * width + column] = narrow<S>(h);
                    tile.sum(row, column) = h;
                });
        }

        if (with_loss && p.stack) {
            __syncthreads();
            for (int row = threadIdx.x; row < tile.rows; row += threads)
                loss_gradient(p.target, begin + row, outputs, &tile.sum(row, 0), &tile.sum(row, 0));
            __syncthreads();
        }
        for (int k = 0; k < p.stack; ++k) {
            const int64_t stacked = k * p.rows + begin;
            for (int l = p.depth - 1; l >= 0; --l) {
                const Layer<S>& layer = p.layers[l];
                const int width = layer.outputs;
                const S* const state = layer.state + kept * width;
                S* const cotangent = layer.cotangent ? layer.cotangent + stacked * width : nullptr;
                const bool ones = !p.cotangent || p.unit_seed;
                const S* const seed = ones ? nullptr : p.cotangent + stacked * width;
                const bool seeded = l == p.depth - 1 && !with_loss;
                tile.each_derivative(
                    layer,
                    [&](int row, int column) {
                        const int at = row * width + column;
                        const T u = !seeded ? tile.sum(row, column) : seed ? T(seed[at]) : T(1);
                        return Loaded<T>{T(state[at]), u, T(0)};
                    },
                    [&](int row, int column, bool valid, Loaded<T> at, Derivatives<T> phi) {
                        if (valid && cotangent) cotangent[row * width + column] = narrow<S>(at.first);
                        tile.set(row, column, valid ? phi.slope * at.first : T(0));
                    });
                tile.template product<true>(layer);
            }

            S* const g = p.g + stacked * inputs;
            const S* const offset = p.offset ? p.offset + stacked * inputs : nullptr;
            const S* const scale = p.unit_seed && p.cotangent ? p.cotangent + begin : nullptr;
            tile.each(
                inputs,
                [&](int row, int column) {
                    return (scale ? T(scale[row]) : T(1)) * tile.sum(row, column) -
                           (offset ? T(offset[row * inputs + column]) : T(0));
                },
                [&](int row, int column, bool valid, T value) {
                    if (!valid) return;
                    g[row * inputs + column] = narrow<S>(value);
                    tile.sum(row, column) = value;
                });
            for (int row = threadIdx.x / 32; row < tile.rows; row += warps) {
                T squares = 0;
                for (int column = threadIdx.x % 32; column < inputs; column += 32)
                    squares += tile.sum(row, column) * tile.sum(row, column);
                squares = warp_sum(squares);
                if (threadIdx.x % 32 == 0) p.norms[begin + row] = k ? p.norms[begin + row] + squares : squares;
            }
        }
    }
}

// Kernel push_adjoint: sweeps 3 and 4 of an MLP, but for the parameters' gradients
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      memory, but 128 wide on CUDA cores by multiply-adds
//   registers  224 in float64, else 128
//   tensor     TF32|Halves
//
// Global memory, in numbers a row: K d of g's adjoint in; K N states and, where a layer bends, K N cotangents in; K N
// tangents out; of bent layers in 16 bits, 2 N for second-order terms, which else lie where adjoints will; N adjoints
// out, n and d of y's and x's; and W once a block. States and second-order terms of the adjoint sweep, and what several
// k have in common, come from the second-level cache. Operations a row: 2 (1 + K) W; 2 K W if nothing bends or comes
// from above; 2 W of a task alone. Shared memory: as forward_pull, and with a loss a tile of outputs.
template <class Arithmetic, int tile_rows>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    push_adjoint(const __grid_constant__ PushAdjoint<typename Arithmetic::Storage> p) {
    using S = typename Arithmetic::Storage;
    using T = Wide<S>;
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    Tile<Arithmetic, tile_rows> tile(p, memory);
    const int inputs = p.layers[0].inputs, outputs = p.layers[p.depth - 1].outputs;
    const bool bent = p.stack && p.target.loss != Loss::None;

    for (int64_t number = blockIdx.x; number * tile_rows < p.rows; number += gridDim.x) {
        tile.start(number);
        const int64_t begin = tile.begin;

        for (int k = 0; k < (p.push_depth ? p.stack : 0); ++k) {
            const int64_t stacked = k * p.rows + begin;
            const S* const gbar = p.gbar + stacked * inputs;
            const T* const scale = p.norm_weights ? p.norm_weights + begin : nullptr;
            tile.fill(inputs, [&](int row, int column) {
                return (scale ? 2 * scale[row] : T(1)) * T(gbar[row * inputs + column]);
            });
            for (int l = 0; l < p.push_depth; ++l) {
                const Layer<S>& layer = p.layers[l];
                const int width = layer.outputs;
                const S* const state = layer.state + begin * width;
                const S* const u = layer.cotangent + stacked * width;
                S* const tangent = layer.tangent ? layer.tangent + stacked * width : nullptr;
                T* const second = layer.second ? layer.second + begin * width : nullptr;
                const bool ends = bent && l == p.depth - 1;
                tile.template product<false>(layer);
                tile.each_derivative(
                    layer,
                    [&](int row, int column) {
                        const int at = row * width + column;
                        return Loaded<T>{T(state[at]), second ? T(u[at]) : T(0), second && k ? second[at] : T(0)};
                    },
                    [&](int row, int column, bool valid, Loaded<T> at, Derivatives<T> phi) {
                        const T zdot = valid ? tile.sum(row, column) : T(0), hdot = phi.slope * zdot;
                        tile.set(row, column, hdot);
                        if (!valid) return;
                        if (tangent) tangent[row * width + column] = narrow<S>(hdot);
                        if (second) second[row * width + column] = at.second + phi.bend * at.first * zdot;
                        if (ends) tile.sum(row, column) = hdot;
                    });
            }
        }

        if (bent && p.highest >= 0) {  // the result, ydot, becomes the Hessian's product with it
            const Layer<S>& layer = p.layers[p.depth - 1];
            T* const y = reinterpret_cast<T*>(memory + p.spare_place);
            const int distance = leading(outputs, sizeof(T));
            const S* const state = layer.state + begin * outputs;
            tile.each_derivative(
                layer, [&](int row, int column) { return Loaded<T>{T(state[row * outputs + column]), T(0), T(0)}; },
                [&](int row, int column, bool valid, Loaded<T>, Derivatives<T> phi) {
                    if (valid) y[row * distance + column] = phi.value;
                });
            __syncthreads();
            for (int row = threadIdx.x; row < tile.rows; row += threads)
                multiply_by_hessian(p.target, begin + row, outputs, y + row * distance, &tile.sum(row, 0));
            __syncthreads();
        }
        for (int l = p.highest; l >= p.lowest; --l) {
            const Layer<S>& layer = p.layers[l];
            const int width = layer.outputs;
            const S* const state = layer.state + begin * width;
            const T* const second = layer.second ? layer.second + begin * width : nullptr;
            S* const adjoint = layer.adjoint ? layer.adjoint + begin * width : nullptr;
            const bool last = l == p.depth - 1, below = l < p.highest || (last && bent);
            const S* const ybar = last && p.ybar && p.descends ? p.ybar + begin * width : nullptr;
            tile.each_derivative(
                layer,
                [&](int row, int column) {
                    const int at = row * width + column;
                    const T d = (below ? tile.sum(row, column) : T(0)) + (ybar ? T(ybar[at]) : T(0));
                    return Loaded<T>{T(state[at]), d, second ? second[at] : T(0)};
                },
                [&](int row, int column, bool valid, Loaded<T> at, Derivatives<T> phi) {
                    const T d_z = valid ? phi.slope * at.first + at.second : T(0);
                    tile.set(row, column, d_z);
                    if (valid && adjoint) adjoint[row * width + column] = narrow<S>(d_z);
                });
            if (l > p.lowest || p.xbar) tile.template product<true>(layer);
        }

        if (!p.xbar) continue;
        const bool scaled = p.highest < 0 && p.proportional && p.ybar;  // xbar = ybar u W, or zero
        if (scaled) {
            const Layer<S>& layer = p.layers[0];
            const int width = layer.outputs;
            const S *const state = layer.state + begin * width, *const u = layer.cotangent + begin * width;
            tile.each_derivative(
                layer,
                [&](int row, int column) {
                    const int at = row * width + column;
                    return Loaded<T>{T(state[at]), T(u[at]), T(0)};
                },
                [&](int row, int column, bool valid, Loaded<T> at, Derivatives<T> phi) {
                    tile.set(row, column, valid ? phi.slope * at.first : T(0));
                });
            tile.template product<true>(layer);
        }
        S* const xbar = p.xbar + begin * inputs;
        tile.each(
            inputs,
            [&](int row, int column) {
                if (p.highest >= 0) return tile.sum(row, column);
                return scaled ? T(p.ybar[begin + row]) * tile.sum(row, column) : T(0);
            },
            [&](int row, int column, bool valid, T value) {
                if (valid) xbar[row * inputs + column] = narrow<S>(value);
            });
    }
}

// Kernel gradients: of an MLP's weights and biases
//   dtypes     float32 float64 tf32 bfloat16 float16
//   bound      64 wide, memory; 128 wide, memory on tensor cores and multiply-adds on CUDA cores
//   registers  224 in float64, else 128
//   tensor     TF32|Halves
//
// A tile of a layer's weight a block, over a slice of the batch's lines. A line is a tangent with its cotangent, of
// which there are K B, or a state with its adjoint; of proportional ones, a tangent is c hdot + ybar h. What the sweeps
// did not store is computed from the states. Slices are added in their order: no atomic operations, the same bits every
// time.
//
// Global memory, in numbers a row: K N cotangents, states and tangents in, N adjoints, and N states as inputs; once
// more from the second-level cache for each further tile of a layer. Operations a row: 2 (1 + K) W, of proportional
// ones 2 W. Shared memory: 192 rows of 32 lines.
template <class Arithmetic>
__global__ void __launch_bounds__(threads, least_blocks<typename Arithmetic::Storage>)
    gradients(const __grid_constant__ PushAdjoint<typename Arithmetic::Storage> p) {
    using S = typename Arithmetic::Storage;
    using Element = typename Arithmetic::Element;
    using T = Wide<S>;
    constexpr int distance = leading(gradient_lines, sizeof(Element));
    static_assert(threads == 8 * gradient_lines);
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    Element* const left = reinterpret_cast<Element*>(memory);  // [gradient_rows, lines]
    Element* const right = left + gradient_rows * distance;    // [gradient_columns, lines]

    int l = 0, item = blockIdx.x;
    for (; item >= gradient_tiles(p.layers[l]); ++l)
        item -= gradient_tiles(p.layers[l]);
    const Layer<S>& layer = p.layers[l];
    const int tiles_down = (layer.outputs + gradient_rows - 1) / gradient_rows;
    const int first_row = item % tiles_down * gradient_rows, first_column = item / tiles_down * gradient_columns;
    const int height = layer.outputs - first_row < gradient_rows ? layer.outputs - first_row : gradient_rows;
    const int rest = layer.inputs - first_column;
    const int width = !layer.weight_gradient ? 0 : rest < gradient_columns ? rest : gradient_columns;
    const bool with_bias = layer.bias_gradient && first_column == 0;

    // A thread loads the same line of every eight columns: a warp's stores, 4 lines of 8 columns, meet all banks.
    const int place = threadIdx.x % 8, own_line = threadIdx.x / 8;
    constexpr int own_rows = gradient_rows / 8;
    const int64_t lines = gradient_lines_of(p, l), tangents = p.rows * p.stack;
    const int64_t turns = (lines + gradient_lines - 1) / gradient_lines;
    const int64_t begin = turns * blockIdx.y / gridDim.y * gradient_lines;
    const int64_t end = turns * (blockIdx.y + 1) / gridDim.y * gradient_lines;

    Accumulator<Arithmetic, gradient_rows, false> sums;
    sums.clear();
    T bias_sums[own_rows] = {};
    for (int64_t first = begin; first < end; first += gradient_lines) {
        const int64_t line = first + own_line;
        const bool there = line < lines, tangent = line < tangents;
        const int64_t b = tangent ? line % p.rows : line - tangents;
        __syncthreads();  // the operands have been read
        const S* const state = layer.state + b * layer.outputs;
        const S* const u = layer.cotangent + line * layer.outputs;
        const S* const adjoint = layer.adjoint + b * layer.outputs;
        const T weight = !tangent ? T(1) : p.proportional && p.ybar ? T(p.ybar[b]) : T(0);  // of the line, in the bias
        with_activation<T>(layer.kind, layer.settings, [&](auto activation) {
#pragma unroll
            for (int i = 0; i < own_rows; ++i) {
                const int row = place + 8 * i, from = first_row + row;
                T value = 0;
                if (there && row < height)
                    value = tangent ? activation.derivatives(T(state[from])).slope * T(u[from]) : T(adjoint[from]);
                left[row * distance + own_line] = Arithmetic::element(value);
                bias_sums[i] += weight * value;
            }
        });
        if (width) {
            const Layer<S>& below = p.layers[l ? l - 1 : 0];
            const S* const h = (l ? below.state : p.x) + b * layer.inputs;
            const S* const dotted = (l ? below.tangent : p.gbar) + line * layer.inputs;
            const T scale = (l == 0 && p.norm_weights && tangent && there ? 2 * p.norm_weights[b] : T(1)) *
                            (p.proportional && p.cotangent && there ? T(p.cotangent[b]) : T(1));
            const T factor = !tangent ? T(1) : weight;  // of h
            const bool with_state = there && factor != T(0);
            const auto columns = [&](auto value_of) {
#pragma unroll 4
                for (int i = 0; i < gradient_columns / 8; ++i) {
                    const int column = place + 8 * i, from = first_column + column;
                    if (8 * i >= padded(width, sizeof(Element))) break;
                    T value = 0;
                    if (there && column < width) {
                        if (tangent) value = scale * T(dotted[from]);
                        if (with_state) value += factor * value_of(T(h[from]));
                    }
                    right[column * distance + own_line] = Arithmetic::element(value);
                }
            };
            if (l == 0)
                columns([](T value) { return value; });
            else
                with_activation<T>(below.kind, below.settings, [&](auto activation) {
                    columns(
                        [&](T value) { return activation.from_output ? value : activation.derivatives(value).value; });
                });
        }
        __syncthreads();  // they are there
        sums.add(left, distance, right, distance, padded(width, sizeof(Element)), gradient_lines);
    }

    T* const slice = p.slice_sums ? p.slice_sums + blockIdx.y * p.slice_size + layer.gradient_place : nullptr;
    sums.each(width, [&](int row, int column, T sum) {
        if (row >= height || column >= width) return;
        const int64_t at = int64_t(first_row + row) * layer.inputs + first_column + column;
        if (slice)
            slice[at] = sum;
        else
            layer.weight_gradient[at] = narrow<S>(sum);
    });
    if (!with_bias) return;
    T* const shared = reinterpret_cast<T*>(memory);  // [warps, gradient_rows]
    __syncthreads();
#pragma unroll
    for (int i = 0; i < own_rows; ++i) {
        T sum = bias_sums[i];
        sum += __shfl_xor_sync(~0u, sum, 8);
        sum += __shfl_xor_sync(~0u, sum, 16);
        if (threadIdx.x % 32 < 8) shared[threadIdx.x / 32 * gradient_rows + place + 8 * i] = sum;
    }
    __syncthreads();
    if (int(threadIdx.x) >= height) return;
    T sum = 0;
    for (int i = 0; i < warps; ++i)
        sum += shared[i * gradient_rows + threadIdx.x];
    if (slice)
        slice[int64_t(layer.outputs) * layer.inputs + first_row + threadIdx.x] = sum;
    else
        layer.bias_gradient[first_row + threadIdx.x] = narrow<S>(sum);
}

// Kernel add_slices: the gradients' sums over slices of the batch, a thread a number
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: every slice's numbers in, the gradients out
//   registers  64
template <class S>
__global__ void __launch_bounds__(threads) add_slices(const __grid_constant__ PushAdjoint<S> p) {
    const Layer<S>& layer = p.layers[blockIdx.y];
    const int64_t weights = int64_t(layer.outputs) * layer.inputs;
    for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < weights + layer.outputs;
         i += int64_t(gridDim.x) * threads) {
        S* const to = i < weights ? layer.weight_gradient : layer.bias_gradient;
        if (!to) continue;
        Wide<S> sum = 0;
        for (int slice = 0; slice < p.slices; ++slice)
            sum += p.slice_sums[slice * p.slice_size + layer.gradient_place + i];
        to[i < weights ? i : i - weights] = narrow<S>(sum);
    }
}

// Which kernels run, for a `launch(kernel, columns, rows of blocks, shared bytes, parameters)`.

template <class Arithmetic, class Launch>
void run_forward_pull(const ForwardPull<typename Arithmetic::Storage>& p, const Plan& plan, Launch&& launch) {
    const auto kernel = plan.rows == 64   ? forward_pull<Arithmetic, 64>
                        : plan.rows == 32 ? forward_pull<Arithmetic, 32>
                                          : forward_pull<Arithmetic, 16>;
    launch(kernel, plan.blocks, 1, plan.shared_bytes, p);
}

template <class Arithmetic, class Launch>
void run_push_adjoint(const PushAdjoint<typename Arithmetic::Storage>& p, const Plan& plan, Launch&& launch) {
    using Element = typename Arithmetic::Element;
    int items = 0;
    int64_t most = 0;
    for (int l = 0; l < p.depth; ++l) {
        items += gradient_tiles(p.layers[l]);
        most = std::max(most, int64_t(p.layers[l].outputs) * (p.layers[l].inputs + 1));
    }
    if (p.push_depth || p.highest >= 0 || p.xbar) {
        const auto kernel = plan.rows == 64   ? push_adjoint<Arithmetic, 64>
                            : plan.rows == 32 ? push_adjoint<Arithmetic, 32>
                                              : push_adjoint<Arithmetic, 16>;
        launch(kernel, plan.blocks, 1, plan.shared_bytes, p);
    }
    if (!items) return;
    constexpr int distance = leading(gradient_lines, sizeof(Element));
    constexpr int shared = (gradient_rows + gradient_columns) * distance * int(sizeof(Element));
    launch(gradients<Arithmetic>, items, p.slices, shared, p);
    if (p.slice_sums) launch(add_slices<typename Arithmetic::Storage>, int(ceiling(most, threads)), p.depth, 0, p);
}

}  // namespace gradreg_fast::cuda
