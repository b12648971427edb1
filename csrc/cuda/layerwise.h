// The sweeps of a fully connected network whose layers are too wide for mlp.cuh: a product a layer and sweep, with the
// sweep's own epilogue (layerwise.cuh). The operations, and what they are given, are those of mlp.h.

#pragma once

#include "cuda/mlp.h"
#include "cuda/tiled.h"

namespace gradreg_fast::cuda {

// Beyond, a layer's product is a kernel's own. As WIDEST_TOGETHER in gradreg_fast/backend.py.
template <class S>
constexpr int widest_together = sizeof(S) > 4 ? 64 : 128;

template <class S>
bool is_layerwise(const Network<S>& network) {
    int widest = network.layers[0].inputs;
    for (int l = 0; l < network.depth; ++l)
        widest = std::max(widest, network.layers[l].outputs);
    return widest > widest_together<S>;
}

// Kinds whose `derivatives` take y: h is then the state.
GRADREG_FAST_INLINE constexpr bool keeps_output(Kind kind) {
    return kind == Kind::Identity || kind == Kind::ReLU || kind == Kind::Tanh || kind == Kind::Sigmoid;
}
// Kinds with slopes that vanish where they bend: phi'' u does not follow from phi' u.
GRADREG_FAST_INLINE constexpr bool bends_where_flat(Kind kind) {
    return kind == Kind::SiLU || kind == Kind::GELU || kind == Kind::GELUTanh || kind == Kind::Sine;
}

// What a layer keeps besides its `state` and `cotangent`, which is that of z here.
template <class S>
struct LayerwiseMemory {
    S* value[most_layers];  // h, [B, outputs]; the state where that is h
    S* above[most_layers];  // the cotangent of h, [K, B, outputs]; null: not kept
};

// A workspace that is handed out piece by piece; null memory: only counts.
struct Pieces {
    char* memory;
    int64_t used = 0;

    template <class T>
    T* take(bool needed, int64_t count) {
        T* const piece = needed && memory ? reinterpret_cast<T*>(memory + used) : nullptr;
        if (needed) used += ceiling(count * int64_t(sizeof(T)), 256) * 256;
        return piece;
    }
};

// Hands out what the first operation keeps for the second, or, if nothing is, what it needs itself. Returns its bytes.
template <class S>
int64_t place_layers(Network<S>& network, LayerwiseMemory<S>& also, bool keep, char* memory) {
    Pieces pieces{memory};
    S* turns[2][2] = {};
    int64_t most = 0;
    for (int l = 0; l < network.depth; ++l)
        most = std::max<int64_t>(most, network.layers[l].outputs);
    for (int i = 0; i < 2 && !keep; ++i) {
        turns[0][i] = pieces.take<S>(true, network.rows * most);
        turns[1][i] = pieces.take<S>(true, network.rows * network.stack * most);
    }
    for (int l = 0; l < network.depth; ++l) {
        Layer<S>& layer = network.layers[l];
        const int64_t numbers = network.rows * layer.outputs, stacked = network.stack * numbers;
        const bool apart = !keeps_output(layer.kind) && l < network.depth - 1;
        layer.state = pieces.take<S>(true, numbers);
        also.value[l] = !apart ? layer.state : keep ? pieces.take<S>(true, numbers) : turns[0][l % 2];
        layer.cotangent = keep ? pieces.take<S>(true, stacked) : turns[1][l % 2];
        also.above[l] = pieces.take<S>(keep && bends_where_flat(layer.kind), stacked);
    }
    return pieces.used;
}

// What epilogues need. Lines: of the product, K B; rows: B, of the activations.

// Behind x W^T: z = sums + bias, the state and h; or zdot = sums, hdot and the second-order term phi'' u zdot.
template <class S>
struct Up {
    int64_t lines, rows;
    int columns;
    Kind kind;
    Settings settings;
    bool push;
    const S* bias;    // [columns]; null: zero
    S* state;         // [B, columns]; given, in the push sweep; null: not wanted
    S* value;         // [B, columns]; null: not wanted
    const S* u;       // [K, B, columns], of h, or of z if `below`; read for `second`
    bool below;       //
    S* tangent;       // [K, B, columns]; null: not wanted
    Wide<S>* second;  // [K, B, columns]; null: not wanted
};

// Behind u W: v = sums is the cotangent, or adjoint, of the h that the product was of. Or without a product, v =
// source. Gives scale (phi' v + second) - offset.
template <class S>
struct Down {
    int64_t lines, rows;
    int columns;
    Kind kind;  // of the activation that made h; Identity: none
    Settings settings;
    const S* source;        // [K, B, columns]; null: ones, or zeros
    bool ones;              //
    const S* state;         // [B, columns]; null: none
    const Wide<S>* second;  // [B, columns]; null: zero
    const S* scale;         // [B]; null: ones
    const S* offset;        // [K, B, columns]; null: zero
    S* above;               // v itself, [K, B, columns]; null: not wanted
    S* result;              // [K, B, columns]
};

// A layer's gradients: sums over K B lines of u and xdot and, behind them, B of d and x.
template <class S>
struct LayerGradient {
    const S *u, *xdot, *d, *x;
    S* weight_gradient;  // [outputs, inputs]; null: not wanted
    S* bias_gradient;    // [outputs], the sum of bias_lines, weighted by bias_weights; null: not wanted
    const S* bias_lines;
    const S* bias_weights;
    int outputs, inputs;
    int64_t place;  // of both in a slice
    bool adjoints;  // d and x are there
};

template <class S>
struct Gradients {
    LayerGradient<S> layers[most_layers];
    int depth, size;  // of a tile
    int64_t rows, stacked;
    int slices;
    Wide<S>* slice_sums;  // [slices, slice_size]; null: one slice, written as it is
    int64_t slice_size;
};
static_assert(sizeof(Gradients<double>) <= 4096, "what a kernel's parameters may take");

// The loss on top: its gradient u in y; or, of a tangent, d = H ydot + ybar.
template <class S>
struct OnTop {
    int64_t rows;
    int columns;
    Kind kind;
    Settings settings;
    Target<S> target;
    const S* state;
    const S* tangent;  // null: the gradient
    const S* ybar;     // null: zero
    Wide<S>* scratch;  // [2, B, columns]
    S* result;
};

// result = first a + second b, a line at a time.
template <class S>
struct Combination {
    int64_t lines, rows;
    int columns;
    const S* a;              // [K, B, columns]
    const Wide<S>* doubled;  // [B]: a's factor is twice this; null: 1
    const S* first;          // [B], a further factor of a; null: 1
    const S* b;              // [B, columns]; null: zero
    const S* second;         // [B], b's
    S* result;               // [K, B, columns], perhaps a
};

// sums [B, columns] of a stack's terms.
template <class S>
struct StackSums {
    int64_t rows, stack;
    int columns;
    const Wide<S>* terms;
    Wide<S>* sums;
};

// Lines of the batch, per slice of the gradients.
GRADREG_FAST_INLINE constexpr int64_t slice_lines(int64_t lines, int slices, int depth) {
    return ((lines + slices - 1) / slices + depth - 1) / depth * depth;
}

// Tiles of a layer's weight's gradient.
template <class S>
GRADREG_FAST_INLINE int layer_tiles(const LayerGradient<S>& layer, int size) {
    return layer.weight_gradient ? ((layer.outputs + size - 1) / size) * ((layer.inputs + size - 1) / size) : 0;
}

// The larger tile if there are enough to keep the device busy.
template <class S>
int tile_size(int64_t rows, int64_t columns, const Device& device) {
    if (device.tile_rows == small_tile || device.tile_rows == large_tile<S>) return device.tile_rows;
    const int64_t tiles = ceiling(rows, large_tile<S>) * ceiling(columns, large_tile<S>);
    return tiles >= device.multiprocessors ? large_tile<S> : small_tile;
}

// What the second operation needs between its kernels.
template <class S>
struct LayerwiseWorkspace {
    S* slope;                      // 2 weight g, [K, B, inputs]; null: the adjoint of g is given
    S* tangent[most_layers];       // of h, [K, B, outputs]; null: not needed
    S* combined;                   // c xdot + ybar x of the first layer, [B, inputs]; null: not needed
    S* top;                        // the loss's [B, outputs]
    S* adjoint[most_layers];       // d_z, [B, outputs]
    Wide<S>* second[most_layers];  // [B, outputs]
    Wide<S>* terms;                // of several cotangents, [K, B, outputs] of the widest layer
    Wide<S>* scratch;              // [2, B, outputs] of the last
    Wide<S>* slice_sums;
};

// Sizes of p must have been set by plan_sweeps. Returns bytes; null memory: only counts.
template <class S>
int64_t place_layerwise(const PushAdjoint<S>& p, char* memory, LayerwiseWorkspace<S>& space) {
    Pieces pieces{memory};
    const int last = p.depth - 1, inputs = p.layers[0].inputs;
    const bool bent = p.stack && p.target.loss != Loss::None;
    const bool first_gradient = p.layers[0].weight_gradient;
    int64_t widest = 0;
    space.slope =
        pieces.take<S>(p.stack && p.norm_weights && (p.push_depth || first_gradient), p.rows * p.stack * inputs);
    space.combined = pieces.take<S>(p.proportional && first_gradient, p.rows * inputs);
    for (int l = 0; l <= last; ++l) {
        const Layer<S>& layer = p.layers[l];
        const int64_t numbers = p.rows * layer.outputs;
        const bool above = l < last && (p.layers[l + 1].weight_gradient || l + 1 < p.push_depth);
        const bool bends = p.stack && l <= p.highest && l >= p.lowest && !is_straight(layer.kind);
        space.tangent[l] = pieces.take<S>(l < p.push_depth && (above || (l == last && bent)), numbers * p.stack);
        if (l == last && p.cotangent_bar) space.tangent[l] = p.cotangent_bar;
        space.adjoint[l] = pieces.take<S>(l <= p.highest && l >= p.lowest, numbers);
        space.second[l] = pieces.take<Wide<S>>(bends, numbers);
        if (bends) widest = std::max<int64_t>(widest, layer.outputs);
    }
    space.terms = pieces.take<Wide<S>>(p.stack > 1 && widest, p.rows * p.stack * widest);
    space.top = pieces.take<S>(bent, p.rows * p.layers[last].outputs);
    space.scratch = pieces.take<Wide<S>>(bent, 2 * p.rows * p.layers[last].outputs);
    space.slice_sums = pieces.take<Wide<S>>(p.slices > 1, p.slices * p.slice_size);
    return pieces.used;
}

// The first operation's workspace: the loss's gradient and what it is made in.
template <class S>
int64_t place_top(const ForwardPull<S>& p, char* memory, S*& top, Wide<S>*& scratch) {
    Pieces pieces{memory};
    const bool needed = p.target.loss != Loss::None && p.stack;
    const int64_t numbers = p.rows * p.layers[p.depth - 1].outputs;
    top = pieces.take<S>(needed, numbers);
    scratch = pieces.take<Wide<S>>(needed, 2 * numbers);
    return pieces.used;
}

// Which layers the sweeps pass, and the tiles and slices of the gradients.
template <class S>
void plan_layerwise(PushAdjoint<S>& p, bool given_g, const Device& device, int& size) {
    plan_sweeps(p, given_g);
    for (size = large_tile<S>;; size = small_tile) {
        int64_t tiles = 0;
        for (int l = 0; l < p.depth; ++l)
            if (p.layers[l].weight_gradient)
                tiles += ceiling(p.layers[l].outputs, size) * ceiling(p.layers[l].inputs, size);
        p.slices = int(std::min(ceiling(most_gradient_lines(p), least_slice),
                                ceiling(device.multiprocessors, std::max<int64_t>(tiles, 1))));
        if (size == small_tile || tiles * p.slices >= device.multiprocessors) return;
    }
}

template <class Arithmetic, class S>
void launch_layerwise_forward_pull(const ForwardPull<S>& p, const LayerwiseMemory<S>& also, char* workspace,
                                   const Device& device, void* stream);
template <class Arithmetic, class S>
void launch_layerwise_push_adjoint(const PushAdjoint<S>& p, const LayerwiseMemory<S>& also, char* workspace, int size,
                                   const Device& device, void* stream);

}  // namespace gradreg_fast::cuda
