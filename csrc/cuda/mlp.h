// The sweeps of a fully connected network on a GPU, as the host sees them: plain pointers, no tensors, no CUDA.
//
// Three kernels (mlp.cuh) serve the two operations: `forward_pull`; `push_adjoint` and `gradients`, with `add_slices`
// behind it where a batch is cut into slices. All arrays are row-major without padding. A batch is cut into tiles of
// rows; a block carries one tile after another through its two sweeps, a cotangent of the stack at a time. `plan_...`
// decides everything that the sizes decide; `place_...` hands out memory.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/activation.h"
#include "common/loss.h"
#include "cuda/numbers.h"

namespace gradreg_fast::cuda {

constexpr int most_layers = 32;             // of a kernel's parameters, 4 KB
constexpr int gradient_rows = 64;           // a tile of a weight's gradient is [gradient_rows, gradient_columns]
constexpr int gradient_columns = 128;       // and sums over gradient_lines at a time
constexpr int gradient_lines = 32;          //
constexpr int64_t least_slice = 256;        // lines of a batch that pay for a block of their own
constexpr int blocks_each = 2;              // most blocks that share a multiprocessor: their registers allow it
constexpr int tile_sizes[] = {64, 32, 16};  // rows

template <class S>
struct Layer {
    int inputs, outputs;
    Kind kind;
    int weight_place;  // where the weight begins in shared memory, in elements
    Settings settings;
    const S* weight;         // [outputs, inputs]
    const S* bias;           // [outputs]; null: none
    S* state;                // what `derivatives` takes, [B, outputs]
    S* cotangent;            // u, of the layer's output, [K, B, outputs]; null: not kept
    S* tangent;              // of its output, [K, B, outputs]; null: not kept
    Wide<S>* second;         // phi'' sum_k u zdot, [B, outputs]; null: none
    S* adjoint;              // d_z, [B, outputs]; null: not kept
    S* weight_gradient;      // [outputs, inputs]; null: not wanted
    S* bias_gradient;        // [outputs]; null: not wanted
    int64_t gradient_place;  // of both in a slice
};

template <class S>
struct Network {
    Layer<S> layers[most_layers];
    int depth;
    int stack;  // K; 0 in the backward operation if nothing depends on g
    int64_t rows;
    bool unit_seed;  // pull ones and multiply g by the cotangent at the end (K = 1, one output)
    bool resident;   // all weights stay in shared memory, else one at a time
    int operand_place, result_place, spare_place;  // in shared memory, in bytes
    int widest;
    const S* x;          // [B, inputs]
    const S* cotangent;  // [K, B, outputs]; null: ones, or what the loss makes
    Target<S> target;
};

template <class S>
struct ForwardPull : Network<S> {
    bool keep;        // else a block has one tile's states, for itself
    const S* offset;  // [K, B, inputs], subtracted from g; null: nothing
    S* y;             // [B, outputs]
    S* g;             // [K, B, inputs]
    Wide<S>* norms;   // [B]: sum_k ||g^k||^2
};

template <class S>
struct PushAdjoint : Network<S> {
    bool proportional;            // d = ybar u: one output, piecewise linear, unit seed
    int push_depth;               // layers that the push sweep passes
    int highest;                  // layer where the adjoint sweep starts, -1: it does not
    int lowest;                   // and ends
    bool descends;                // adjoints come from above the highest layer, too
    const S* ybar;                // [B, outputs]; null: zero
    const S* gbar;                // [K, B, inputs]
    const Wide<S>* norm_weights;  // [B], of the norms: then gbar is g, and its adjoint 2 weight g; null: gbar as is
    S* xbar;                      // [B, inputs]; null: not wanted
    S* cotangent_bar;             // [K, B, outputs]; null: not wanted
    int slices;                   // of the batch, for the gradients
    Wide<S>* slice_sums;          // [slices, slice_size]; null: one slice, written as it is
    int64_t slice_size;
};

struct Device {
    int multiprocessors;
    int shared_bytes;   // that a block can have, and that a multiprocessor has but for 1 KB a block
    int tile_rows = 0;  // to measure with; 0: as many as plan_tiles, or tile_size, chooses
};

// With tile_rows of $GRADREG_FAST_TILE_ROWS.
Device current_device();

// How a kernel is launched.
struct Plan {
    int rows;  // a tile
    int blocks;
    int shared_bytes;
};

inline int64_t ceiling(int64_t count, int64_t parts) {
    return (count + parts - 1) / parts;
}

// Widths in shared memory, of numbers of so many bytes: rounded up to 32 bytes, and the distance of rows (product.cuh).
GRADREG_FAST_INLINE constexpr int padded(int width, int size) {
    return (width * size + 31) / 32 * 32 / size;
}
GRADREG_FAST_INLINE constexpr int leading(int width, int size) {
    return padded(width, size) + 16 / size;
}

// Of rows of results, which are as wide as products of operands make them.
template <class S>
GRADREG_FAST_INLINE constexpr int result_leading(int width) {
    return leading(padded(width, sizeof(S)), sizeof(Wide<S>));
}

GRADREG_FAST_INLINE constexpr bool is_straight(Kind kind) {
    return kind == Kind::Identity || kind == Kind::ReLU || kind == Kind::LeakyReLU;
}

// Numbers in what the first operation keeps for the second: each layer's states and cotangents.
template <class S>
int64_t kept_size(const Network<S>& network) {
    int64_t size = 0;
    for (int l = 0; l < network.depth; ++l)
        size += network.rows * (1 + network.stack) * network.layers[l].outputs;
    return size;
}

template <class S>
void place_kept(Network<S>& network, S* memory) {
    for (int l = 0; l < network.depth; ++l) {
        Layer<S>& layer = network.layers[l];
        layer.state = memory;
        layer.cotangent = layer.state + network.rows * layer.outputs;
        memory = layer.cotangent + network.rows * network.stack * layer.outputs;
    }
}

// The largest tile that keeps the device busy and fits into shared memory, with all weights if possible. False: none
// does. element_size: bytes of an operand; spare: whether a row of outputs is needed besides.
template <class S>
bool plan_tiles(Network<S>& network, bool spare, const Device& device, Plan& plan) {
    constexpr int size = sizeof(S), wide = sizeof(Wide<S>);
    int64_t all = 0, largest = 0;
    network.widest = network.layers[0].inputs;
    for (int l = 0; l < network.depth; ++l) {
        Layer<S>& layer = network.layers[l];
        const int64_t count = int64_t(padded(layer.outputs, size)) * leading(layer.inputs, size);
        network.widest = std::max(network.widest, layer.outputs);
        largest = std::max(largest, count);
        layer.weight_place = int(all);
        all = std::min<int64_t>(all + count, 1 << 30);
    }
    const int outputs = network.layers[network.depth - 1].outputs;
    for (const bool resident : {true, false})
        for (const int rows : tile_sizes) {
            const bool idle = ceiling(network.rows, rows) < device.multiprocessors;
            if (device.tile_rows ? rows != device.tile_rows : idle && rows != tile_sizes[2]) continue;
            const int64_t operand = size * (resident ? all : largest);
            const int64_t result = operand + int64_t(size) * rows * leading(network.widest, size);
            const int64_t last = result + int64_t(wide) * rows * result_leading<S>(network.widest);
            const int64_t bytes = last + (spare ? int64_t(wide) * rows * leading(outputs, wide) : 0);
            if (bytes > device.shared_bytes) continue;
            network.resident = resident;
            network.operand_place = int(operand);
            network.result_place = int(result);
            network.spare_place = int(last);
            for (int l = 0; l < network.depth && !resident; ++l)
                network.layers[l].weight_place = 0;
            const int64_t each = std::min<int64_t>(blocks_each, (device.shared_bytes + 1024) / (bytes + 1024));
            const int64_t tiles = std::max<int64_t>(ceiling(network.rows, rows), 1);
            plan = {rows, int(std::min(tiles, each * device.multiprocessors)), int(bytes)};
            return true;
        }
    return false;
}

// Numbers that states take where nothing is kept: a tile a block.
template <class S>
int64_t states_size(const Network<S>& network, const Plan& plan) {
    int64_t size = 0;
    for (int l = 0; l < network.depth; ++l)
        size += int64_t(plan.blocks) * plan.rows * network.layers[l].outputs;
    return size;
}

template <class S>
void place_states(Network<S>& network, const Plan& plan, S* memory) {
    for (int l = 0; l < network.depth; ++l) {
        network.layers[l].state = memory;
        network.layers[l].cotangent = nullptr;
        memory += int64_t(plan.blocks) * plan.rows * network.layers[l].outputs;
    }
}

// Tiles of a layer's gradient; 0: not wanted.
template <class S>
GRADREG_FAST_INLINE int gradient_tiles(const Layer<S>& layer) {
    if (!layer.weight_gradient && !layer.bias_gradient) return 0;
    return ((layer.outputs + gradient_rows - 1) / gradient_rows) *
           (layer.weight_gradient ? (layer.inputs + gradient_columns - 1) / gradient_columns : 1);
}

// Lines that a layer's gradient is a sum over: tangents with cotangents, and states with adjoints.
template <class S>
GRADREG_FAST_INLINE int64_t gradient_lines_of(const PushAdjoint<S>& p, int l) {
    return p.rows * (p.stack + (l <= p.highest ? 1 : 0));
}

// Which layers the sweeps pass, from the pointers that say what is given and wanted, and where gradients lie in a
// slice.
template <class S>
void plan_sweeps(PushAdjoint<S>& p, bool given_g) {
    const bool bent = given_g && p.target.loss != Loss::None;
    if (!given_g) p.stack = 0;
    p.proportional = p.unit_seed && given_g;
    p.descends = bent || (p.ybar && !p.proportional);
    p.lowest = 0;
    while (!p.xbar && p.lowest < p.depth - 1 && !gradient_tiles(p.layers[p.lowest]))
        ++p.lowest;
    p.highest = p.descends ? p.depth - 1 : -1;
    for (int l = 0; given_g && l < p.depth; ++l)
        if (!is_straight(p.layers[l].kind)) p.highest = std::max(p.highest, l);
    if (p.highest < p.lowest) p.highest = -1;
    p.push_depth = bent || p.cotangent_bar ? p.depth : 0;
    for (int l = 0; l < p.depth; ++l) {
        const bool bends = given_g && !is_straight(p.layers[l].kind) && l >= p.lowest;
        if (bends) p.push_depth = std::max(p.push_depth, l + 1);
        if (p.layers[l].weight_gradient) p.push_depth = std::max(p.push_depth, l);
    }
    if (!given_g) p.push_depth = 0;
    p.slice_size = 0;
    for (int l = 0; l < p.depth; ++l) {
        Layer<S>& layer = p.layers[l];
        layer.gradient_place = p.slice_size;
        p.slice_size += int64_t(layer.outputs) * (layer.inputs + 1);
    }
}

// The most lines that a layer's gradient sums over.
template <class S>
int64_t most_gradient_lines(const PushAdjoint<S>& p) {
    int64_t lines = 1;
    for (int l = 0; l < p.depth; ++l)
        if (gradient_tiles(p.layers[l])) lines = std::max(lines, gradient_lines_of(p, l));
    return lines;
}

// `kept` must have been placed.
template <class S>
bool plan_push_adjoint(PushAdjoint<S>& p, bool given_g, const Device& device, Plan& plan) {
    plan_sweeps(p, given_g);
    int items = 0;
    for (int l = 0; l < p.depth; ++l)
        items += gradient_tiles(p.layers[l]);
    p.slices = int(std::max<int64_t>(
        std::min(ceiling(most_gradient_lines(p), least_slice), ceiling(2 * device.multiprocessors, std::max(items, 1))),
        1));
    return plan_tiles(p, given_g && p.target.loss != Loss::None, device, plan);
}

// Hands out the backward operation's workspace: each layer's tangents, adjoints and second-order terms, and the slices'
// sums. Returns its bytes; null memory: only counts.
template <class S>
int64_t place_workspace(PushAdjoint<S>& p, char* memory) {
    int64_t used = 0;
    const auto take = [&](auto*& pointer, bool needed, int64_t count) {
        using T = std::remove_reference_t<decltype(*pointer)>;
        pointer = needed && memory ? reinterpret_cast<T*>(memory + used) : nullptr;
        if (needed) used += ceiling(count * int64_t(sizeof(T)), 256) * 256;
    };
    for (int l = 0; l < p.depth; ++l) {
        Layer<S>& layer = p.layers[l];
        const int64_t numbers = p.rows * layer.outputs;
        const bool above = l + 1 < p.depth && p.layers[l + 1].weight_gradient;
        take(layer.tangent, l < p.push_depth && above, numbers * p.stack);
        if (l == p.depth - 1) layer.tangent = p.cotangent_bar;
        take(layer.adjoint, l <= p.highest && gradient_tiles(layer), numbers);
        const bool bends = p.stack && l <= p.highest && l >= p.lowest && !is_straight(layer.kind);
        const bool shared = std::is_same_v<S, Wide<S>> && l <= p.highest && gradient_tiles(layer);
        take(layer.second, bends && !shared, numbers);
        if (bends && shared) layer.second = reinterpret_cast<Wide<S>*>(layer.adjoint);  // which takes its place
    }
    take(p.slice_sums, p.slices > 1, p.slices * p.slice_size);
    return used;
}

// What products are made of (product.cuh), and the operations made of these, each compiled in a file of its own. On the
// current device; launch errors raise std::runtime_error.
template <class N>
struct Exact;
struct TF32;
template <class Half>
struct Halves;

template <class Arithmetic, class S>
void launch_forward_pull(const ForwardPull<S>& p, const Plan& plan, void* stream);
template <class Arithmetic, class S>
void launch_push_adjoint(const PushAdjoint<S>& p, const Plan& plan, void* stream);

}  // namespace gradreg_fast::cuda
