// The four sweeps over one tile of rows after another, a template over the register's size.
//
// A tile's activations, cotangents and tangents stay in cache from the first layer to the last and back; only what the
// second operation needs (`Layer::state`, `Layer::cotangent`) goes to memory.
//
// Kernel forward: sweeps 1 and 2 of a fully connected network, with the squared norms of g
//   dtypes     float32 float64
//   bound      multiply-adds: 2 (1 + K) a weight and row; narrow networks by activations
//
// Kernel backward: sweeps 3 and 4, with the parameters' gradients
//   dtypes     float32 float64
//   bound      multiply-adds: 4 (1 + K) a weight and row, 4 where one output makes adjoints cotangents

#pragma once

#include "common/dispatch.h"
#include "cpu/mlp.h"
#include "cpu/product.h"

namespace gradreg_fast {

// Hands out pieces of a thread's scratch memory, or only counts them. Tiles are whole pages, and in them a load right
// behind a store to the same place of another page would wait for it: so there is a gap behind each piece.
template <class T>
struct Arena {
    static constexpr int64_t gap = 320 / sizeof(T);
    T* base;
    int64_t used = 0;
    T* take(int64_t count) {
        T* piece = base ? base + used : nullptr;
        used += count + gap;
        return piece;
    }
};

template <class T, int Bytes>
struct Sweeps {
    using V = Vector<T, Bytes>;
    using Math = VectorMath<T, Bytes>;
    using Register = typename V::T;
    static constexpr int lanes = V::lanes;
    using In = Matrix<const T>;
    using Out = Matrix<T>;

    // Columns of a tile's panels: a library takes plain rows.
    static int64_t together(const Layer<T>& layer, int64_t stride) { return layer.multiply ? stride : panel<T>; }

    // One of a tile's matrices.
    template <class Number>
    static Matrix<Number> matrix(const Layer<T>& layer, Number* base, int64_t lines, int64_t stride) {
        return {base, lines, stride, 0, false, together(layer, stride)};
    }

    // Call function(first, width) for each panel of a matrix as wide as the layer's outputs.
    template <class Function>
    static GRADREG_FAST_INLINE void each_panel(const Layer<T>& layer, Function&& function) {
        const int64_t stride = layer.output_stride, most = together(layer, stride);
        for (int64_t first = 0; first < stride; first += most)
            function(first, panel_width<T>(first, stride, most));
    }

    // Call function(activation), with the cheapest that has this kind's numbers.
    template <class Function>
    static GRADREG_FAST_INLINE void with_activation(Kind kind, Settings settings, Function&& function) {
        using Cheap = SoftplusFromOutput<Math>;
        if (kind == Kind::Softplus && settings.second >= Cheap::least_threshold) return function(Cheap(settings));
        with_kind<Math>(kind, settings, function);
    }

    // h = phi(z); z becomes what is kept. Returns where h is: in place of z, or in `h`.
    static T* evaluate(const Layer<T>& layer, int64_t rows, T* z, T* h) {
        T* result = h;
        const int64_t count = rows * layer.output_stride, width = layer.output_stride;
        with_activation(layer.kind, layer.settings, [&](auto activation) {
            if (activation.from_output) result = z;
            if (layer.multiply == nullptr) {
                for (int64_t i = 0; i < count; i += lanes)
                    V::store(result + i, activation.value(V::load(z + i)));
                return;
            }
            for (T *to = result, *end = z + count; z < end; z += width, to += width)  // the bias is not there yet
                for (int64_t i = 0; i < width; i += lanes) {
                    const Register sum = V::load(z + i) + V::load(layer.bias + i);
                    if (!activation.from_output) V::store(z + i, sum);
                    V::store(to + i, activation.value(sum));
                }
        });
        return result;
    }

    // u_z = phi'(z) u.
    static void pull(const Layer<T>& layer, int64_t rows, int64_t stack, const T* state, const T* u, T* u_z) {
        with_activation(layer.kind, layer.settings, [&](auto activation) {
            each_panel(layer, [&](int64_t first, int64_t width) {
                for (int64_t b = 0; b < rows; ++b)
                    for (int64_t i = 0; i < width; i += lanes) {
                        const Register kept = V::load(state + rows * first + b * width + i);
                        const Register slope = activation.derivatives(kept).slope;
                        for (int64_t k = 0; k < stack; ++k) {
                            const int64_t at = rows * stack * first + (b * stack + k) * width + i;
                            V::store(u_z + at, slope * V::load(u + at));
                        }
                    }
            });
        });
    }

    // Where tangent and cotangent meet: h, u_z = phi' u, hdot = phi' zdot and, for the adjoint sweep, phi' and the
    // second-order term phi'' sum_k u^k zdot^k. The two sides of the weight's gradient are matrices over all lines,
    // [K tangents; 1 adjoint] a sample: left = [u_z; the second-order term] and right = [hdot; h].
    template <bool Adjoint>
    static void meet(const Layer<T>& layer, int64_t rows, int64_t stack, const T* state, const T* u, const T* zdot,
                     T* left, T* right, T* slopes) {
        const int64_t stacked = rows * stack, lines = stacked + rows;
        with_activation(layer.kind, layer.settings, [&](auto activation) {
            each_panel(layer, [&](int64_t first, int64_t width) {
                for (int64_t b = 0; b < rows; ++b)
                    for (int64_t i = 0; i < width; i += lanes) {
                        const int64_t own = rows * first + b * width + i;
                        const int64_t below = lines * first + (stacked + b) * width + i;
                        const auto kept = activation.derivatives(V::load(state + own));
                        Register sum{};
                        for (int64_t k = 0; k < stack; ++k) {
                            const int64_t line = (b * stack + k) * width + i;
                            const Register cotangent = V::load(u + stacked * first + line);
                            const Register tangent = V::load(zdot + stacked * first + line);
                            V::store(left + lines * first + line, kept.slope * cotangent);
                            V::store(right + lines * first + line, kept.slope * tangent);
                            sum += cotangent * tangent;
                        }
                        V::store(right + below, kept.value);
                        if constexpr (Adjoint) V::store(slopes + own, kept.slope);
                        if constexpr (Adjoint && !activation.curvature_free) V::store(left + below, kept.bend * sum);
                    }
            });
        });
    }

    // z = h W^T (+ b, unless a library multiplies), of the first `rows` lines.
    static void up(const Layer<T>& layer, int64_t rows, In h, Out z, const T* bias) {
        if (layer.multiply) {
            layer.multiply(rows, layer.outputs, layer.inputs, {h.at(0, 0), h.stride, false},
                           {layer.weight, layer.inputs, true}, z.at(0, 0), z.stride, false);
            return clear_behind(rows, layer.outputs, z);
        }
        if (is_narrow<T, Bytes>(layer.outputs, layer.output_stride, layer.inputs, layer.input_stride))
            return narrow_product<T, Bytes>(rows, layer.outputs, h, weight_of(layer), z, bias);
        product<T, Bytes>(rows, layer.inputs, h, transposed_of(layer), z, bias ? Start::Bias : Start::Zero, bias);
    }

    // u W, of the first `rows` lines.
    static void down(const Layer<T>& layer, int64_t rows, In u, Out below) {
        if (layer.multiply) {
            layer.multiply(rows, layer.inputs, layer.outputs, {u.at(0, 0), u.stride, false},
                           {layer.weight, layer.inputs, false}, below.at(0, 0), below.stride, false);
            return clear_behind(rows, layer.inputs, below);
        }
        if (is_narrow<T, Bytes>(layer.inputs, layer.input_stride, layer.outputs, layer.output_stride))
            return narrow_product<T, Bytes>(rows, layer.inputs, u, transposed_of(layer), below, nullptr);
        product<T, Bytes>(rows, layer.outputs, u, weight_of(layer), below, Start::Zero);
    }

    // Zeros between a matrix's width and its stride.
    static void clear_behind(int64_t rows, int64_t width, Out to) {
        for (int64_t b = 0; width < to.stride && b < rows; ++b)
            for (int64_t i = width; i < to.stride; ++i)
                to.at(b, 0)[i] = T(0);
    }

    static In weight_of(const Layer<T>& layer) {
        return {layer.weight, layer.outputs, layer.input_stride, 0, layer.plain};
    }
    static In transposed_of(const Layer<T>& layer) { return {layer.transposed, layer.inputs, layer.output_stride}; }

    // Add sum_r left_r (x) right_r over the first `rows` lines to the weight's gradient.
    static void add_outer(const Layer<T>& layer, const LayerGradient<T>& gradient, int64_t rows, In left, In right,
                          bool accumulate) {
        if (gradient.weight == nullptr) return;
        if (layer.multiply)
            return layer.multiply(layer.outputs, layer.inputs, rows, {left.at(0, 0), left.stride, true},
                                  {right.at(0, 0), right.stride, false}, gradient.weight, layer.inputs, accumulate);
        const Start start = accumulate ? Start::Accumulate : Start::Zero;
        const Out straight{gradient.weight, layer.outputs, layer.input_stride, 0, gradient.plain};
        const Out turned{gradient.weight, layer.inputs, layer.output_stride, 0, gradient.plain};
        if (gradient.transposed)
            outer_product<T, Bytes>(rows, right, left, turned, start);
        else
            outer_product<T, Bytes>(rows, left, right, straight, start);
    }

    // Rows [begin, begin + rows) of a stack [K, B, width] to lines of a matrix, zeros behind, times 2 weight.
    static void gather(const T* from, int64_t batch, int64_t begin, int64_t rows, int64_t stack, int64_t width, Out to,
                       const T* weights = nullptr) {
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t k = 0; k < stack; ++k) {
                const T* row = from + (k * batch + begin + b) * width;
                const T scale = weights ? 2 * weights[begin + b] : T(1);
                for (int64_t j = 0; j < to.stride; j += to.most) {
                    T* line = to.at(b * stack + k, j);
                    const int64_t there = panel_width<T>(j, width, to.most);
                    for (int64_t i = 0; i < there; ++i)
                        line[i] = scale * row[j + i];
                    for (int64_t i = there; i < to.width(j); ++i)
                        line[i] = T(0);
                }
            }
    }

    // And back.
    static void scatter(In from, int64_t batch, int64_t begin, int64_t rows, int64_t stack, int64_t width, T* to) {
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t k = 0; k < stack; ++k) {
                T* row = to + (k * batch + begin + b) * width;
                for (int64_t j = 0; j < width; j += from.most) {
                    const T* line = from.at(b * stack + k, j);
                    const int64_t there = panel_width<T>(j, width, from.most);
                    for (int64_t i = 0; i < there; ++i)
                        row[j + i] = line[i];
                }
            }
    }

    // row = scale row - offset; null: no offset. Returns its squared norm.
    static T finish(int64_t width, T* row, T scale, const T* offset) {
        Register sums{};
        int64_t i = 0;
        for (; i + lanes <= width; i += lanes) {
            Register value = V::load(row + i) * scale;
            if (offset) value -= V::load(offset + i);
            V::store(row + i, value);
            sums += value * value;
        }
        T sum = V::sum(sums);
        for (; i < width; ++i) {
            row[i] = scale * row[i] - (offset ? offset[i] : T(0));
            sum += row[i] * row[i];
        }
        return sum;
    }

    static int64_t widest(const Layer<T>* layers, int64_t depth) {
        int64_t width = layers[0].input_stride;
        for (int64_t l = 0; l < depth; ++l)
            width = layers[l].output_stride > width ? layers[l].output_stride : width;
        return width;
    }

    // Sweeps 1 and 2 for rows [begin, begin + rows); with a counting arena, only what they need.
    static void forward_tile(const ForwardPull<T>& p, int64_t begin, int64_t rows, Arena<T>& arena) {
        const int64_t width = widest(p.layers, p.depth), stack = p.stack, stacked = rows * stack;
        const Layer<T>& first = p.layers[0];
        const Layer<T>& last = p.layers[p.depth - 1];
        T* h = arena.take(rows * width);
        T* u_z = arena.take(stacked * width);
        T* u_spare = arena.take(stacked * width);
        T* gradient = arena.take(p.target.loss == Loss::None ? 0 : rows * last.outputs);
        T* states[max_depth];
        for (int64_t l = 0; l < p.depth; ++l) {
            const int64_t stride = p.layers[l].output_stride;
            states[l] = p.layers[l].state ? p.layers[l].state + begin * stride : arena.take(rows * stride);
        }
        if (arena.base == nullptr) return;

        const bool direct = first.multiply && stack == 1;  // g is as wide a matrix in the caller's memory as in ours
        if (!first.multiply)
            gather(p.x, p.rows, begin, rows, 1, first.inputs, matrix(first, h, rows, first.input_stride));
        In inputs = first.multiply ? In{p.x + begin * first.inputs, rows, first.inputs}
                                   : matrix<const T>(first, h, rows, first.input_stride);
        T* below = nullptr;
        for (int64_t l = 0; l < p.depth; ++l) {
            const Layer<T>& layer = p.layers[l];
            up(layer, rows, inputs, matrix(layer, states[l], rows, layer.output_stride), layer.bias);
            below = evaluate(layer, rows, states[l], h);
            inputs = matrix<const T>(layer, below, rows, layer.output_stride);
        }
        const In outputs = matrix<const T>(last, below, rows, last.output_stride);
        scatter(outputs, p.rows, begin, rows, 1, last.outputs, p.y);
        if (stack == 0) return;

        T* u = cotangent_of(last, begin, stack, u_spare);
        const Out seeds = matrix(last, u, stacked, last.output_stride);
        if (p.target.loss != Loss::None) {
            for (int64_t b = 0; b < rows; ++b)
                loss_gradient(p.target, begin + b, last.outputs, p.y + (begin + b) * last.outputs,
                              gradient + b * last.outputs);
            gather(gradient, rows, 0, rows, 1, last.outputs, seeds);
        } else if (p.cotangent && !p.unit_seed) {
            gather(p.cotangent, p.rows, begin, rows, stack, last.outputs, seeds);
        } else {
            for (int64_t i = 0; i < stacked * last.output_stride; ++i)
                u[i] = T(1);
        }
        for (int64_t l = p.depth - 1; l >= 0; --l) {
            const Layer<T>& layer = p.layers[l];
            pull(layer, rows, stack, states[l], u, u_z);
            u = l > 0 ? cotangent_of(p.layers[l - 1], begin, stack, u_spare) : u_spare;
            const In above = matrix<const T>(layer, u_z, stacked, layer.output_stride);
            const bool ends = l == 0 && direct;
            down(layer, stacked, above,
                 ends ? Out{p.g + begin * layer.inputs, rows, layer.inputs}
                      : matrix(layer, u, stacked, layer.input_stride));
        }
        const In pulled = matrix<const T>(first, u, stacked, first.input_stride);
        if (!direct) scatter(pulled, p.rows, begin, rows, stack, first.inputs, p.g);
        for (int64_t b = begin; b < begin + rows; ++b) {
            const T scale = p.unit_seed && p.cotangent ? p.cotangent[b] : T(1);
            p.norms[b] = T(0);
            for (int64_t k = 0; k < stack; ++k) {
                const int64_t at = (k * p.rows + b) * first.inputs;
                p.norms[b] += finish(first.inputs, p.g + at, scale, p.offset ? p.offset + at : nullptr);
            }
        }
    }

    static T* cotangent_of(const Layer<T>& layer, int64_t begin, int64_t stack, T* spare) {
        return layer.cotangent ? layer.cotangent + begin * stack * layer.output_stride : spare;
    }

    // Sweeps 3 and 4. One product over all of a tile's lines, `left` and `right` of `meet`, is a weight's gradient.
    static void backward_tile(const PushAdjoint<T>& p, int64_t begin, int64_t rows, bool accumulate, Arena<T>& arena) {
        const bool bent = p.stack && p.target.loss != Loss::None;             // adjoints arise at the loss
        const bool descend = bent || (p.ybar != nullptr && !p.proportional);  // they come from above
        const bool adjoint = descend || (!p.curvature_free && p.stack);       // or arise on the way
        const int64_t stacked = rows * p.stack, lines = stacked + rows, width = widest(p.layers, p.depth);
        const Layer<T>& first = p.layers[0];
        const Layer<T>& last = p.layers[p.depth - 1];
        const bool direct = first.multiply && p.stack <= 1 && adjoint;  // a library reads g and x where they are
        T *left[max_depth], *right[max_depth + 1], *slopes[max_depth];
        right[0] = arena.take(direct ? 0 : lines * first.input_stride);
        for (int64_t l = 0; l < p.depth; ++l) {
            const int64_t stride = p.layers[l].output_stride;
            right[l + 1] = arena.take(lines * stride);
            left[l] = arena.take(lines * stride);
            slopes[l] = arena.take(adjoint ? rows * stride : 0);
        }
        T* zdot = arena.take((stacked > rows ? stacked : rows) * width);  // and the adjoint on its way down
        T* top = arena.take(bent ? 2 * rows * last.outputs : 0);
        if (arena.base == nullptr) return;

        const Out start = matrix(first, right[0], lines, first.input_stride);
        const Out end = matrix(last, right[p.depth], lines, last.output_stride);
        const In given[] = {{p.gbar + begin * first.inputs, rows, first.inputs},
                            {p.x + begin * first.inputs, rows, first.inputs}};
        const T* const scales = direct && p.stack && p.weights ? p.weights + begin : nullptr;
        if (!direct) {
            if (p.stack) gather(p.gbar, p.rows, begin, rows, p.stack, first.inputs, start, p.weights);
            gather(p.x, p.rows, begin, rows, 1, first.inputs, start.from(stacked));
        }
        for (int64_t l = 0; l < p.depth; ++l) {
            const Layer<T>& layer = p.layers[l];
            const T* state = layer.state + begin * layer.output_stride;
            const T* u = p.stack ? layer.cotangent + begin * p.stack * layer.output_stride : nullptr;
            const In below = l == 0 && direct ? given[0] : matrix<const T>(layer, right[l], lines, layer.input_stride);
            if (p.stack) up(layer, stacked, below, matrix(layer, zdot, stacked, layer.output_stride), nullptr);
            if (l == 0 && scales) scale(rows, layer.output_stride, scales, zdot);
            if (adjoint) {
                meet<true>(layer, rows, p.stack, state, u, zdot, left[l], right[l + 1], slopes[l]);
            } else {
                meet<false>(layer, rows, p.stack, state, u, zdot, left[l], right[l + 1], nullptr);
                add_without_adjoint(p, l, begin, rows, left[l], right[l], accumulate);
            }
        }
        if (p.cotangent_bar) scatter(end, p.rows, begin, rows, p.stack, last.outputs, p.cotangent_bar);
        if (!adjoint) {
            if (p.xbar)
                proportional_xbar(p, begin, rows, matrix<const T>(first, left[0], lines, first.output_stride), zdot);
            return;
        }

        T* d = zdot;
        if (bent)
            bend(p, begin, rows, end, top, matrix(last, d, rows, last.output_stride));
        else if (descend)
            gather(p.ybar, p.rows, begin, rows, 1, last.outputs, matrix(last, d, rows, last.output_stride));
        bool present = descend;
        for (int64_t l = p.depth - 1; l >= p.lowest; --l) {
            const Layer<T>& layer = p.layers[l];
            const LayerGradient<T>& gradient = p.gradients[l];
            const bool curved = p.stack && !is_curvature_free(layer.kind);
            const Out all = matrix(layer, left[l], lines, layer.output_stride), d_z = all.from(stacked);
            combine(layer, rows, slopes[l], present ? d : nullptr, curved, d_z, gradient.bias, accumulate);
            present = present || curved;
            if (l == 0 && direct) {
                if (scales) scale(rows, layer.output_stride, scales, left[l]);
                if (p.stack) add_outer(layer, gradient, rows, all, given[0], accumulate);
                if (present) add_outer(layer, gradient, rows, d_z, given[1], accumulate || p.stack);
            } else {
                add_outer(layer, gradient, present ? lines : stacked, all,
                          matrix<const T>(layer, right[l], lines, layer.input_stride), accumulate);
            }
            if (present && (l > p.lowest || p.xbar)) down(layer, rows, d_z, matrix(layer, d, rows, layer.input_stride));
        }
        if (p.xbar)
            scatter(matrix<const T>(first, d, rows, first.input_stride), p.rows, begin, rows, 1, first.inputs, p.xbar);
    }

    // Each row times 2 scale: what gather does to g, done to its products with a weight.
    static void scale(int64_t rows, int64_t stride, const T* scales, T* to) {
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t i = 0; i < stride; i += lanes)
                V::store(to + b * stride + i, V::load(to + b * stride + i) * (2 * scales[b]));
    }

    // d = ybar + H ydot, with the loss's Hessian H in y; `end` has the lines of ydot, then those of y.
    static void bend(const PushAdjoint<T>& p, int64_t begin, int64_t rows, In end, T* spare, Out d) {
        const int64_t width = p.layers[p.depth - 1].outputs, count = rows * width;
        T *y = spare, *ydot = y + count;
        scatter(end, rows, 0, rows, 1, width, ydot);
        scatter(end.from(rows), rows, 0, rows, 1, width, y);
        for (int64_t b = 0; b < rows; ++b)
            multiply_by_hessian(p.target, begin + b, width, y + b * width, ydot + b * width);
        for (int64_t i = 0; p.ybar && i < count; ++i)
            ydot[i] += p.ybar[begin * width + i];
        gather(ydot, rows, 0, rows, 1, width, d);
    }

    // d_z = phi' d + second and its sum, the bias's gradient; the second-order terms are there already if `curved`.
    static void combine(const Layer<T>& layer, int64_t rows, const T* slopes, const T* d, bool curved, Out d_z, T* bias,
                        bool accumulate) {
        constexpr int64_t block = 4;  // registers of a row at a time
        each_panel(layer, [&](int64_t first, int64_t width) {
            for (int64_t i = 0; i < width; i += block * lanes) {
                const int64_t here = width - i < block * lanes ? (width - i) / lanes : block;
                Register total[block]{};
                for (int64_t b = 0; b < rows; ++b)
                    for (int64_t j = 0; j < here; ++j) {
                        const int64_t at = rows * first + b * width + i + j * lanes;
                        T* to = d_z.at(b, first) + i + j * lanes;
                        Register sum = curved ? V::load(to) : Register{};
                        if (d) sum += V::load(slopes + at) * V::load(d + at);
                        V::store(to, sum);
                        total[j] += sum;
                    }
                for (int64_t j = 0; bias && j < here; ++j) {
                    T* to = bias + first + i + j * lanes;
                    V::store(to, accumulate ? V::load(to) + total[j] : total[j]);
                }
            }
        });
    }

    // A layer's gradients where no adjoint flows. Proportional: d = ybar u and hdot is scaled by the cotangent, so that
    // one product over B rows, u (x) (c hdot + ybar h), is the weight's gradient of penalty and task together.
    static void add_without_adjoint(const PushAdjoint<T>& p, int64_t l, int64_t begin, int64_t rows, const T* left,
                                    T* right, bool accumulate) {
        const Layer<T>& layer = p.layers[l];
        const int64_t stacked = rows * p.stack;
        const In u = matrix<const T>(layer, left, stacked + rows, layer.output_stride);
        const Out tangents = matrix(layer, right, stacked + rows, layer.input_stride);
        if (p.proportional)
            for (int64_t first = 0; first < layer.input_stride; first += tangents.most)
                for (int64_t b = 0; b < rows; ++b) {
                    const T c = p.cotangent ? p.cotangent[begin + b] : T(1);
                    T *line = tangents.at(b, first), *h = tangents.at(stacked + b, first);
                    for (int64_t i = 0; i < tangents.width(first); i += lanes) {
                        const Register tangent = V::load(line + i) * c;
                        V::store(line + i, p.ybar ? tangent + V::load(h + i) * p.ybar[begin + b] : tangent);
                    }
                }
        add_outer(layer, p.gradients[l], stacked, u, tangents, accumulate);
        if (p.gradients[l].bias == nullptr) return;
        each_panel(layer, [&](int64_t first, int64_t width) {
            for (int64_t i = 0; i < width; i += lanes) {
                T* to = p.gradients[l].bias + first + i;
                Register sum = accumulate ? V::load(to) : Register{};
                for (int64_t b = 0; p.proportional && p.ybar && b < rows; ++b)
                    sum += V::load(u.at(b, first) + i) * p.ybar[begin + b];
                V::store(to, sum);
            }
        });
    }

    // xbar = ybar u W, or zero.
    static void proportional_xbar(const PushAdjoint<T>& p, int64_t begin, int64_t rows, In u, T* spare) {
        const Layer<T>& first = p.layers[0];
        const bool present = p.proportional && p.ybar;
        if (present) {
            const Out below = matrix(first, spare, rows, first.input_stride);
            down(first, rows, u, below);
            scatter(below, p.rows, begin, rows, 1, first.inputs, p.xbar);
        }
        for (int64_t b = begin; b < begin + rows; ++b)
            for (int64_t i = 0; i < first.inputs; ++i)
                p.xbar[b * first.inputs + i] = present ? p.ybar[b] * p.xbar[b * first.inputs + i] : T(0);
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

    // A square of lanes x lanes numbers, in registers.
    static void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
        Register line[lanes];
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r)
            line[r] = V::load(from + r * from_stride);
#pragma GCC unroll 8
        for (int s = 1; s < lanes; s *= 2)
#pragma GCC unroll 16
            for (int r = 0; r < lanes; ++r)
                if (!(r & s)) exchange<T, Bytes>(line[r], line[r + s], s);
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r)
            V::store(to + r * to_stride, line[r]);
    }

    // to [columns, rows] = from [rows, columns] transposed.
    static void transpose(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to, int64_t to_stride) {
        const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
        for (int64_t r = 0; r < whole_rows; r += lanes)
            for (int64_t c = 0; c < whole_columns; c += lanes)
                transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
                to[c * to_stride + r] = from[r * from_stride + c];
    }

    static void pack(const T* from, int64_t rows, int64_t columns, bool transposed, T* to) {
        const Out matrix{to, rows, (columns + lanes - 1) / lanes * lanes};
        for (int64_t j = 0; j < columns; j += panel<T>) {
            const int64_t there = panel_width<T>(j, columns), width = matrix.width(j);
            T* const block = matrix.at(0, j);
            if (transposed) transpose(from + j * rows, there, rows, rows, block, width);
            for (int64_t i = 0; i < rows; ++i) {
                if (!transposed) __builtin_memcpy(block + i * width, from + i * columns + j, there * sizeof(T));
                for (int64_t c = there; c < width; ++c)
                    block[i * width + c] = T(0);
            }
        }
    }

    static void unpack(const T* from, int64_t rows, int64_t columns, bool transposed, T* to) {
        const In matrix{from, rows, (columns + lanes - 1) / lanes * lanes};
        for (int64_t j = 0; j < columns; j += panel<T>) {
            const int64_t there = panel_width<T>(j, columns), width = matrix.width(j);
            const T* const block = matrix.at(0, j);
            if (transposed)
                transpose(block, rows, there, width, to + j * rows, rows);
            else
                for (int64_t i = 0; i < rows; ++i)
                    __builtin_memcpy(to + i * columns + j, block + i * width, there * sizeof(T));
        }
    }

    static void activate(Kind kind, Settings settings, const T* z, int64_t count, T* value, T* slope, T* bend) {
        with_activation(kind, settings, [&](auto activation) {
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
        static constexpr MlpKernels<T> table{lanes, forward_scratch, backward_scratch, forward, backward,
                                             pack,  unpack,          activate};
        return table;
    }
};

}  // namespace gradreg_fast
