// The operations of a convolution block: checks, memory and threads around the sweeps of conv_sweeps.h.

#include "cpu/conv.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/conv_arguments.h"
#include "cpu/capability.h"
#include "cpu/denormals.h"

namespace gradreg_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Pair = ConvSizes::Pair;

template <class T>
const ConvKernels<T>& kernels() {
    return best_of([](auto capability) -> auto& { return conv_kernels<T, capability>(); });
}

int64_t lanes_of(ScalarType type) {
    return lanes(cpu_capability(), type == ScalarType::Float ? sizeof(float) : sizeof(double));
}

void check(const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape, const char* name) {
    STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must have the dtype of the weight");
    bool fits = tensor.dim() == int64_t(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i)
        fits = tensor.size(int64_t(i)) == shape[i];
    STD_TORCH_CHECK(fits, name, " has the wrong shape");
}

// Checked, and contiguous.
Optional checked(const Optional& tensor, ScalarType type, const std::vector<int64_t>& shape, const char* name) {
    if (!tensor) return std::nullopt;
    check(*tensor, type, shape, name);
    return as_contiguous(*tensor);
}

// Checked, and without gaps in one of the two layouts.
Optional checked_images(const Optional& images, ScalarType type, const std::vector<int64_t>& shape, const char* name) {
    if (!images) return std::nullopt;
    check(*images, type, shape, name);
    return is_channels_last(*images) ? images : as_contiguous(*images);
}

template <class T>
Images<const T> images_of(const Optional& tensor) {
    if (!tensor) return {nullptr, false};
    return {data<T>(*tensor), !tensor->is_contiguous()};
}

// The same on the CPU: tiles of samples, in numbers that there are registers of.
struct Sizes : ConvSizes {
    int64_t tiles;

    Sizes(const std::vector<int64_t>& shape, const Tensor& weight, const std::vector<int64_t>& options,
          const std::vector<double>& numbers)
        : ConvSizes(shape, weight, options, numbers) {
        STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "weight must be float32 or float64");
        STD_TORCH_CHECK(weight.is_cpu(), "weight must be on the CPU");
        tiles = round_up(samples, lanes_of(type)) / lanes_of(type);
    }
};

int64_t floor_divide(int64_t a, int64_t b) {
    return a / b - (a % b < 0);
}

// A block as kernels take it, with the tables and packed weights that it points to.
template <class T>
struct Plan {
    ConvBlock<T> block{};
    std::vector<int64_t> offsets[2];  // straight; transposed, phase by phase
    std::vector<T> weights[2];
    std::vector<Phase<T>> phases[2];

    Plan(const Sizes& sizes, const Tensor& weight) {
        block.inputs = sizes.inputs;
        block.outputs = sizes.outputs;
        block.pooling = sizes.pooling;
        block.kind = sizes.kind;
        block.settings = sizes.settings;
        block.curved = sizes.curved();
        Pair before, across;  // borders of z's cotangents: before them, and with them
        for (int i = 0; i < 2; ++i) {
            block.size[i] = sizes.size[i], block.summed[i] = sizes.summed[i], block.pooled[i] = sizes.pooled[i];
            block.window[i] = sizes.window[i], block.step[i] = sizes.step[i], block.margin[i] = sizes.margin[i];
            const int64_t reach = sizes.dilation[i] * (sizes.kernel[i] - 1);
            before[i] = std::max<int64_t>(-floor_divide(sizes.padding[i] - reach, sizes.stride[i]), 0);
            const int64_t last = (sizes.size[i] - 1 + sizes.padding[i]) / sizes.stride[i];
            across[i] = before[i] + std::max(last + 1, sizes.summed[i]);
        }
        const int64_t height = sizes.size[0] + 2 * sizes.padding[0], width = sizes.size[1] + 2 * sizes.padding[1];
        block.padded = {height * width, width, sizes.padding[0] * width + sizes.padding[1]};
        block.bordered = {across[0] * across[1], across[1], before[0] * across[1] + before[1]};
        plan_straight(sizes, data<T>(weight));
        plan_transposed(sizes, data<T>(weight));
        finish(0, block.straight, sizes.outputs, sizes.summed[0] * sizes.summed[1]);
        finish(1, block.transposed, sizes.inputs, sizes.size[0] * sizes.size[1]);
    }

    Plan(const Plan&) = delete;

  private:
    static const int64_t lanes() { return kernels<T>().lanes; }

    void plan_straight(const Sizes& sizes, const T* weight) {
        const int64_t pitch = block.padded.pitch, taps = sizes.taps();
        for (int64_t c = 0; c < sizes.inputs; ++c)
            for (int64_t i = 0; i < sizes.kernel[0]; ++i)
                for (int64_t j = 0; j < sizes.kernel[1]; ++j)
                    offsets[0].push_back(
                        (c * block.padded.plane + i * sizes.dilation[0] * pitch + j * sizes.dilation[1]) * lanes());
        phases[0].push_back({sizes.summed[0], sizes.summed[1], 0, sizes.summed[1], 1, 0, sizes.stride[0] * pitch,
                             sizes.stride[1], taps, nullptr, nullptr});
        pack(0, sizes.outputs, taps, [=](int64_t channel, int64_t tap) { return weight[channel * taps + tap]; });
    }

    // Pixel i of x gets from tap k of the pixels o of z with o stride + k dilation - padding = i: for each remainder of
    // i + padding the same taps, and o one further from one such i to the next.
    void plan_transposed(const Sizes& sizes, const T* weight) {
        const int64_t area = sizes.kernel[0] * sizes.kernel[1];
        for (int64_t y = 0; y < std::min(sizes.stride[0], sizes.size[0]); ++y)
            for (int64_t x = 0; x < std::min(sizes.stride[1], sizes.size[1]); ++x) {
                std::vector<int64_t> taps;
                for (int64_t c = 0; c < sizes.outputs; ++c)
                    for (int64_t i = 0; i < sizes.kernel[0]; ++i)
                        for (int64_t j = 0; j < sizes.kernel[1]; ++j) {
                            const int64_t row = y + sizes.padding[0] - i * sizes.dilation[0];
                            const int64_t column = x + sizes.padding[1] - j * sizes.dilation[1];
                            if (row % sizes.stride[0] != 0 || column % sizes.stride[1] != 0) continue;
                            taps.push_back(c * sizes.inputs * area + i * sizes.kernel[1] + j);
                            offsets[1].push_back(block.bordered.at(c, row / sizes.stride[0], column / sizes.stride[1]) *
                                                 lanes());
                        }
                phases[1].push_back({(sizes.size[0] - y - 1) / sizes.stride[0] + 1,
                                     (sizes.size[1] - x - 1) / sizes.stride[1] + 1, y * sizes.size[1] + x,
                                     sizes.stride[0] * sizes.size[1], sizes.stride[1], 0, block.bordered.pitch, 1,
                                     int64_t(taps.size()), nullptr, nullptr});
                pack(1, sizes.inputs, int64_t(taps.size()),
                     [&](int64_t channel, int64_t tap) { return weight[taps[tap] + channel * area]; });
            }
    }

    // Append the weights of a phase, block of channels by block.
    template <class Weight>
    void pack(int which, int64_t channels, int64_t taps, Weight&& weight) {
        const int64_t blocks = block_count(channels, kernels<T>().block_channels);
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t tap = 0; tap < taps; ++tap)
                for (int64_t c = block_begin(channels, blocks, i); c < block_begin(channels, blocks, i + 1); ++c)
                    weights[which].push_back(weight(c, tap));
    }

    void finish(int which, Correlation<T>& correlation, int64_t channels, int64_t out_plane) {
        int64_t taps = 0;
        for (Phase<T>& phase : phases[which]) {
            phase.offsets = offsets[which].data() + taps;
            phase.weights = weights[which].data() + taps * channels;
            taps += phase.taps;
        }
        correlation = {channels, out_plane, int64_t(phases[which].size()), phases[which].data()};
    }
};

constexpr int64_t thread_work = 1 << 20;  // multiplications that pay for waking a thread

// How a batch's tiles are split: a function of the sizes and the number of threads alone, so that sums are
// reproducible.
struct Split {
    int64_t threads, tiles, tiles_each;

    Split(const Sizes& sizes, int64_t stack) : tiles(sizes.tiles) {
        const int64_t work = sizes.samples * stack * sizes.outputs * sizes.summed[0] * sizes.summed[1] * sizes.taps();
        const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), work / thread_work);
        tiles_each = (tiles + std::max<int64_t>(workers, 1) - 1) / std::max<int64_t>(workers, 1);
        threads = tiles == 0 ? 0 : (tiles + tiles_each - 1) / tiles_each;
    }

    // Call function(thread, begin, end) for each part of the tiles.
    template <class Function>
    void each(Function&& function) const {
        const auto part = [&](int64_t first, int64_t last) {
            const FlushDenormals flush;
            for (int64_t thread = first; thread < last; ++thread)
                function(thread, thread * tiles_each, std::min(tiles, (thread + 1) * tiles_each));
        };
        if (threads <= 1) return part(0, threads);
        torch::stable::parallel_for(0, threads, 1, part);
    }
};

// The threads' sums of parameter gradients, a register for each number.
template <class T>
class Sums {
  public:
    Sums(int64_t threads, int64_t count, bool wanted)
        : threads(threads),
          count(wanted ? count : 0),
          memory(threads * this->count * kernels<T>().lanes * sizeof(T)),
          base(reinterpret_cast<T*>(memory.get())) {
        std::fill_n(base, threads * this->count * kernels<T>().lanes, T(0));
    }
    T* of(int64_t thread) const { return count ? base + thread * count * kernels<T>().lanes : nullptr; }

    // Their total, in the order of the threads.
    std::vector<T> total() const {
        std::vector<T> total(count), part(count);
        for (int64_t thread = 0; thread < threads; ++thread) {
            kernels<T>().reduce(of(thread), count, part.data());
            for (int64_t i = 0; i < count; ++i)
                total[i] += part[i];
        }
        return total;
    }

  private:
    int64_t threads, count;
    Scratch memory;
    T* base;
};

// From the order of packed weights to that of the weight.
template <class T>
Tensor weight_gradient(const Sizes& sizes, const Tensor& weight, const Sums<T>& sums) {
    const Tensor gradient =
        torch::stable::new_empty(weight, {sizes.outputs, sizes.inputs, sizes.kernel[0], sizes.kernel[1]});
    const std::vector<T> total = sums.total();
    const int64_t blocks = block_count(sizes.outputs, kernels<T>().block_channels), taps = sizes.taps();
    const T* from = total.data();
    for (int64_t i = 0; i < blocks; ++i)
        for (int64_t tap = 0; tap < taps; ++tap)
            for (int64_t c = block_begin(sizes.outputs, blocks, i); c < block_begin(sizes.outputs, blocks, i + 1); ++c)
                mutable_data<T>(gradient)[c * taps + tap] = *from++;
    return gradient;
}

int64_t kept_count(const Sizes& sizes, int64_t pixels) {
    return sizes.tiles * pixels * lanes_of(sizes.type);
}

template <class T>
std::tuple<Tensor, Tensor> run_forward(const Sizes& sizes, const Tensor& x, const Tensor& weight,
                                       const Optional& bias) {
    const Plan<T> plan(sizes, weight);
    const Tensor y = new_images(x, sizes.y(), sizes.channels_last);
    const Tensor kept = torch::stable::new_empty(x, {kept_count(sizes, plan.block.kept_pixels())});
    const Split split(sizes, 1);
    const int64_t each = plan.block.scratch_pixels() * kernels<T>().lanes;
    const Scratch scratch(split.threads * each * sizeof(T));
    T* const base = reinterpret_cast<T*>(scratch.get());
    const ConvForward<T> problem{
        &plan.block,          sizes.samples, data<T>(bias), images_of<T>(x), {mutable_data<T>(y), sizes.channels_last},
        mutable_data<T>(kept)};
    split.each([&](int64_t thread, int64_t begin, int64_t end) {
        kernels<T>().forward(problem, begin, end, base + thread * each);
    });
    return {y, kept};
}

std::tuple<Tensor, Tensor> conv_forward(Tensor x, Tensor weight, Optional bias, std::vector<int64_t> options,
                                        std::vector<double> settings) {
    STD_TORCH_CHECK(x.dim() == 4, "x must be [B, C, H, W]");
    const Sizes sizes({x.size(0), x.size(1), x.size(2), x.size(3)}, weight, options, settings);
    x = *checked_images(x, sizes.type, sizes.x(), "x");
    bias = checked(bias, sizes.type, {sizes.outputs}, "bias");
    const auto run = sizes.type == ScalarType::Float ? run_forward<float> : run_forward<double>;
    return run(sizes, x, as_contiguous(weight), bias);
}

template <class T>
std::vector<Tensor> run_push(const Sizes& sizes, int64_t stack, const Tensor& xdot, const Optional& u,
                             const Tensor& kept, const Tensor& weight, bool push, bool curvature, bool gradient) {
    const Plan<T> plan(sizes, weight);
    STD_TORCH_CHECK(kept.numel() == kept_count(sizes, plan.block.kept_pixels()), "kept is not of this block");
    std::vector<Tensor> results;
    ConvPush<T> problem{};
    problem.block = &plan.block;
    problem.samples = sizes.samples;
    problem.stack = stack;
    problem.kept = data<T>(kept);
    problem.xdot = images_of<T>(xdot);
    problem.u = images_of<T>(u);
    if (push) {
        results.push_back(new_images(xdot, sizes.y(stack), sizes.channels_last));
        problem.ydot = {mutable_data<T>(results.back()), sizes.channels_last};
    }
    if (curvature) {
        results.push_back(torch::stable::new_empty(xdot, {kept_count(sizes, plan.block.slope_pixels())}));
        problem.second = mutable_data<T>(results.back());
    }
    const Split split(sizes, stack);
    const int64_t each = plan.block.scratch_pixels() * kernels<T>().lanes;
    const Scratch scratch(split.threads * each * sizeof(T));
    T* const base = reinterpret_cast<T*>(scratch.get());
    const Sums<T> sums(split.threads, sizes.outputs * sizes.taps(), gradient);
    split.each([&](int64_t thread, int64_t begin, int64_t end) {
        ConvPush<T> mine = problem;
        mine.weight_sums = sums.of(thread);
        kernels<T>().push(mine, begin, end, base + thread * each);
    });
    if (gradient) results.push_back(weight_gradient(sizes, weight, sums));
    return results;
}

std::vector<Tensor> conv_push(Tensor xdot, Optional u, Tensor kept, Tensor weight, std::vector<int64_t> options,
                              std::vector<double> settings, bool push, bool curvature, bool gradient) {
    STD_TORCH_CHECK(xdot.dim() == 5, "xdot must be [K, B, C, H, W]");
    const int64_t stack = xdot.size(0);
    const Sizes sizes({xdot.size(1), xdot.size(2), xdot.size(3), xdot.size(4)}, weight, options, settings);
    xdot = *checked_images(xdot, sizes.type, sizes.x(stack), "xdot");
    u = checked_images(u, sizes.type, sizes.y(stack), "u");
    STD_TORCH_CHECK(u || !(curvature || gradient), "tangents meet nothing without u");
    STD_TORCH_CHECK(!curvature || sizes.curved(), "there is no curvature in a piecewise linear block");
    check(kept, sizes.type, {kept.numel()}, "kept");
    const auto run = sizes.type == ScalarType::Float ? run_push<float> : run_push<double>;
    return run(sizes, stack, xdot, u, as_contiguous(kept), as_contiguous(weight), push, curvature, gradient);
}

template <class T>
std::vector<Tensor> run_pull(const Sizes& sizes, int64_t stack, const Optional& u, const Optional& second,
                             const Optional& x, const Tensor& kept, const Tensor& weight, bool pull, bool bias) {
    const Plan<T> plan(sizes, weight);
    STD_TORCH_CHECK(kept.numel() == kept_count(sizes, plan.block.kept_pixels()), "kept is not of this block");
    STD_TORCH_CHECK(!second || second->numel() == kept_count(sizes, plan.block.slope_pixels()),
                    "second is not of this block");
    std::vector<Tensor> results;
    ConvPull<T> problem{};
    problem.block = &plan.block;
    problem.samples = sizes.samples;
    problem.stack = stack;
    problem.kept = data<T>(kept);
    problem.u = images_of<T>(u);
    problem.second = data<T>(second);
    problem.x = images_of<T>(x);
    if (pull) {
        results.push_back(new_images(weight, sizes.x(stack), sizes.channels_last));
        problem.below = {mutable_data<T>(results.back()), sizes.channels_last};
    }
    const Split split(sizes, stack);
    const int64_t each = plan.block.scratch_pixels() * kernels<T>().lanes;
    const Scratch scratch(split.threads * each * sizeof(T));
    T* const base = reinterpret_cast<T*>(scratch.get());
    const Sums<T> weight_sums(split.threads, sizes.outputs * sizes.taps(), x.has_value());
    const Sums<T> bias_sums(split.threads, sizes.outputs, bias);
    split.each([&](int64_t thread, int64_t begin, int64_t end) {
        ConvPull<T> mine = problem;
        mine.weight_sums = weight_sums.of(thread);
        mine.bias_sums = bias_sums.of(thread);
        kernels<T>().pull(mine, begin, end, base + thread * each);
    });
    if (x) results.push_back(weight_gradient(sizes, weight, weight_sums));
    if (bias) {
        results.push_back(torch::stable::new_empty(weight, {sizes.outputs}));
        const std::vector<T> total = bias_sums.total();
        std::copy(total.begin(), total.end(), mutable_data<T>(results.back()));
    }
    return results;
}

std::vector<Tensor> conv_pull(Optional u, Optional second, Optional x, Tensor kept, Tensor weight,
                              std::vector<int64_t> shape, std::vector<int64_t> options, std::vector<double> settings,
                              bool pull, bool bias) {
    const Sizes sizes(shape, weight, options, settings);
    STD_TORCH_CHECK(u || second, "there is nothing to pull without u and second");
    STD_TORCH_CHECK(!u || u->dim() == 5, "u must be [K, B, C, H, W]");
    const int64_t stack = u ? u->size(0) : 1;
    STD_TORCH_CHECK(stack == 1 || !(x || second || bias), "adjoints are no stack");
    u = checked_images(u, sizes.type, sizes.y(stack), "u");
    x = checked_images(x, sizes.type, sizes.x(), "x");
    if (second) second = checked(second, sizes.type, {second->numel()}, "second");
    check(kept, sizes.type, {kept.numel()}, "kept");
    const auto run = sizes.type == ScalarType::Float ? run_pull<float> : run_pull<double>;
    return run(sizes, stack, u, second, x, as_contiguous(kept), as_contiguous(weight), pull, bias);
}

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    library.impl("conv_forward", TORCH_BOX(&gradreg_fast::conv_forward));
    library.impl("conv_push", TORCH_BOX(&gradreg_fast::conv_push));
    library.impl("conv_pull", TORCH_BOX(&gradreg_fast::conv_pull));
}
