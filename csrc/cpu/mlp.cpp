// The MLP operations: checks, memory and threads around the sweeps of mlp_sweeps.h.

#include "cpu/mlp.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/mlp_arguments.h"
#include "cpu/capability.h"
#include "cpu/denormals.h"
#include "cpu/memory.h"
#include "cpu/places.h"

namespace gradreg_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
const MlpKernels<T>& kernels() {
    return best_of([](auto capability) -> auto& { return mlp_kernels<T, capability>(); });
}

// PyTorch's own product, as kernels take it.
template <class T>
void library_product(int64_t m, int64_t n, int64_t depth, Operand<T> a, Operand<T> b, T* c, int64_t c_stride,
                     bool accumulate) {
    if (m == 0 || n == 0) return;
    const auto view = [](const T* base, int64_t rows, int64_t columns, int64_t stride, bool transposed) {
        constexpr ScalarType type = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;
        const int64_t sizes[] = {rows, columns}, strides[] = {transposed ? 1 : stride, transposed ? stride : 1};
        const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
        return torch::stable::from_blob(const_cast<T*>(base), {sizes, 2}, {strides, 2}, cpu, type);
    };
    const Tensor left = view(a.base, m, depth, a.stride, a.transposed);
    const Tensor right = view(b.base, depth, n, b.stride, b.transposed), result = view(c, m, n, c_stride, false);
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), accumulate ? 1 : 0, 1));
}

// Whether a library multiplies this network's matrices.
bool by_library(const CheckedNetwork& network) {
    const std::vector<int64_t> widths = network.widths();
    return prefers_library(*std::max_element(widths.begin(), widths.end()), network.element_size());
}

template <class T>
std::vector<Layer<T>> layers_of(const CheckedNetwork& network, const Places& places, int64_t lanes, T* memory) {
    std::vector<Layer<T>> layers;
    const LibraryProduct<T> multiply = by_library(network) ? &library_product<T> : nullptr;
    for (int64_t l = 0; l < network.depth(); ++l) {
        const Tensor& weight = network.weights[l];
        const int64_t outputs = weight.size(0), inputs = weight.size(1);
        const auto at = [memory](int64_t place) { return place < 0 ? nullptr : memory + place; };
        layers.push_back({inputs, outputs, round_up(inputs, lanes), round_up(outputs, lanes), Kind(network.kinds[l]),
                          Settings{network.settings[2 * l], network.settings[2 * l + 1]},
                          places.weight[l] < 0 ? data<T>(weight) : memory + places.weight[l], places.weight[l] < 0,
                          at(places.transposed[l]), memory + places.bias[l], at(places.state[l]),
                          at(places.cotangent[l]), multiply});
    }
    return layers;
}

// Write the packed parameters: panels of weights and of transposed weights, biases.
template <class T>
void pack(const CheckedNetwork& network, const std::vector<Optional>& biases, const Places& places, int64_t lanes,
          T* memory) {
    for (int64_t l = 0; l < network.depth(); ++l) {
        const int64_t outputs = network.weights[l].size(0), inputs = network.weights[l].size(1);
        const T* weight = data<T>(network.weights[l]);
        if (places.weight[l] >= 0) kernels<T>().pack(weight, outputs, inputs, false, memory + places.weight[l]);
        if (places.transposed[l] >= 0) kernels<T>().pack(weight, inputs, outputs, true, memory + places.transposed[l]);
        T* bias = memory + places.bias[l];
        T* end = biases[l] ? std::copy_n(data<T>(biases[l]), outputs, bias) : bias;
        std::fill(end, bias + round_up(outputs, lanes), T(0));
    }
}

constexpr int64_t tile_rows = 48;            // fill the register blocks of product.h, and leave the tile in cache
constexpr int64_t library_rows = 128;        // a library packs weights again for each tile
constexpr int64_t cached_weights = 1 << 18;  // beyond, larger tiles: weights come from a further cache for each
constexpr int64_t cached_library_weights = 1 << 20;
constexpr int64_t most_malloc_keeps = 32 << 20;  // glibc gives larger blocks back at once
constexpr int64_t thread_work = 1 << 18;         // multiplications that pay for waking a thread

// How a batch is split: into tiles by the stack's size alone, for both operations must agree; whole tiles to threads by
// the sizes and the number of threads, so that sums are reproducible.
struct Split {
    int64_t tile, threads, rows_each;

    Split(const CheckedNetwork& network, int64_t rows, int64_t stack) {
        int64_t weights = 0;
        for (const Tensor& weight : network.weights)
            weights += weight.size(0) * weight.size(1);
        const bool library = by_library(network);
        const bool cached = weights <= (library ? cached_library_weights : cached_weights);
        const int64_t lines = (library ? library_rows : tile_rows) * (cached ? 1 : 2);
        tile = std::max<int64_t>(lines / std::max<int64_t>(stack, 1), 8);
        const int64_t work = rows * std::max<int64_t>(stack, 1) * weights;
        const int64_t workers =
            std::max<int64_t>(std::min<int64_t>(torch::stable::get_num_threads(), work / thread_work), 1);
        rows_each = std::max<int64_t>(round_up((rows + workers - 1) / workers, tile), tile);
        threads = std::max<int64_t>((rows + rows_each - 1) / rows_each, 1);
    }

    // Call function(thread, begin, end) for each part of the rows.
    template <class Function>
    void each(int64_t rows, Function&& function) const {
        const auto part = [&](int64_t first, int64_t last) {
            const FlushDenormals flush;
            for (int64_t thread = first; thread < last; ++thread)
                function(thread, thread * rows_each, std::min(rows, (thread + 1) * rows_each));
        };
        if (threads == 1) return part(0, 1);
        torch::stable::parallel_for(0, threads, 1, part);
    }
};

template <class T>
void run_forward(const CheckedNetwork& network, const Tensor& x, const Optional& cotangent, const CheckedTarget& target,
                 const Optional& offset, const std::vector<Optional>& biases, const Places& places, int64_t stack,
                 bool unit_seed, Tensor& y, Tensor& g, Tensor& norms, Tensor& kept) {
    const MlpKernels<T>& kernel = kernels<T>();
    T* memory = mutable_data<T>(kept);
    pack<T>(network, biases, places, kernel.lanes, memory);
    const std::vector<Layer<T>> layers = layers_of<T>(network, places, kernel.lanes, memory);
    const int64_t rows = x.size(0);
    const ForwardPull<T> problem{
        layers.data(),      network.depth(),       rows,           stack,           unit_seed,
        data<T>(x),         data<T>(cotangent),    target.as<T>(), data<T>(offset), mutable_data<T>(y),
        mutable_data<T>(g), mutable_data<T>(norms)};
    const Split split(network, rows, stack);
    const int64_t each = round_up(kernel.forward_scratch(problem, split.tile), 64);
    const Scratch scratch(split.threads * each * sizeof(T));
    T* const base = reinterpret_cast<T*>(scratch.get());
    split.each(rows, [&](int64_t thread, int64_t begin, int64_t end) {
        kernel.forward(problem, begin, end, split.tile, base + thread * each);
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_forward_pull(Tensor x, Optional cotangent, Optional target,
                                                            Optional offset, std::vector<Tensor> weights,
                                                            std::vector<Optional> biases, std::vector<int64_t> kinds,
                                                            std::vector<double> settings, int64_t loss, int64_t stack,
                                                            bool unit_seed, bool keep) {
    const CheckedNetwork network(x, weights, kinds, settings, {ScalarType::Float, ScalarType::Double}, max_depth);
    const CheckedTarget checked =
        network.check_forward_pull(x, cotangent, target, offset, biases, loss, stack, unit_seed);
    const int64_t rows = x.size(0), outputs = network.outputs();
    const bool single = network.type == ScalarType::Float;
    const int64_t lanes = single ? kernels<float>().lanes : kernels<double>().lanes;
    const Places places(network.widths(), network.element_size(), lanes, rows, stack, keep);
    Tensor y = torch::stable::new_empty(x, {rows, outputs});
    Tensor g = torch::stable::new_empty(x, {stack, rows, x.size(1)});
    Tensor norms = torch::stable::new_empty(x, {rows});
    Tensor kept = new_memory(x, places.total);
    if (kept.numel() * kept.element_size() > most_malloc_keeps) advise_large_pages(kept);
    const auto run = single ? run_forward<float> : run_forward<double>;
    run(network, x, cotangent, checked, offset, biases, places, stack, unit_seed, y, g, norms, kept);
    return {y, g, norms, kept};
}

// A thread's sums of parameter gradients: place of each weight's and bias's within them, -1 where not wanted. Weights
// whose rows are whole registers are summed in plain rows; the first thread's sums of these are the results themselves.
struct Sums {
    std::vector<int64_t> weight, bias;
    std::vector<bool> transposed, plain;
    int64_t packed = 0, total = 0;  // size of the first thread's sums, and of the others'

    Sums(const CheckedNetwork& network, const std::vector<int64_t>& wanted, int64_t lanes) {
        const auto take = [this](int64_t count, bool present) {
            const int64_t place = present ? total : -1;
            if (present) total += round_up(count, 16);
            return place;
        };
        const bool library = by_library(network);
        for (int64_t l = 0; l < network.depth(); ++l) {
            const int64_t outputs = network.weights[l].size(0), inputs = network.weights[l].size(1);
            const int64_t straight = outputs * round_up(inputs, lanes), turned = inputs * round_up(outputs, lanes);
            transposed.push_back(!library && turned < straight);
            plain.push_back(library || (!transposed[l] && inputs % lanes == 0));
            weight.push_back(take(std::min(straight, turned), wanted[2 + 2 * l] && !plain[l]));
            bias.push_back(take(outputs, wanted[3 + 2 * l]));
        }
        packed = total;
        for (int64_t l = 0; l < network.depth(); ++l)
            if (plain[l]) weight[l] = take(network.weights[l].numel(), wanted[2 + 2 * l]);
    }
};

// to [count] += from
template <class T>
void add_to(T* to, const T* from, int64_t count) {
    torch::stable::parallel_for(0, count, 1 << 16, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            to[i] += from[i];
    });
}

template <class T>
void run_backward(const CheckedNetwork& network, const Tensor& x, const Optional& cotangent,
                  const CheckedTarget& target, const Tensor& kept, int64_t stack, bool unit_seed, const Optional& ybar,
                  const Optional& gbar, const Optional& norm_weights, const std::vector<int64_t>& wanted,
                  std::vector<Tensor>& results) {
    const MlpKernels<T>& kernel = kernels<T>();
    const int64_t rows = x.size(0), depth = network.depth();
    const Places places(network.widths(), network.element_size(), kernel.lanes, rows, stack, true);
    STD_TORCH_CHECK(kept.numel() == places.total, "kept is not what mlp_forward_pull returned for these tensors");
    const std::vector<Layer<T>> layers = layers_of<T>(network, places, kernel.lanes, const_cast<T*>(data<T>(kept)));
    const Sums sums(network, wanted, kernel.lanes);

    PushAdjoint<T> problem{};
    problem.layers = layers.data();
    problem.depth = depth;
    problem.rows = rows;
    problem.stack = gbar ? stack : 0;
    problem.proportional = unit_seed && gbar;
    problem.curvature_free =
        target.loss == Loss::None && std::all_of(network.kinds.begin(), network.kinds.end(), [](int64_t kind) {
            return Kind(kind) == Kind::Identity || Kind(kind) == Kind::ReLU || Kind(kind) == Kind::LeakyReLU;
        });
    while (!wanted[0] && problem.lowest < depth - 1 && !wanted[2 + 2 * problem.lowest] &&
           !wanted[3 + 2 * problem.lowest])
        ++problem.lowest;
    problem.x = data<T>(x);
    problem.cotangent = data<T>(cotangent);
    problem.target = target.as<T>();
    problem.weights = data<T>(norm_weights);
    problem.ybar = data<T>(ybar);
    problem.gbar = data<T>(gbar);

    std::vector<T*> weights(depth, nullptr), biases(depth, nullptr);  // results
    const auto result = [&](std::initializer_list<int64_t> shape) {
        results.push_back(torch::stable::new_empty(x, shape));
        return mutable_data<T>(results.back());
    };
    if (wanted[0]) problem.xbar = result({rows, x.size(1)});
    if (wanted[1]) problem.cotangent_bar = result({stack, rows, network.outputs()});
    for (int64_t l = 0; l < depth; ++l) {
        const int64_t outputs = network.weights[l].size(0), inputs = network.weights[l].size(1);
        if (wanted[2 + 2 * l]) weights[l] = result({outputs, inputs});
        if (wanted[3 + 2 * l]) biases[l] = result({outputs});
    }

    const Split split(network, rows, stack);
    const int64_t own = round_up(kernel.backward_scratch(problem, split.tile), 64);
    const int64_t first = own + round_up(sums.packed, 64), other = own + round_up(sums.total, 64);
    const Scratch scratch((first + (split.threads - 1) * other) * sizeof(T));
    const auto block = [&](int64_t thread) {
        return reinterpret_cast<T*>(scratch.get()) + (thread ? first + (thread - 1) * other : 0);
    };
    split.each(rows, [&](int64_t thread, int64_t begin, int64_t end) {
        T* const sum = block(thread) + own;
        LayerGradient<T> gradients[max_depth];
        for (int64_t l = 0; l < depth; ++l) {
            T* const weight = sums.plain[l] && thread == 0 ? weights[l] : sum + sums.weight[l];
            gradients[l] = {weights[l] ? weight : nullptr, biases[l] ? sum + sums.bias[l] : nullptr,
                            bool(sums.transposed[l]), bool(sums.plain[l])};
        }
        PushAdjoint<T> mine = problem;
        mine.gradients = gradients;
        kernel.backward(mine, begin, end, split.tile, block(thread));
    });

    T* const sum = block(0) + own;
    if (rows == 0) std::fill_n(sum, sums.packed, T(0));
    for (int64_t thread = 1; thread < split.threads; ++thread)
        add_to(sum, block(thread) + own, sums.packed);
    for (int64_t l = 0; l < depth; ++l) {
        const int64_t outputs = network.weights[l].size(0), inputs = network.weights[l].size(1);
        const bool turned = sums.transposed[l];
        if (biases[l]) std::copy_n(sum + sums.bias[l], outputs, biases[l]);
        if (!weights[l]) continue;
        if (!sums.plain[l]) {
            kernel.unpack(sum + sums.weight[l], turned ? inputs : outputs, turned ? outputs : inputs, turned,
                          weights[l]);
            continue;
        }
        if (rows == 0) std::fill_n(weights[l], outputs * inputs, T(0));
        for (int64_t thread = 1; thread < split.threads; ++thread)
            add_to(weights[l], block(thread) + own + sums.weight[l], outputs * inputs);
    }
}

std::vector<Tensor> mlp_push_adjoint(Tensor x, Optional cotangent, Optional target, Tensor kept,
                                     std::vector<Tensor> weights, std::vector<int64_t> kinds,
                                     std::vector<double> settings, int64_t loss, int64_t stack, bool unit_seed,
                                     Optional ybar, Optional gbar, Optional norm_weights, std::vector<int64_t> wanted) {
    const CheckedNetwork network(x, weights, kinds, settings, {ScalarType::Float, ScalarType::Double}, max_depth);
    const CheckedTarget checked = network.check_push_adjoint(x, cotangent, target, kept, ybar, gbar, norm_weights,
                                                             network.type, loss, stack, wanted);
    std::vector<Tensor> results;
    const auto run = network.type == ScalarType::Float ? run_backward<float> : run_backward<double>;
    run(network, x, cotangent, checked, kept, stack, unit_seed, ybar, gbar, norm_weights, wanted, results);
    return results;
}

template <class T>
void run_activation(Kind kind, Settings settings, const Tensor& z, Tensor& value, Tensor& slope, Tensor& bend) {
    const int64_t count = z.numel(), padded = round_up(count, kernels<T>().lanes);
    std::vector<T> memory(4 * padded);
    std::copy_n(data<T>(z), count, memory.data());
    T *first = memory.data() + padded, *second = first + padded, *third = second + padded;
    kernels<T>().activate(kind, settings, memory.data(), padded, first, second, third);
    std::copy_n(first, count, mutable_data<T>(value));
    std::copy_n(second, count, mutable_data<T>(slope));
    std::copy_n(third, count, mutable_data<T>(bend));
}

std::tuple<Tensor, Tensor, Tensor> activation(Tensor z, int64_t kind, std::vector<double> settings) {
    STD_TORCH_CHECK(kind >= 0 && kind < int64_t(Kind::Count), "unknown activation ", kind);
    STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
    const ScalarType type = z.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "z must be float32 or float64");
    z = as_contiguous(z);
    Tensor value = torch::stable::empty_like(z), slope = torch::stable::empty_like(z),
           bend = torch::stable::empty_like(z);
    const auto run = type == ScalarType::Float ? run_activation<float> : run_activation<double>;
    run(Kind(kind), {settings[0], settings[1]}, z, value, slope, bend);
    return {value, slope, bend};
}

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    library.impl("mlp_forward_pull", TORCH_BOX(&gradreg_fast::mlp_forward_pull));
    library.impl("mlp_push_adjoint", TORCH_BOX(&gradreg_fast::mlp_push_adjoint));
    library.impl("activation", TORCH_BOX(&gradreg_fast::activation));
}
