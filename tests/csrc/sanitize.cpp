// The kernels without PyTorch, on heap blocks of exactly the promised sizes and on threads of our own: for
// AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer. Built and run by sanitize.sh.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/active.h"
#include "cpu/average_pool.h"
#include "cpu/capability.h"
#include "cpu/conv.h"
#include "cpu/elementwise.h"
#include "cpu/layer_norm.h"
#include "cpu/max_pool.h"
#include "cpu/mlp.h"
#include "cpu/norm.h"

using namespace gradreg_fast;

template <class T>
struct Block {
    std::unique_ptr<T[]> memory;
    explicit Block(int64_t count) : memory(new T[count]) {
        for (int64_t i = 0; i < count; ++i)
            memory[i] = T(std::sin(double(i)) / 3);
    }
    T* get() { return memory.get(); }
};

int64_t round_up(int64_t size, int64_t multiple) {
    return (size + multiple - 1) / multiple * multiple;
}

// Calls function(begin, end) for parts of the rows, each on a thread of its own, as mlp.cpp and conv.cpp do.
template <class Function>
void in_parts(int64_t rows, const Function& function, int64_t rows_each = 24) {
    std::vector<std::thread> threads;
    for (int64_t begin = 0; begin < rows; begin += rows_each)
        threads.emplace_back(function, begin, std::min(rows, begin + rows_each));
    for (std::thread& thread : threads)
        thread.join();
}

// Stands in for a library's product.
template <class T>
void multiply(int64_t m, int64_t n, int64_t depth, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
              bool accumulate) {
    const auto at = [](Operand<T> from, int64_t row, int64_t column) {
        return from.transposed ? from.base[column * from.stride + row] : from.base[row * from.stride + column];
    };
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
            T sum = accumulate ? c[i * c_stride + j] : T(0);
            for (int64_t k = 0; k < depth; ++k)
                sum += at(a, i, k) * at(b, k, j);
            c[i * c_stride + j] = sum;
        }
}

template <class T>
void run(const MlpKernels<T>& kernels, const std::vector<int64_t>& widths, Kind kind, Loss loss, int64_t rows,
         int64_t stack, int64_t tile, bool by_library) {
    const int64_t depth = int64_t(widths.size()) - 1, lanes = kernels.lanes;
    const int64_t inputs = widths.front(), outputs = widths.back();
    std::vector<Block<T>> blocks;
    const auto take = [&](int64_t count) {
        blocks.emplace_back(count);
        return blocks.back().get();
    };
    std::vector<Layer<T>> layers;
    for (int64_t l = 0; l < depth; ++l) {
        const int64_t d = widths[l], n = widths[l + 1], d_stride = round_up(d, lanes), n_stride = round_up(n, lanes);
        layers.push_back({d, n, d_stride, n_stride, l + 1 < depth ? kind : Kind::Identity, Settings{1.5, 20},
                          take(by_library ? n * d : n * d_stride), kind == Kind::ReLU,
                          by_library ? nullptr : take(d * n_stride), take(n_stride), take(rows * n_stride),
                          take(rows * stack * n_stride), by_library ? &multiply<T> : nullptr});
    }
    const bool curvature_free = kind == Kind::ReLU || kind == Kind::LeakyReLU || kind == Kind::Identity;
    const bool with_loss = loss != Loss::None;
    const bool unit_seed = curvature_free && stack == 1 && outputs == 1 && !with_loss;
    const Target<T> target{loss, nullptr, with_loss ? take(rows * outputs) : nullptr};
    const ForwardPull<T> forward{layers.data(),
                                 depth,
                                 rows,
                                 stack,
                                 unit_seed,
                                 take(rows * inputs),
                                 take(stack * rows * outputs),
                                 target,
                                 take(stack * rows * inputs),
                                 take(rows * outputs),
                                 take(stack * rows * inputs),
                                 take(rows)};
    in_parts(rows, [&](int64_t begin, int64_t end) {
        Block<T> scratch(kernels.forward_scratch(forward, tile));
        kernels.forward(forward, begin, end, tile, scratch.get());
    });

    for (const bool with_ybar : {true, false})
        for (const bool with_gbar : {true, false}) {
            if (!with_ybar && !with_gbar) continue;
            PushAdjoint<T> backward{};
            backward.layers = layers.data();
            backward.depth = depth;
            backward.rows = rows;
            backward.stack = with_gbar ? stack : 0;
            backward.proportional = unit_seed && with_gbar;
            backward.curvature_free = curvature_free && !with_loss;
            backward.target = target;
            backward.weights = with_loss && with_gbar ? take(rows) : nullptr;
            backward.x = forward.x;
            backward.cotangent = forward.cotangent;
            backward.ybar = with_ybar ? take(rows * outputs) : nullptr;
            backward.gbar = with_gbar ? take(stack * rows * inputs) : nullptr;
            backward.xbar = take(rows * inputs);
            backward.cotangent_bar = with_gbar && !with_loss ? take(stack * rows * outputs) : nullptr;
            in_parts(rows, [&](int64_t begin, int64_t end) {
                std::vector<Block<T>> sums;
                std::vector<LayerGradient<T>> gradients;
                for (const Layer<T>& layer : layers) {
                    const int64_t straight = layer.outputs * layer.input_stride;
                    const int64_t turned = by_library ? straight : layer.inputs * layer.output_stride;
                    T* weight = sums.emplace_back(std::min(straight, turned)).get();
                    T* bias = sums.emplace_back(layer.output_stride).get();
                    gradients.push_back({weight, bias, turned < straight, layer.plain});
                }
                PushAdjoint<T> mine = backward;
                mine.gradients = gradients.data();
                Block<T> scratch(kernels.backward_scratch(mine, tile));
                kernels.backward(mine, begin, end, tile, scratch.get());
            });
            for (int64_t i = 0; i < rows * inputs; ++i)
                if (!std::isfinite(backward.xbar[i])) std::abort();
        }
}

// Both products and the metric's gradient between layers of these widths; `share` of the values above are positive.
template <class T>
void run(const ActiveKernels<T>& kernels, int64_t above_width, int64_t below_width, int64_t batch, int64_t K,
         double share) {
    const auto values = [&](int64_t width) {
        Block<T> block(batch * width);
        for (int64_t i = 0; i < batch * width; ++i)
            block.get()[i] = T(share - double(i * 7919 % 101) / 101);
        return block;
    };
    const auto rows = [&](int64_t width) { return Block<T>(batch * K * round_up(width, kernels.lanes)); };
    Block<T> upper = values(above_width), lower = values(below_width), factor(batch), dots(batch);
    Block<T> weight(above_width * below_width), gradient(above_width * below_width), square(above_width * above_width);
    Block<T> above = rows(above_width), below = rows(below_width), other = rows(below_width);
    const auto scratch_of = [&](const ActiveLayer<T>& layer) {
        const int64_t lines = (kernels.scratch_size(layer) + 63) / 64;
        struct alignas(64) Line {
            char bytes[64];
        };
        return std::unique_ptr<Line[]>(new Line[lines]);
    };
    for (const bool all : {false, true}) {
        const Stack<T> top{above.get(), upper.get(), above_width};
        const Stack<T> bottom{below.get(), all ? nullptr : lower.get(), below_width};
        const ActiveLayer<T> layer{batch, K, top, bottom}, metric{batch, K, top, top};
        const auto scratch = scratch_of(layer), square_scratch = scratch_of(metric);
        char *memory = scratch[0].bytes, *square_memory = square_scratch[0].bytes;
        kernels.product(layer, weight.get(), 0, batch, memory);
        kernels.dot(bottom, bottom, K, 0, batch, dots.get(), memory);
        for (int64_t i = 0; i < above_width; i += 5) {
            const int64_t end = std::min(above_width, i + 5);
            kernels.outer(layer, factor.get(), false, i, end, gradient.get(), memory);
            kernels.outer(metric, factor.get(), true, i, end, square.get(), square_memory);
        }
        for (int64_t b = 0; b < batch; ++b)
            if (!(dots.get()[b] >= 0)) std::abort();
        if (above_width != K) continue;
        const ActiveLayer<T> identity{batch, K, {nullptr, nullptr, K}, bottom};
        kernels.product(identity, weight.get(), 0, batch, memory);
        kernels.outer(identity, factor.get(), false, 0, K, gradient.get(), memory);
    }
}

template <class T>
void run_all(const ActiveKernels<T>& kernels) {
    for (const int64_t K : {1, 7})
        for (const int64_t above : {1, 7, 33, 150})
            for (const int64_t below : {1, 16, 37})
                for (const double share : {-1.0, 0.1, 0.5, 2.0})
                    run(kernels, above, below, 3, K, share);
}

template <class T>
void run_all(const MlpKernels<T>& kernels) {
    for (const auto& widths : std::vector<std::vector<int64_t>>{{1, 1}, {3, 17, 1}, {65, 3, 17, 2}, {2, 64, 64, 1}})
        for (int kind = 0; kind < int(Kind::Count); ++kind)
            for (const int64_t rows : {1, 5, 49})
                for (const int64_t stack : {1, 3})
                    for (int loss = 0; loss < (stack == 1 ? int(Loss::Count) : 1); ++loss) {
                        run(kernels, widths, Kind(kind), Loss(loss), rows, stack, 24, false);
                        if (rows == 49 && (Kind(kind) == Kind::ReLU || Kind(kind) == Kind::Softplus))
                            run(kernels, widths, Kind(kind), Loss(loss), rows, stack, 24, true);
                    }
}

// A convolution block with stride 1 and padding 1 of a 3 x 3 kernel.
template <class T>
void run(const ConvKernels<T>& kernels, int64_t inputs, int64_t outputs, Pooling pooling, Kind kind, int64_t samples,
         int64_t stack, bool channels_last) {
    std::vector<Block<T>> blocks;
    const auto take = [&](int64_t count) {
        blocks.emplace_back(count);
        return blocks.back().get();
    };
    const int64_t height = 7, width = 6, tiles = round_up(samples, kernels.lanes) / kernels.lanes;
    const Layout bordered{(height + 2) * (width + 2), width + 2, width + 3};
    ConvBlock<T> block{};
    block.inputs = inputs, block.outputs = outputs;
    block.size[0] = block.summed[0] = height, block.size[1] = block.summed[1] = width;
    block.pooled[0] = pooling == Pooling::None ? height : 3, block.pooled[1] = pooling == Pooling::None ? width : 2;
    block.padded = block.bordered = bordered;
    block.pooling = pooling, block.kind = kind, block.settings = {1.5, 20};
    block.curved = kind > Kind::LeakyReLU;
    for (int i = 0; i < 2; ++i)
        block.window[i] = 3, block.step[i] = 2;
    std::vector<int64_t> offsets[2];
    std::vector<Phase<T>> phases[2];
    for (int which = 0; which < 2; ++which) {
        for (int64_t c = 0; c < (which ? outputs : inputs); ++c)
            for (int64_t i = -1; i < 2; ++i)
                for (int64_t j = -1; j < 2; ++j)
                    offsets[which].push_back(bordered.at(c, i, j) * kernels.lanes);
        const int64_t taps = int64_t(offsets[which].size());
        phases[which].push_back({height, width, 0, width, 1, 0, bordered.pitch, 1, taps, offsets[which].data(),
                                 take(taps * (which ? inputs : outputs))});
    }
    block.straight = {outputs, height * width, 1, phases[0].data()};
    block.transposed = {inputs, height * width, 1, phases[1].data()};

    const int64_t x = samples * block.x_pixels(), y = samples * block.y_pixels();
    T* const kept = take(tiles * block.kept_pixels() * kernels.lanes);
    T *const bias = take(outputs), *const results = take(stack * y), *const below = take(x);
    T* const second = block.curved ? take(tiles * block.slope_pixels() * kernels.lanes) : nullptr;
    const Images<const T> images{take(x), channels_last}, xdot{take(stack * x), channels_last};
    const Images<const T> u{take(stack * y), channels_last};
    const int64_t weights = inputs * outputs * 9;
    const auto each_tile = [&](const auto& sweep) {
        in_parts(
            tiles,
            [&](int64_t begin, int64_t end) {
                Block<T> scratch(block.scratch_pixels() * kernels.lanes), sums(weights * kernels.lanes);
                Block<T> bias_sums(outputs * kernels.lanes), total(weights);
                sweep(begin, end, scratch.get(), sums.get(), bias_sums.get());
                kernels.reduce(sums.get(), weights, total.get());
            },
            1);
    };
    each_tile([&](int64_t begin, int64_t end, T* scratch, T*, T*) {
        kernels.forward({&block, samples, bias, images, {results, channels_last}, kept}, begin, end, scratch);
    });
    each_tile([&](int64_t begin, int64_t end, T* scratch, T* sums, T*) {
        kernels.push({&block, samples, stack, kept, xdot, u, {results, channels_last}, second, sums}, begin, end,
                     scratch);
    });
    each_tile([&](int64_t begin, int64_t end, T* scratch, T* sums, T* bias_sums) {
        kernels.pull({&block, samples, 1, kept, u, second, images, sums, bias_sums, {below, channels_last}}, begin, end,
                     scratch);
    });
    for (int64_t i = 0; i < x; ++i)
        if (!std::isfinite(below[i])) std::abort();
}

template <class T>
void run_all(const ConvKernels<T>& kernels) {
    for (const auto& [inputs, outputs] : std::vector<std::pair<int64_t, int64_t>>{{1, 6}, {3, 7}, {13, 2}})
        for (int pooling = 0; pooling < int(Pooling::Count); ++pooling)
            for (const Kind kind : {Kind::Identity, Kind::ReLU, Kind::Softplus})
                for (const int64_t samples : {1, 17})
                    for (const int64_t stack : {1, 2})
                        run(kernels, inputs, outputs, Pooling(pooling), kind, samples, stack, samples == 17);
}

// Sums and passes of a normalisation, in every form.
template <class T>
void run_all(const NormKernels<T>& kernels) {
    for (const int64_t channels : {1, 5, 33})
        for (const int64_t pixels : {1, 7, 40})
            for (const int64_t K : {1, 2})
                for (const bool last : {false, true}) {
                    const int64_t batch = 3, numbers = batch * channels * pixels, count = 4 + 4 * K;
                    Block<T> x(numbers), mean(channels), u(K * numbers), v(K * numbers), coefficients(count * channels);
                    Block<T> added(numbers), result(K * numbers), second(numbers);
                    const NormLayout<T> norm{batch, channels, pixels, last, x.get(), mean.get()};
                    Block<T> projected(K * projected_sums * channels), meeting(K * meeting_sums * channels);
                    kernels.sums(norm, nullptr, v.get(), K, 0, norm.lines(), projected.get());
                    kernels.sums(norm, u.get(), v.get(), K, 0, norm.lines(), meeting.get());
                    NormPass<T> pass{u.get(), v.get(), K, nullptr, coefficients.get(), result.get(), second.get()};
                    const auto part = [&](int64_t begin, int64_t end) { kernels.pass(norm, pass, begin, end); };
                    in_parts(norm.lines(), part);
                    pass.result = nullptr;
                    in_parts(norm.lines(), part);
                    pass = {nullptr,      v.get(), K, K == 1 ? added.get() : nullptr, coefficients.get(),
                            result.get(), nullptr};
                    in_parts(norm.lines(), part);
                }
}

// The passes of activations with a mask, with results and with arguments.
template <class T>
void run_all(const ElementwiseKernels<T>& kernels) {
    for (const Kind kind : {Kind::LeakyReLU, Kind::Tanh, Kind::SiLU})
        for (const int64_t count : {1, 63, 200})
            for (const int64_t K : {1, 2}) {
                Block<T> z(count), y(count), u(K * count), xdot(K * count), w(count), ydot(K * count);
                Block<uint8_t> mask(mask_bytes(count, sizeof(T)));
                const bool masked = kind == Kind::LeakyReLU;
                Elementwise pass{kind, {0.2, 0}, count, nullptr, nullptr};
                const auto each = [&](const auto& function) { in_parts(count, function, 64); };
                each([&](int64_t begin, int64_t end) {
                    kernels.value(pass, z.get(), y.get(), masked ? mask.get() : nullptr, begin, end);
                });
                masked ? void(pass.mask = mask.get()) : void(pass.kept = kind == Kind::Tanh ? y.get() : z.get());
                each([&](int64_t begin, int64_t end) { kernels.slope(pass, u.get(), K, u.get(), begin, end); });
                if (masked) continue;
                each([&](int64_t begin, int64_t end) {
                    kernels.meet(pass, u.get(), xdot.get(), K, w.get(), ydot.get(), begin, end);
                });
                each([&](int64_t begin, int64_t end) {
                    kernels.bend(pass, u.get(), w.get(), true, y.get(), begin, end);
                });
            }
}

// The same for normalisations over rows.
template <class T>
void run_all(const RowNormKernels<T>& kernels) {
    for (const int64_t columns : {1, 5, 33})
        for (const int64_t K : {1, 2})
            for (const bool plain : {false, true}) {
                const int64_t rows = 7, numbers = rows * columns;
                Block<T> x(numbers), mean(rows), inverse(rows), weight(columns), u(K * numbers), v(K * numbers);
                Block<T> added(K * numbers), result(K * numbers), second(numbers), gradients(2 * columns);
                const RowNorm<T> norm{rows,          columns,
                                      x.get(),       plain ? nullptr : mean.get(),
                                      inverse.get(), plain ? nullptr : weight.get()};
                in_parts(rows, [&](int64_t begin, int64_t end) {
                    kernels.project(norm, v.get(), K, plain, plain ? nullptr : added.get(), result.get(),
                                    K == 1 ? gradients.get() : nullptr, begin, end);
                    kernels.meet(norm, u.get(), v.get(), K, second.get(), plain ? nullptr : gradients.get(),
                                 plain ? nullptr : result.get(), begin, end);
                });
            }
}

// Maxima over windows that are tiles, that overlap, and that leave gaps.
template <class T>
void run_all(const MaxPoolKernels<T>& kernels) {
    const MaxPool forms[] = {{{0, 0, {6, 4}, {3, 2}, {2, 2}, {2, 2}, {0, 0}}, true, 0},
                             {{0, 0, {5, 7}, {3, 7}, {3, 3}, {2, 1}, {1, 1}}, false, 0.2},
                             {{0, 0, {7, 5}, {3, 2}, {1, 2}, {3, 3}, {0, 0}}, false, 1}};
    for (MaxPool pool : forms)
        for (const int64_t channels : {1, 5, 33})
            for (const int64_t K : {1, 2}) {
                pool.planes = 30, pool.channels = channels;
                const int64_t z_count = pool.planes * pool.image(), y_count = pool.planes * pool.pooled_image();
                Block<T> z(z_count), y(y_count), xdot(K * z_count), u(K * y_count), ydot(K * y_count);
                Block<uint8_t> code(y_count);
                in_parts(pool.planes, [&](int64_t begin, int64_t end) {
                    kernels.forward(pool, z.get(), y.get(), code.get(), begin, end);
                    kernels.push(pool, code.get(), xdot.get(), K, ydot.get(), begin, end);
                    kernels.pull(pool, code.get(), u.get(), K, xdot.get(), begin, end);
                });
            }
}

// Averages over such windows, of activations with a mask and without.
template <class T>
void run_all(const AveragePoolKernels<T>& kernels) {
    const Windows forms[] = {{0, 0, {6, 4}, {3, 2}, {2, 2}, {2, 2}, {0, 0}},
                             {0, 0, {5, 7}, {3, 7}, {3, 3}, {2, 1}, {1, 1}},
                             {0, 0, {7, 5}, {3, 2}, {1, 2}, {3, 3}, {0, 0}}};
    for (Windows windows : forms)
        for (const int64_t channels : {1, 5, 33})
            for (const Kind kind : {Kind::LeakyReLU, Kind::SiLU}) {
                windows.planes = 30, windows.channels = channels;
                const AveragePool pool{windows, false, 0, kind, {0.2, 0}};
                const int64_t K = 2, z_count = pool.planes * pool.image(), y_count = pool.planes * pool.pooled_image();
                Block<T> z(z_count), y(y_count), xdot(K * z_count), u(K * y_count), ydot(K * y_count), second(z_count);
                Block<uint8_t> bytes(pool.mask_bytes() * y_count);
                const T* const kept = pool.masked() ? nullptr : z.get();
                uint8_t* const mask = pool.masked() ? bytes.get() : nullptr;
                in_parts(pool.planes, [&](int64_t begin, int64_t end) {
                    kernels.forward(pool, z.get(), y.get(), mask, begin, end);
                    kernels.push(pool, kept, mask, xdot.get(), K, ydot.get(), begin, end);
                    kernels.meet(pool, u.get(), xdot.get(), K, second.get(), begin, end);
                    kernels.pull(pool, kept, mask, u.get(), K, nullptr, xdot.get(), begin, end);
                    if (!mask) kernels.pull(pool, kept, mask, u.get(), 1, second.get(), xdot.get(), begin, end);
                });
            }
}

template <class T, Capability capability>
void run_families() {
    run_all(mlp_kernels<T, capability>());
    run_all(active_kernels<T, capability>());
    run_all(conv_kernels<T, capability>());
    run_all(norm_kernels<T, capability>());
    run_all(max_pool_kernels<T, capability>());
    run_all(average_pool_kernels<T, capability>());
    run_all(elementwise_kernels<T, capability>());
    run_all(row_norm_kernels<T, capability>());
}

template <Capability capability>
void run_dtypes() {
    if (capability > cpu_capability()) return;
    run_families<float, capability>();
    run_families<double, capability>();
}

int main() {
    run_dtypes<Capability::Baseline>();
    run_dtypes<Capability::AVX2>();
    run_dtypes<Capability::AVX512>();
    std::printf("no errors, up to %s\n", capability_name(cpu_capability()));
}
