// The four sweeps of a convolution block, a template over the register's size. See conv.h for the layout of a tile.
//
// Kernel forward: sweep 1 of a convolution block, and its slopes
//   dtypes     float32 float64
//   bound      multiply-adds: 2 a tap and sum
//
// Kernel push: sweep 3, with the second-order term and the weight's gradient
//   dtypes     float32 float64
//   bound      multiply-adds: 2 K a tap and sum, and as many for the gradient
//
// Kernel pull: sweeps 2 and 4, with the weight's and bias's gradients
//   dtypes     float32 float64
//   bound      multiply-adds: 2 K a tap and sum, and as many for the gradient

#pragma once

#include <utility>

#include "common/dispatch.h"
#include "cpu/conv.h"
#include "cpu/vector_math.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct ConvSweeps {
    using V = Vector<T, Bytes>;
    using Math = VectorMath<T, Bytes>;
    using Register = typename V::T;
    using Block = ConvBlock<T>;
    static constexpr int lanes = V::lanes;

    // Sums in flight: 24 of 32 registers, or 12 of 16.
    static constexpr int in_flight = Bytes == 64 ? 24 : 12;
    static constexpr int most_channels = Bytes == 64 ? 6 : 4;
    static constexpr int at_once(int channels) { return in_flight / channels < 8 ? in_flight / channels : 8; }

    static GRADREG_FAST_INLINE Register load(const T* tile, int64_t pixel) { return V::load(tile + pixel * lanes); }
    static GRADREG_FAST_INLINE void store(T* tile, int64_t pixel, Register v) { V::store(tile + pixel * lanes, v); }

    static void fill_zero(T* tile, int64_t pixels) {
        for (int64_t i = 0; i < pixels; ++i)
            store(tile, i, Register{});
    }

    // Tiles and samples.

    template <int Step, int... I>
    static GRADREG_FAST_INLINE void exchange(Register& a, Register& b, std::integer_sequence<int, I...>) {
        const Register low = __builtin_shufflevector(a, b, (I & Step ? lanes + I - Step : I)...);
        b = __builtin_shufflevector(a, b, (I & Step ? lanes + I : I + Step)...);
        a = low;
    }

    // A square of registers, its rows for its columns.
    template <int Step = lanes / 2>
    static GRADREG_FAST_INLINE void transpose(Register (&square)[lanes]) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i)
            if (!(i & Step)) exchange<Step>(square[i], square[i + Step], std::make_integer_sequence<int, lanes>{});
        if constexpr (Step > 1) transpose<Step / 2>(square);
    }

    // Goes through the pixels of a tile's image in the order in which a sample has them.
    struct Cursor {
        int64_t counts[3], steps[3];  // of channels, rows and columns, or of rows, columns and channels
        int64_t j, k, position;

        Cursor(const Layout& layout, int64_t channels, const int64_t (&size)[2], bool channels_last, int64_t pixel)
            : counts{channels, size[0], size[1]}, steps{layout.plane, layout.pitch, 1} {
            if (channels_last) {
                counts[0] = size[0], counts[1] = size[1], counts[2] = channels;
                steps[0] = layout.pitch, steps[1] = 1, steps[2] = layout.plane;
            }
            k = pixel % counts[2];
            j = pixel / counts[2] % counts[1];
            position = layout.origin + pixel / counts[2] / counts[1] * steps[0] + j * steps[1] + k * steps[2];
        }
        GRADREG_FAST_INLINE int64_t next() {
            const int64_t here = position;
            position += steps[2];
            if (++k == counts[2]) {
                k = 0;
                position += steps[1] - counts[2] * steps[2];
                if (++j == counts[1]) {
                    j = 0;
                    position += steps[0] - counts[1] * steps[1];
                }
            }
            return here;
        }
    };

    // Images are taken in squares of as many pixels as samples; the last square may overlap the one before. Images with
    // fewer pixels go one by one.
    static GRADREG_FAST_INLINE int64_t begin_of_square(int64_t i, int64_t pixels) {
        return i + lanes <= pixels ? i : pixels - lanes;
    }

    // A tile from its samples, from number `first` on.
    static void gather_samples(const Images<const T>& images, int64_t first, int64_t samples, int64_t channels,
                               const int64_t (&size)[2], const Layout& layout, T* tile) {
        const int64_t pixels = channels * size[0] * size[1];
        const T* const from = images.data + first * pixels;
        if (pixels < lanes) {
            Cursor cursor(layout, channels, size, images.channels_last, 0);
            for (int64_t i = 0; i < pixels; ++i) {
                T* const to = tile + cursor.next() * lanes;
                for (int lane = 0; lane < lanes; ++lane)
                    to[lane] = lane < samples ? from[lane * pixels + i] : T(0);
            }
            return;
        }
        for (int64_t i = 0; i < pixels; i += lanes) {
            const int64_t begin = begin_of_square(i, pixels);
            Register square[lanes];
#pragma GCC unroll 16
            for (int lane = 0; lane < lanes; ++lane)
                square[lane] = lane < samples ? V::load(from + lane * pixels + begin) : Register{};
            transpose(square);
            Cursor cursor(layout, channels, size, images.channels_last, begin);
#pragma GCC unroll 16
            for (int lane = 0; lane < lanes; ++lane)
                store(tile, cursor.next(), square[lane]);
        }
    }

    // The samples of a tile without borders, from number `first` on.
    static void scatter_samples(const T* tile, int64_t samples, int64_t channels, const int64_t (&size)[2],
                                const Images<T>& images, int64_t first) {
        const int64_t pixels = channels * size[0] * size[1];
        const Layout layout{size[0] * size[1], size[1], 0};
        T* const to = images.data + first * pixels;
        if (pixels < lanes) {
            Cursor cursor(layout, channels, size, images.channels_last, 0);
            for (int64_t i = 0; i < pixels; ++i) {
                const T* const from = tile + cursor.next() * lanes;
                for (int64_t lane = 0; lane < samples; ++lane)
                    to[lane * pixels + i] = from[lane];
            }
            return;
        }
        for (int64_t i = 0; i < pixels; i += lanes) {
            const int64_t begin = begin_of_square(i, pixels);
            Register square[lanes];
            Cursor cursor(layout, channels, size, images.channels_last, begin);
#pragma GCC unroll 16
            for (int lane = 0; lane < lanes; ++lane)
                square[lane] = load(tile, cursor.next());
            transpose(square);
#pragma GCC unroll 16
            for (int lane = 0; lane < lanes; ++lane)
                if (lane < samples) V::store(to + lane * pixels + begin, square[lane]);
        }
    }

    // Products.

    // P pixels of C channels: out[c][p] = initial[c] + sum over taps of weights[tap][c] in[offsets[tap] + p in_step].
    template <int C, int P>
    static void correlate_pixels(const Phase<T>& phase, const T* weights, const T* initial, const T* in, T* out,
                                 int64_t out_plane) {
        Register sum[C][P];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                sum[c][p] = initial ? V::broadcast(initial[c]) : Register{};
        const int64_t in_step = phase.in_column * lanes, out_step = phase.out_column * lanes;
        for (int64_t tap = 0; tap < phase.taps; ++tap) {
            const T* const from = in + phase.offsets[tap];
            Register pixel[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                pixel[p] = V::load(from + p * in_step);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const Register weight = V::broadcast(weights[tap * C + c]);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p)
                    sum[c][p] += weight * pixel[p];
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                V::store(out + c * out_plane * lanes + p * out_step, sum[c][p]);
    }

    // A row of C channels; its last pixels may be computed twice rather than one by one.
    template <int C, int P>
    static void correlate_row(const Phase<T>& phase, const T* weights, const T* initial, const T* in, T* out,
                              int64_t out_plane) {
        if constexpr (P > 1)
            if (phase.columns < P) return correlate_row<C, P / 2>(phase, weights, initial, in, out, out_plane);
        for (int64_t column = 0; column < phase.columns; column += P) {
            const int64_t first = column + P <= phase.columns ? column : phase.columns - P;
            correlate_pixels<C, P>(phase, weights, initial, in + first * phase.in_column * lanes,
                                   out + first * phase.out_column * lanes, out_plane);
        }
    }

    template <int... I>
    static auto row_function(int64_t channels, std::integer_sequence<int, I...>) {
        using Function = void (*)(const Phase<T>&, const T*, const T*, const T*, T*, int64_t);
        static constexpr Function functions[] = {&correlate_row<I + 1, at_once(I + 1)>...};
        return functions[channels - 1];
    }

    static void correlate(const Correlation<T>& correlation, const T* in, const T* initial, T* out) {
        const int64_t channels = correlation.channels, blocks = block_count(channels, most_channels);
        for (int64_t i = 0; i < correlation.count; ++i) {
            const Phase<T>& phase = correlation.phases[i];
            for (int64_t row = 0; row < phase.rows; ++row)
                for (int64_t block = 0; block < blocks; ++block) {
                    const int64_t begin = block_begin(channels, blocks, block);
                    const int64_t end = block_begin(channels, blocks, block + 1);
                    const auto function = row_function(end - begin, std::make_integer_sequence<int, most_channels>{});
                    function(phase, phase.weights + begin * phase.taps, initial ? initial + begin : nullptr,
                             in + (phase.in + row * phase.in_row) * lanes,
                             out + (begin * correlation.out_plane + phase.out + row * phase.out_row) * lanes,
                             correlation.out_plane);
                }
        }
    }

    // sums[tap][c] += sum over rows and columns of x[offsets[tap] + ..] g[c][..], for S taps and C channels.
    template <int C, int S>
    static void add_products(const Phase<T>& phase, int64_t rows, const int64_t* offsets, const T* x, const T* g,
                             const Layout& layout, T* sums) {
        Register sum[S][C];
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                sum[s][c] = load(sums, s * C + c);
        for (int64_t row = 0; row < rows; ++row) {
            const T* g_pixel = g + row * layout.pitch * lanes;
            const T* x_pixel = x + row * phase.in_row * lanes;
            for (int64_t column = 0; column < phase.columns; ++column) {
                Register pixel[S];
#pragma GCC unroll 8
                for (int s = 0; s < S; ++s)
                    pixel[s] = V::load(x_pixel + offsets[s]);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const Register cotangent = load(g_pixel, c * layout.plane);
#pragma GCC unroll 8
                    for (int s = 0; s < S; ++s)
                        sum[s][c] += pixel[s] * cotangent;
                }
                g_pixel += lanes;
                x_pixel += phase.in_column * lanes;
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                store(sums, s * C + c, sum[s][c]);
    }

    // All taps of C channels.
    template <int C, int S>
    static void add_taps(const Phase<T>& phase, int64_t rows, int64_t first, const T* x, const T* g,
                         const Layout& layout, T* sums) {
        for (; first + S <= phase.taps; first += S)
            add_products<C, S>(phase, rows, phase.offsets + first, x, g, layout, sums + first * C * lanes);
        if constexpr (S > 1)
            if (first < phase.taps) add_taps<C, S / 2>(phase, rows, first, x, g, layout, sums);
    }

    template <int... I>
    static auto taps_function(int64_t channels, std::integer_sequence<int, I...>) {
        using Function = void (*)(const Phase<T>&, int64_t, int64_t, const T*, const T*, const Layout&, T*);
        static constexpr Function functions[] = {&add_taps<I + 1, at_once(I + 1)>...};
        return functions[channels - 1];
    }

    // The weight gradient's sums: a band of rows at a time, whose cotangents stay in the first-level cache.
    static void add_weight_gradient(const Block& block, const T* x, const T* g, T* sums) {
        const Phase<T>& phase = *block.straight.phases;
        const int64_t blocks = block_count(block.outputs, most_channels);
        constexpr int64_t resident = 24576 / Bytes;
        const int64_t width = most_channels * phase.columns;
        const int64_t band = width < resident ? resident / width : 1;
        for (int64_t row = 0; row < phase.rows; row += band)
            for (int64_t i = 0; i < blocks; ++i) {
                const int64_t begin = block_begin(block.outputs, blocks, i);
                const int64_t end = block_begin(block.outputs, blocks, i + 1);
                const auto function = taps_function(end - begin, std::make_integer_sequence<int, most_channels>{});
                function(phase, row + band < phase.rows ? band : phase.rows - row, 0,
                         x + (phase.in + row * phase.in_row) * lanes, g + block.bordered.at(begin, row, 0) * lanes,
                         block.bordered, sums + begin * phase.taps * lanes);
            }
    }

    static void add_bias_gradient(const Block& block, const T* g, T* sums) {
        for (int64_t c = 0; c < block.outputs; ++c) {
            Register sum = load(sums, c);
            for (int64_t y = 0; y < block.summed[0]; ++y)
                for (int64_t x = 0; x < block.summed[1]; ++x)
                    sum += load(g, block.bordered.at(c, y, x));
            store(sums, c, sum);
        }
    }

    // Pooling.

    // A pooling window, clipped to the image.
    struct Window {
        int64_t channel, y, x, top, bottom, left, right, width;

        // function(the element's number in the whole window, its y, its x)
        template <class Function>
        GRADREG_FAST_INLINE void each(Function&& function) const {
            for (int64_t i = top; i < bottom; ++i)
                for (int64_t j = left; j < right; ++j)
                    function(i * width + j, y + i, x + j);
        }
    };

    // function(pixel of y, window)
    template <class Function>
    static GRADREG_FAST_INLINE void each_window(const Block& block, Function&& function) {
        int64_t pixel = 0;
        for (int64_t channel = 0; channel < block.outputs; ++channel)
            for (int64_t i = 0; i < block.pooled[0]; ++i)
                for (int64_t j = 0; j < block.pooled[1]; ++j) {
                    const int64_t y = i * block.step[0] - block.margin[0], x = j * block.step[1] - block.margin[1];
                    const int64_t below = block.summed[0] - y, beyond = block.summed[1] - x;
                    function(pixel++, Window{channel, y, x, y < 0 ? -y : 0,
                                             below < block.window[0] ? below : block.window[0], x < 0 ? -x : 0,
                                             beyond < block.window[1] ? beyond : block.window[1], block.window[1]});
                }
    }

    static GRADREG_FAST_INLINE Layout dense(const Block& block) {
        return {block.summed[0] * block.summed[1], block.summed[1], 0};
    }

    static GRADREG_FAST_INLINE T share(const Block& block) { return T(1) / T(block.window[0] * block.window[1]); }

    // The value of z at each window's winner.
    static GRADREG_FAST_INLINE Register at_winner(const Block& block, const Window& window, const T* z,
                                                  Register winner) {
        const Layout layout = dense(block);
        Register found{};
        window.each([&](int64_t number, int64_t y, int64_t x) {
            found = Math::select(winner == V::broadcast(T(number)), load(z, layout.at(window.channel, y, x)), found);
        });
        return found;
    }

    // What a tile keeps.
    struct Kept {
        T *slope, *bend, *winner;  // null where there is none
        Kept(const Block& block, const T* memory) {
            T* const base = const_cast<T*>(memory);
            const int64_t each = block.slope_pixels() * lanes;
            slope = each ? base : nullptr;
            bend = block.curved ? base + each : nullptr;
            winner = base + (block.curved ? 2 * each : each);
        }
    };

    // From z to y and what is kept. Without pooling y is in place of z.
    template <class Activation>
    static void activate(const Block& block, const Activation& phi, T* z, T* y, T* memory) {
        const Kept kept(block, memory);
        const auto keep = [&](int64_t i, Register sum, Register value) {
            const auto derivatives = phi.derivatives(phi.from_output ? value : sum);
            if (kept.slope) store(kept.slope, i, derivatives.slope);
            if (kept.bend) store(kept.bend, i, derivatives.bend);
        };
        if (block.pools_maxima()) {
            const Layout layout = dense(block);
            const bool first = block.pooling == Pooling::MaxFirst;
            each_window(block, [&](int64_t i, const Window& window) {
                Register best = V::broadcast(-__builtin_inf()), best_sum = best;
                Register winner = V::broadcast(T(window.top * window.width + window.left));
                window.each([&](int64_t number, int64_t row, int64_t column) {
                    const Register sum = load(z, layout.at(window.channel, row, column));
                    const Register value = first ? sum : phi.value(sum);
                    const auto better = (value > best) | (value != value);  // as PyTorch: the first, or the last NaN
                    best = Math::select(better, value, best);
                    best_sum = Math::select(better, sum, best_sum);
                    winner = Math::select(better, V::broadcast(T(number)), winner);
                });
                const Register value = first ? phi.value(best) : best;
                store(y, i, value);
                keep(i, best_sum, value);
                store(kept.winner, i, winner);
            });
            return;
        }
        const int64_t pixels = block.z_pixels();
        for (int64_t i = 0; i < pixels; ++i) {
            const Register sum = load(z, i), value = phi.value(sum);
            store(z, i, value);
            keep(i, sum, value);
        }
        if (block.pooling == Pooling::Average) average(block, [&](int64_t i) { return load(z, i); }, y);
    }

    // y = averages over windows of value(pixel of z).
    template <class Value>
    static GRADREG_FAST_INLINE void average(const Block& block, Value&& value, T* y) {
        const Layout layout = dense(block);
        const T part = share(block);
        each_window(block, [&](int64_t i, const Window& window) {
            Register total{};
            window.each(
                [&](int64_t, int64_t row, int64_t column) { total += value(layout.at(window.channel, row, column)); });
            store(y, i, total * part);
        });
    }

    // From cotangents of y to those of z: g = phi' unpool(u) + second.
    static void unpool(const Block& block, const Kept& kept, const T* u, const T* second, T* g) {
        const Layout &layout = block.bordered, from = dense(block);
        const auto bent = [&](int64_t i, Register v) {
            if (kept.slope) v *= load(kept.slope, i);
            return second ? v + load(second, i) : v;
        };
        if (block.pooling == Pooling::None)
            return each_pixel(block, [&](int64_t i, int64_t at) { store(g, at, bent(i, load(u, i))); });
        const bool maxima = block.pools_maxima(), disjoint = block.windows_are_disjoint();
        if (!block.windows_are_tiles()) each_pixel(block, [&](int64_t, int64_t at) { store(g, at, Register{}); });
        const T part = share(block);
        each_window(block, [&](int64_t i, const Window& window) {
            const Register v = maxima ? bent(i, load(u, i)) : load(u, i) * part;
            const Register winner = maxima ? load(kept.winner, i) : Register{};
            window.each([&](int64_t number, int64_t y, int64_t x) {
                const int64_t at = layout.at(window.channel, y, x);
                Register term = v;
                if (maxima)
                    term = Math::select(winner == V::broadcast(T(number)), v, Register{});
                else if (disjoint)
                    term = bent(from.at(window.channel, y, x), v);
                store(g, at, disjoint ? term : load(g, at) + term);
            });
        });
        if (!maxima && !disjoint) each_pixel(block, [&](int64_t i, int64_t at) { store(g, at, bent(i, load(g, at))); });
    }

    // function(pixel of z, its place in g)
    template <class Function>
    static GRADREG_FAST_INLINE void each_pixel(const Block& block, Function&& function) {
        int64_t pixel = 0;
        for (int64_t channel = 0; channel < block.outputs; ++channel)
            for (int64_t y = 0; y < block.summed[0]; ++y) {
                const int64_t at = block.bordered.at(channel, y, 0);
                for (int64_t x = 0; x < block.summed[1]; ++x)
                    function(pixel++, at + x);
            }
    }

    // From tangents of z to those of y. Without pooling ydot is in place of zdot.
    static void push_pooled(const Block& block, const Kept& kept, T* zdot, T* ydot) {
        const auto bent = [&](int64_t i, Register v) { return kept.slope ? load(kept.slope, i) * v : v; };
        if (block.pooling == Pooling::Average)
            return average(block, [&](int64_t i) { return bent(i, load(zdot, i)); }, ydot);
        if (block.pools_maxima())
            return each_window(block, [&](int64_t i, const Window& window) {
                store(ydot, i, bent(i, at_winner(block, window, zdot, load(kept.winner, i))));
            });
        const int64_t pixels = block.z_pixels();
        for (int64_t i = 0; i < pixels; ++i)
            store(zdot, i, bent(i, load(zdot, i)));
    }

    // second (+)= phi'' unpool(u) zdot.
    static void add_curvature(const Block& block, const Kept& kept, const T* zdot, const T* u, bool add, T* second) {
        const bool sum = add || !(block.pools_maxima() || block.windows_are_tiles());
        const auto put = [&](int64_t i, Register product) {
            const Register term = load(kept.bend, i) * product;
            store(second, i, sum ? load(second, i) + term : term);
        };
        if (sum && !add) fill_zero(second, block.z_pixels());
        if (block.pooling == Pooling::None) {
            const int64_t pixels = block.z_pixels();
            for (int64_t i = 0; i < pixels; ++i)
                put(i, load(u, i) * load(zdot, i));
            return;
        }
        const Layout layout = dense(block);
        const T part = share(block);
        each_window(block, [&](int64_t i, const Window& window) {
            const Register cotangent = load(u, i);
            if (block.pools_maxima()) return put(i, cotangent * at_winner(block, window, zdot, load(kept.winner, i)));
            window.each([&](int64_t, int64_t y, int64_t x) {
                const int64_t at = layout.at(window.channel, y, x);
                put(at, cotangent * part * load(zdot, at));
            });
        });
    }

    // The sweeps.

    // A thread's scratch memory.
    struct Scratch {
        T *x, *g, *z, *y;
        Scratch(const Block& block, T* memory) {
            x = memory;
            g = x + block.inputs * block.padded.plane * lanes;
            y = g + block.outputs * block.bordered.plane * lanes;
            z = y + block.y_pixels() * lanes;  // also what is pulled to x
        }
        const T* result(const Block& block) const { return block.pooling == Pooling::None ? z : y; }
    };

    static GRADREG_FAST_INLINE int64_t samples_of(int64_t tile, int64_t samples) {
        return samples - tile * lanes < lanes ? samples - tile * lanes : lanes;
    }

    static void load_x(const Block& block, const Images<const T>& x, int64_t first, int64_t samples, T* tile) {
        gather_samples(x, first, samples, block.inputs, block.size, block.padded, tile);
    }

    static void load_y(const Block& block, const Images<const T>& y, int64_t first, int64_t samples, T* tile) {
        const Layout layout{block.pooled[0] * block.pooled[1], block.pooled[1], 0};
        gather_samples(y, first, samples, block.outputs, block.pooled, layout, tile);
    }

    static void forward(const ConvForward<T>& problem, int64_t begin, int64_t end, T* memory) {
        const Block& block = *problem.block;
        const Scratch scratch(block, memory);
        fill_zero(scratch.x, block.inputs * block.padded.plane);
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t samples = samples_of(tile, problem.samples), first = tile * lanes;
            load_x(block, problem.x, first, samples, scratch.x);
            correlate(block.straight, scratch.x, problem.bias, scratch.z);
            with_kind<Math>(block.kind, block.settings, [&](auto phi) {
                activate(block, phi, scratch.z, scratch.y, problem.kept + tile * block.kept_pixels() * lanes);
            });
            scatter_samples(scratch.result(block), samples, block.outputs, block.pooled, problem.y, first);
        }
    }

    static void push(const ConvPush<T>& problem, int64_t begin, int64_t end, T* memory) {
        const Block& block = *problem.block;
        const Scratch scratch(block, memory);
        fill_zero(scratch.x, block.inputs * block.padded.plane);
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t samples = samples_of(tile, problem.samples);
            const Kept kept(block, problem.kept + tile * block.kept_pixels() * lanes);
            T* const second = problem.second ? problem.second + tile * block.slope_pixels() * lanes : nullptr;
            for (int64_t k = 0; k < problem.stack; ++k) {
                const int64_t first = k * problem.samples + tile * lanes;
                load_x(block, problem.xdot, first, samples, scratch.x);
                if (second || problem.weight_sums) load_y(block, problem.u, first, samples, scratch.y);
                if (second || problem.ydot.data) correlate(block.straight, scratch.x, nullptr, scratch.z);
                if (problem.weight_sums) {
                    unpool(block, kept, scratch.y, nullptr, scratch.g);
                    add_weight_gradient(block, scratch.x, scratch.g, problem.weight_sums);
                }
                if (second) add_curvature(block, kept, scratch.z, scratch.y, k > 0, second);
                if (problem.ydot.data) {
                    push_pooled(block, kept, scratch.z, scratch.y);
                    scatter_samples(scratch.result(block), samples, block.outputs, block.pooled, problem.ydot, first);
                }
            }
        }
    }

    static void pull(const ConvPull<T>& problem, int64_t begin, int64_t end, T* memory) {
        const Block& block = *problem.block;
        const Scratch scratch(block, memory);
        fill_zero(scratch.x, block.inputs * block.padded.plane);
        fill_zero(scratch.g, block.outputs * block.bordered.plane);
        if (!problem.u.data) fill_zero(scratch.y, block.y_pixels());
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t samples = samples_of(tile, problem.samples);
            const Kept kept(block, problem.kept + tile * block.kept_pixels() * lanes);
            const T* const second = problem.second ? problem.second + tile * block.slope_pixels() * lanes : nullptr;
            for (int64_t k = 0; k < problem.stack; ++k) {
                const int64_t first = k * problem.samples + tile * lanes;
                if (problem.u.data) load_y(block, problem.u, first, samples, scratch.y);
                unpool(block, kept, scratch.y, second, scratch.g);
                if (problem.weight_sums) {
                    load_x(block, problem.x, first, samples, scratch.x);
                    add_weight_gradient(block, scratch.x, scratch.g, problem.weight_sums);
                }
                if (problem.bias_sums) add_bias_gradient(block, scratch.g, problem.bias_sums);
                if (problem.below.data) {
                    correlate(block.transposed, scratch.g, nullptr, scratch.z);
                    scatter_samples(scratch.z, samples, block.inputs, block.size, problem.below, first);
                }
            }
        }
    }

    static void reduce(const T* sums, int64_t count, T* to) {
        for (int64_t i = 0; i < count; ++i)
            to[i] = V::sum(load(sums, i));
    }

    static const ConvKernels<T>& kernels() {
        static constexpr ConvKernels<T> table{lanes, most_channels, forward, push, pull, reduce};
        return table;
    }
};

}  // namespace gradreg_fast
