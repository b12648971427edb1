// The four sweeps over one tile of rows after another, a template over the register's size.
//
// A tile's activations, cotangents and tangents stay in cache from the first layer to the last and back; only what the
// second operation needs (`Layer::state`, `Layer::cotangent`) goes to memory.

#pragma once

#include "cpu/mlp.h"
#include "cpu/product.h"

namespace gradreg_fast {

// Hands out pieces of a thread's scratch memory, or only counts them.
template <class T>
struct Arena {
    T* base;
    int64_t used = 0;
    T* take(int64_t count) {
        T* piece = base ? base + used : nullptr;
        used += count;
        return piece;
    }
};

// Calls `function` with the activation of this kind.
template <class Math, class Function>
GRADREG_FAST_INLINE void with_activation(Kind kind, Settings settings, Function&& function) {
    switch (kind) {
        case Kind::Identity:
            return function(Identity<Math>(settings));
        case Kind::ReLU:
            return function(ReLU<Math>(settings));
        case Kind::LeakyReLU:
            return function(LeakyReLU<Math>(settings));
        case Kind::Softplus:
            return function(Softplus<Math>(settings));
        case Kind::Tanh:
            return function(Tanh<Math>(settings));
        case Kind::Sigmoid:
            return function(Sigmoid<Math>(settings));
        case Kind::SiLU:
            return function(SiLU<Math>(settings));
        case Kind::GELU:
            return function(GELU<Math>(settings));
        case Kind::GELUTanh:
            return function(GELUTanh<Math>(settings));
        case Kind::Sine:
            return function(Sine<Math>(settings));
        case Kind::Count:
            return;
    }
}

template <class T, int Bytes>
struct Sweeps {
    using V = Vector<T, Bytes>;
    using Math = VectorMath<T, Bytes>;
    using Register = typename V::T;
    static constexpr int lanes = V::lanes;

    // h = phi(z) over `count` numbers; z becomes what is kept. Returns where h is: in place of z, or in `h`.
    static T* evaluate(const Layer<T>& layer, int64_t count, T* z, T* h) {
        T* result = h;
        with_activation<Math>(layer.kind, layer.settings, [&](auto activation) {
            if (activation.from_output) result = z;
            for (int64_t i = 0; i < count; i += lanes)
                V::store(result + i, activation.value(V::load(z + i)));
        });
        return result;
    }

    // u_z = phi'(z) u.
    static void pull(const Layer<T>& layer, int64_t rows, int64_t stack, const T* state, const T* u, T* u_z) {
        const int64_t stride = layer.output_stride;
        with_activation<Math>(layer.kind, layer.settings, [&](auto activation) {
            for (int64_t b = 0; b < rows; ++b)
                for (int64_t i = 0; i < stride; i += lanes) {
                    const Register slope = activation.derivatives(V::load(state + b * stride + i)).slope;
                    for (int64_t k = 0; k < stack; ++k) {
                        const int64_t at = (b * stack + k) * stride + i;
                        V::store(u_z + at, slope * V::load(u + at));
                    }
                }
        });
    }

    // Where tangent and cotangent meet: h, phi', u_z = phi' u, hdot = phi' zdot and second = phi'' sum_k u^k zdot^k.
    static void meet(const Layer<T>& layer, int64_t rows, int64_t stack, const T* state, const T* u, const T* zdot,
                     T* h, T* slopes, T* u_z, T* hdot, T* second) {
        const int64_t stride = layer.output_stride;
        with_activation<Math>(layer.kind, layer.settings, [&](auto activation) {
            for (int64_t b = 0; b < rows; ++b)
                for (int64_t i = 0; i < stride; i += lanes) {
                    const auto kept = activation.derivatives(V::load(state + b * stride + i));
                    V::store(h + b * stride + i, kept.value);
                    V::store(slopes + b * stride + i, kept.slope);
                    Register sum{};
                    for (int64_t k = 0; k < stack; ++k) {
                        const int64_t at = (b * stack + k) * stride + i;
                        const Register cotangent = V::load(u + at), tangent = V::load(zdot + at);
                        V::store(u_z + at, kept.slope * cotangent);
                        V::store(hdot + at, kept.slope * tangent);
                        sum += cotangent * tangent;
                    }
                    if constexpr (!activation.curvature_free) V::store(second + b * stride + i, kept.bend * sum);
                }
        });
    }

    // z = h W^T (+ b): rows [rows, input_stride] to [rows, output_stride].
    static void up(const Layer<T>& layer, int64_t rows, const T* h, T* z, const T* bias) {
        if (is_narrow<T, Bytes>(layer.outputs, layer.output_stride, layer.inputs, layer.input_stride))
            return narrow_product<T, Bytes>(rows, layer.outputs, layer.input_stride, h, layer.input_stride,
                                            layer.weight, layer.input_stride, z, layer.output_stride, bias);
        product<T, Bytes, false>(rows, layer.output_stride, layer.inputs, h, layer.input_stride, layer.transposed,
                                 layer.output_stride, z, layer.output_stride, bias ? Start::Bias : Start::Zero, bias);
    }

    // u W: rows [rows, output_stride] to [rows, input_stride].
    static void down(const Layer<T>& layer, int64_t rows, const T* u, T* below) {
        if (is_narrow<T, Bytes>(layer.inputs, layer.input_stride, layer.outputs, layer.output_stride))
            return narrow_product<T, Bytes>(rows, layer.inputs, layer.output_stride, u, layer.output_stride,
                                            layer.transposed, layer.output_stride, below, layer.input_stride, nullptr);
        product<T, Bytes, false>(rows, layer.input_stride, layer.outputs, u, layer.output_stride, layer.weight,
                                 layer.input_stride, below, layer.input_stride, Start::Zero);
    }

    // Add sum_r left_r (x) right_r, [rows, output_stride] and [rows, input_stride], to the weight's gradient.
    static void add_outer(const Layer<T>& layer, const LayerGradient<T>& gradient, int64_t rows, const T* left,
                          const T* right, bool accumulate) {
        if (gradient.weight == nullptr) return;
        const Start start = accumulate ? Start::Accumulate : Start::Zero;
        if (gradient.transposed)
            product<T, Bytes, true>(layer.inputs, layer.output_stride, rows, right, layer.input_stride, left,
                                    layer.output_stride, gradient.weight, layer.output_stride, start);
        else
            product<T, Bytes, true>(layer.outputs, layer.input_stride, rows, left, layer.output_stride, right,
                                    layer.input_stride, gradient.weight, layer.input_stride, start);
    }

    // Add sum_r factor_r row_r to the bias's gradient; null: factors one.
    static void add_rows(const Layer<T>& layer, const LayerGradient<T>& gradient, int64_t rows, const T* matrix,
                         const T* factor, bool accumulate) {
        if (gradient.bias == nullptr) return;
        const int64_t stride = layer.output_stride;
        for (int64_t i = 0; i < stride; i += lanes) {
            Register sum = accumulate ? V::load(gradient.bias + i) : Register{};
            for (int64_t b = 0; b < rows; ++b) {
                const Register row = V::load(matrix + b * stride + i);
                sum += factor ? row * factor[b] : row;
            }
            V::store(gradient.bias + i, sum);
        }
    }

    // [width] to [stride], zeros behind.
    static void pad_row(const T* from, int64_t width, T* to, int64_t stride) {
        __builtin_memcpy(to, from, width * sizeof(T));
        for (int64_t i = width; i < stride; ++i)
            to[i] = T(0);
    }

    // Rows [begin, begin + rows) of a stack [K, B, width] to interleaved, padded ones.
    static void gather(const T* from, int64_t batch, int64_t begin, int64_t rows, int64_t stack, int64_t width, T* to,
                       int64_t stride) {
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t k = 0; k < stack; ++k)
                pad_row(from + (k * batch + begin + b) * width, width, to + (b * stack + k) * stride, stride);
    }

    // And back, times a factor for each sample.
    static void scatter(const T* from, int64_t stride, int64_t batch, int64_t begin, int64_t rows, int64_t stack,
                        int64_t width, T* to, const T* factor) {
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t k = 0; k < stack; ++k) {
                const T* row = from + (b * stack + k) * stride;
                T* target = to + (k * batch + begin + b) * width;
                const T scale = factor ? factor[begin + b] : T(1);
                for (int64_t i = 0; i < width; ++i)
                    target[i] = scale * row[i];
            }
    }

    static int64_t widest(const Layer<T>* layers, int64_t depth) {
        int64_t width = layers[0].input_stride;
        for (int64_t l = 0; l < depth; ++l)
            width = layers[l].output_stride > width ? layers[l].output_stride : width;
        return width;
    }

    // Sweeps 1 and 2 for rows [begin, begin + rows); with a counting arena, only what they need.
    static void forward_tile(const ForwardPull<T>& p, int64_t begin, int64_t rows, Arena<T>& arena) {
        const int64_t width = widest(p.layers, p.depth), stack = p.stack;
        T* h = arena.take(rows * width);
        T* u_z = arena.take(rows * stack * width);
        T* u_spare = arena.take(rows * stack * width);
        T* states[max_depth];
        for (int64_t l = 0; l < p.depth; ++l) {
            const int64_t stride = p.layers[l].output_stride;
            states[l] = p.layers[l].state ? p.layers[l].state + begin * stride : arena.take(rows * stride);
        }
        if (arena.base == nullptr) return;

        const Layer<T>& first = p.layers[0];
        const Layer<T>& last = p.layers[p.depth - 1];
        gather(p.x, p.rows, begin, rows, 1, first.inputs, h, first.input_stride);
        T* below = h;
        for (int64_t l = 0; l < p.depth; ++l) {
            const Layer<T>& layer = p.layers[l];
            up(layer, rows, below, states[l], layer.bias);
            below = evaluate(layer, rows * layer.output_stride, states[l], h);
        }
        scatter(below, last.output_stride, p.rows, begin, rows, 1, last.outputs, p.y, nullptr);
        if (stack == 0) return;

        T* u = cotangent_of(last, begin, stack, u_spare);
        if (p.cotangent && !p.unit_seed)
            gather(p.cotangent, p.rows, begin, rows, stack, last.outputs, u, last.output_stride);
        else
            for (int64_t i = 0; i < rows * stack * last.output_stride; ++i)
                u[i] = T(1);
        for (int64_t l = p.depth - 1; l >= 0; --l) {
            const Layer<T>& layer = p.layers[l];
            pull(layer, rows, stack, states[l], u, u_z);
            u = l > 0 ? cotangent_of(p.layers[l - 1], begin, stack, u_spare) : u_spare;
            down(layer, rows * stack, u_z, u);
        }
        scatter(u, first.input_stride, p.rows, begin, rows, stack, first.inputs, p.g,
                p.unit_seed ? p.cotangent : nullptr);
    }

    static T* cotangent_of(const Layer<T>& layer, int64_t begin, int64_t stack, T* spare) {
        return layer.cotangent ? layer.cotangent + begin * stack * layer.output_stride : spare;
    }

    // Sweeps 3 and 4. Each layer keeps the two sides of its weight's gradient, [K tangents; 1 adjoint] a sample:
    // left = [u_z; d_z] and right = [hdot; h], so that one product over all rows gives it.
    static void backward_tile(const PushAdjoint<T>& p, int64_t begin, int64_t rows, bool accumulate, Arena<T>& arena) {
        const bool descend = p.ybar != nullptr && !p.proportional;       // ordinary adjoints come from above
        const bool adjoint = descend || (!p.curvature_free && p.stack);  // or arise on the way
        const int64_t stacked = rows * p.stack, width = widest(p.layers, p.depth);
        T *left[max_depth], *right[max_depth + 1], *slopes[max_depth], *second[max_depth];
        right[0] = arena.take((stacked + rows) * p.layers[0].input_stride);
        for (int64_t l = 0; l < p.depth; ++l) {
            const int64_t stride = p.layers[l].output_stride;
            right[l + 1] = arena.take((stacked + rows) * stride);
            left[l] = arena.take((stacked + rows) * stride);
            slopes[l] = arena.take(rows * stride);
            second[l] = arena.take(rows * stride);
        }
        T* zdot = arena.take((stacked > rows ? stacked : rows) * width);  // and the adjoint on its way down
        if (arena.base == nullptr) return;

        const Layer<T>& first = p.layers[0];
        const Layer<T>& last = p.layers[p.depth - 1];
        if (p.stack) gather(p.gbar, p.rows, begin, rows, p.stack, first.inputs, right[0], first.input_stride);
        gather(p.x, p.rows, begin, rows, 1, first.inputs, right[0] + stacked * first.input_stride, first.input_stride);
        for (int64_t l = 0; l < p.depth; ++l) {
            const Layer<T>& layer = p.layers[l];
            const int64_t stride = layer.output_stride;
            if (p.stack) up(layer, stacked, right[l], zdot, nullptr);
            meet(layer, rows, p.stack, layer.state + begin * stride,
                 p.stack ? layer.cotangent + begin * p.stack * stride : nullptr, zdot, right[l + 1] + stacked * stride,
                 slopes[l], left[l], right[l + 1], second[l]);
            if (!adjoint) add_without_adjoint(p, l, begin, rows, left[l], right[l], accumulate);
        }
        if (p.cotangent_bar)
            scatter(right[p.depth], last.output_stride, p.rows, begin, rows, p.stack, last.outputs, p.cotangent_bar,
                    nullptr);
        if (!adjoint) {
            if (p.xbar) proportional_xbar(p, begin, rows, left[0], zdot);
            return;
        }

        T* d = zdot;
        if (descend) gather(p.ybar, p.rows, begin, rows, 1, last.outputs, d, last.output_stride);
        bool present = descend;
        for (int64_t l = p.depth - 1; l >= p.lowest; --l) {
            const Layer<T>& layer = p.layers[l];
            T* d_z = left[l] + stacked * layer.output_stride;
            const bool curved = p.stack && !is_curvature_free(layer.kind);
            combine(rows * layer.output_stride, slopes[l], present ? d : nullptr, curved ? second[l] : nullptr, d_z);
            present = present || curved;
            const LayerGradient<T>& gradient = p.gradients[l];
            add_outer(layer, gradient, present ? stacked + rows : stacked, left[l], right[l], accumulate);
            add_rows(layer, gradient, present ? rows : 0, d_z, nullptr, accumulate);
            if (present && (l > p.lowest || p.xbar)) down(layer, rows, d_z, d);
        }
        if (p.xbar) scatter(d, first.input_stride, p.rows, begin, rows, 1, first.inputs, p.xbar, nullptr);
    }

    // d_z = phi' d + second; absent terms are zero.
    static void combine(int64_t count, const T* slopes, const T* d, const T* second, T* d_z) {
        for (int64_t i = 0; i < count; i += lanes) {
            Register sum = second ? V::load(second + i) : Register{};
            if (d) sum += V::load(slopes + i) * V::load(d + i);
            V::store(d_z + i, sum);
        }
    }

    // A layer's gradients where no adjoint flows. Proportional: d = ybar u and hdot is scaled by the cotangent, so that
    // one product over B rows, u (x) (c hdot + ybar h), is the weight's gradient of penalty and task together.
    static void add_without_adjoint(const PushAdjoint<T>& p, int64_t l, int64_t begin, int64_t rows, const T* left,
                                    T* right, bool accumulate) {
        const Layer<T>& layer = p.layers[l];
        const int64_t stride = layer.input_stride;
        if (p.proportional) {
            const T* h = right + rows * stride;
            for (int64_t b = 0; b < rows; ++b) {
                const T c = p.cotangent ? p.cotangent[begin + b] : T(1);
                for (int64_t i = b * stride; i < (b + 1) * stride; i += lanes) {
                    const Register tangent = V::load(right + i) * c;
                    V::store(right + i, p.ybar ? tangent + V::load(h + i) * p.ybar[begin + b] : tangent);
                }
            }
        }
        add_outer(layer, p.gradients[l], rows * p.stack, left, right, accumulate);
        const T* factor = p.proportional && p.ybar ? p.ybar + begin : nullptr;
        add_rows(layer, p.gradients[l], factor ? rows : 0, left, factor, accumulate);
    }

    // xbar = ybar u W, or zero.
    static void proportional_xbar(const PushAdjoint<T>& p, int64_t begin, int64_t rows, const T* left, T* spare) {
        const Layer<T>& first = p.layers[0];
        if (p.proportional && p.ybar) {
            down(first, rows, left, spare);
            return scatter(spare, first.input_stride, p.rows, begin, rows, 1, first.inputs, p.xbar, p.ybar);
        }
        for (int64_t i = begin * first.inputs; i < (begin + rows) * first.inputs; ++i)
            p.xbar[i] = T(0);
    }

    static bool is_curvature_free(Kind kind) {
        return kind == Kind::Identity || kind == Kind::ReLU || kind == Kind::LeakyReLU;
    }

    // What `MlpKernels` promises.

    static int64_t forward_scratch(const ForwardPull<T>& p, int64_t tile) {
        Arena<T> count{nullptr};
        forward_tile(p, 0, tile, count);
        return count.used;
    }

    static int64_t backward_scratch(const PushAdjoint<T>& p, int64_t tile) {
        Arena<T> count{nullptr};
        backward_tile(p, 0, tile, false, count);
        return count.used;
    }

    static void forward(const ForwardPull<T>& p, int64_t begin, int64_t end, int64_t tile, T* scratch) {
        for (int64_t row = begin; row < end; row += tile) {
            Arena<T> arena{scratch};
            forward_tile(p, row, end - row < tile ? end - row : tile, arena);
        }
    }

    static void backward(const PushAdjoint<T>& p, int64_t begin, int64_t end, int64_t tile, T* scratch) {
        for (int64_t row = begin; row < end; row += tile) {
            Arena<T> arena{scratch};
            backward_tile(p, row, end - row < tile ? end - row : tile, p.accumulate || row > begin, arena);
        }
    }

    static void transpose(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to, int64_t to_stride) {
        constexpr int64_t block = 16;
        for (int64_t r = 0; r < rows; r += block)
            for (int64_t c = 0; c < columns; c += block)
                for (int64_t j = c; j < columns && j < c + block; ++j)
                    for (int64_t i = r; i < rows && i < r + block; ++i)
                        to[j * to_stride + i] = from[i * from_stride + j];
    }

    static void activate(Kind kind, Settings settings, const T* z, int64_t count, T* value, T* slope, T* bend) {
        with_activation<Math>(kind, settings, [&](auto activation) {
            for (int64_t i = 0; i < count; i += lanes) {
                const Register at = V::load(z + i), y = activation.value(at);
                const auto derivatives = activation.derivatives(activation.from_output ? y : at);
                V::store(value + i, y);
                V::store(slope + i, derivatives.slope);
                V::store(bend + i, derivatives.bend);
            }
        });
    }

    static const MlpKernels<T>& kernels() {
        static constexpr MlpKernels<T> table{lanes,    forward_scratch, backward_scratch, forward,
                                             backward, transpose,       activate};
        return table;
    }
};

}  // namespace gradreg_fast
