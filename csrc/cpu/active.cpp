// The operations on ReLU networks' active units: checks, memory and threads around the products of active.h.

#include "cpu/active.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "cpu/capability.h"

namespace gradreg_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const ActiveKernels<T>& kernels() {
    return best_of([](auto capability) -> auto& { return active_kernels<T, capability>(); });
}

constexpr int64_t thread_work = 1 << 18;     // multiplications that pay for waking a thread
constexpr int64_t gradient_bytes = 1 << 20;  // of a gradient's rows: they stay in the second-level cache

// A network with a linear form at its bottom, checked: hidden layers h_1, ..., h_{L-1} (after ReLU), and matrices
// W_1 or W_1 W_1^T, W_2, ..., W_L.
struct ActiveNetwork {
    std::vector<Tensor> hidden, weights;
    bool gram;
    ScalarType type;
    int64_t batch, outputs;

    ActiveNetwork(const std::vector<Tensor>& hidden_given, const std::vector<Tensor>& weights_given, bool gram)
        : gram(gram) {
        STD_TORCH_CHECK(!hidden_given.empty(), "at least one hidden layer");
        STD_TORCH_CHECK(weights_given.size() == hidden_given.size() + 1, "weights must have one more than hidden");
        type = hidden_given[0].scalar_type();
        STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "hidden must be float32 or float64");
        for (const Tensor& tensor : hidden_given)
            STD_TORCH_CHECK(tensor.dim() == 2, "hidden must be matrices");
        for (const Tensor& tensor : weights_given)
            STD_TORCH_CHECK(tensor.dim() == 2, "weights must be matrices");
        batch = hidden_given[0].size(0);
        outputs = weights_given.back().size(0);
        for (size_t l = 0; l < weights_given.size(); ++l) {
            const int64_t above = l < hidden_given.size() ? hidden_given[l].size(1) : outputs;
            const int64_t below = l ? hidden_given[l - 1].size(1) : gram ? above : weights_given[0].size(1);
            weights.push_back(as_contiguous(weights_given[l]));
            check_shape(weights[l], {above, below}, type, "weight");
            if (l == hidden_given.size()) continue;
            hidden.push_back(as_contiguous(hidden_given[l]));
            check_shape(hidden[l], {batch, above}, type, "hidden");
        }
    }

    size_t depth() const { return weights.size(); }
};

// Copy what lies below the diagonal of [n, n] to above it, a block at a time.
template <class T>
void mirror(T* matrix, int64_t n) {
    constexpr int64_t block = 32;
    for (int64_t top = 0; top < n; top += block)
        for (int64_t left = 0; left <= top; left += block)
            for (int64_t i = top; i < std::min(n, top + block); ++i)
                for (int64_t j = left; j < std::min(i, left + block); ++j)
                    matrix[j * n + i] = matrix[i * n + j];
}

template <class T>
struct ActiveSweeps {
    const ActiveNetwork& network;
    const ActiveKernels<T>& kernel = kernels<T>();

    // The width of value l, of which matrix l maps the cotangents' stack to that of value l - 1. Value 0 is the input,
    // or the first hidden layer once more.
    int64_t width(size_t l) const { return l == 0 ? network.weights[0].size(1) : network.weights[l - 1].size(0); }

    const T* active_at(size_t l) const {
        if (l == 0) return network.gram ? active_at(1) : nullptr;
        return l < network.depth() ? data<T>(network.hidden[l - 1]) : nullptr;
    }

    // Value l's stack, in this memory.
    Stack<T> stack(size_t l, T* rows) const { return {rows, active_at(l), width(l)}; }
    Stack<T> stack(size_t l, const Tensor& tensor) const { return stack(l, mutable_data<T>(tensor)); }

    Tensor empty_stack(size_t l) const {
        return torch::stable::new_empty(network.weights[0],
                                        {network.batch, network.outputs, round_up(width(l), kernel.lanes)});
    }

    void product(const Stack<T>& above, const T* weight, const Stack<T>& below) const {
        const ActiveLayer<T> layer{network.batch, network.outputs, above, below};
        const int64_t work = network.outputs * above.width * below.width;
        const int64_t grain = std::max<int64_t>(1, thread_work / std::max<int64_t>(1, work));
        torch::stable::parallel_for(0, network.batch, grain, [&](int64_t begin, int64_t end) {
            const Scratch scratch(kernel.scratch_size(layer));
            kernel.product(layer, weight, begin, end, scratch.get());
        });
    }

    // sum_b factor_b above_b^T below_b, symmetric if both are the same; rows are split among the threads, so that no
    // number depends on them.
    Tensor outer(const Stack<T>& above, const T* factor, const Stack<T>& below, bool symmetric = false) const {
        const ActiveLayer<T> layer{network.batch, network.outputs, above, below};
        Tensor gradient = torch::stable::new_empty(network.weights[0], {above.width, below.width});
        T* const to = mutable_data<T>(gradient);
        const int64_t work = std::max<int64_t>(1, network.batch * network.outputs * below.width);
        const int64_t row_bytes = std::max<int64_t>(1, below.width * sizeof(T));
        const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
        const int64_t most = std::max<int64_t>(1, gradient_bytes / row_bytes);
        const int64_t least = std::max<int64_t>(1, thread_work / work);
        const int64_t block = std::min(most, std::max(least, (above.width + threads - 1) / threads));
        torch::stable::parallel_for(0, (above.width + block - 1) / block, 1, [&](int64_t first, int64_t last) {
            const Scratch scratch(kernel.scratch_size(layer));
            for (int64_t i = first; i < last; ++i)
                kernel.outer(layer, factor, symmetric, i * block, std::min(above.width, (i + 1) * block), to,
                             scratch.get());
        });
        if (symmetric) mirror(to, above.width);
        return gradient;
    }

    Tensor dot(const Stack<T>& left, const Stack<T>& right) const {
        const ActiveLayer<T> layer{network.batch, network.outputs, left, right};
        Tensor result = torch::stable::new_empty(network.weights[0], {network.batch});
        const Scratch scratch(kernel.scratch_size(layer));
        kernel.dot(left, right, network.outputs, 0, network.batch, mutable_data<T>(result), scratch.get());
        return result;
    }

    // The cotangents' stacks from the output down; the last one is measured against the one above it, or itself.
    std::tuple<Tensor, std::vector<Tensor>> norm(bool keep) const {
        const size_t depth = network.depth();
        std::vector<Tensor> stacks(depth, network.weights[0]);
        for (size_t l = depth; l-- > 0;) {
            stacks[l] = empty_stack(l);
            T* const above = l + 1 == depth ? nullptr : mutable_data<T>(stacks[l + 1]);
            product(stack(l + 1, above), data<T>(network.weights[l]), stack(l, stacks[l]));
            if (!keep && l + 1 < depth && l > 0) stacks[l + 1] = network.weights[0];  // let go of it
        }
        const Tensor norms = dot(stack(0, stacks[0]), network.gram ? stack(1, stacks[1]) : stack(0, stacks[0]));
        if (!keep) stacks.clear();
        return {norms, stacks};
    }

    std::vector<Tensor> gradients(const std::vector<Tensor>& cotangents, const T* factor,
                                  const std::vector<int64_t>& wanted) const {
        const size_t depth = network.depth();
        const size_t top = std::find(wanted.rbegin(), wanted.rend(), 1).base() - wanted.begin();
        std::vector<Tensor> results;
        Tensor tangents = cotangents[0];
        for (size_t l = 0; l < top; ++l) {  // matrix l, between the values l and l + 1
            const auto above = stack(l + 1, l + 1 == depth ? nullptr : mutable_data<T>(cotangents[l + 1]));
            const bool metric = l == 0 && network.gram;
            if (wanted[l])
                results.push_back(metric ? outer(above, factor, above, true)
                                         : outer(above, factor, stack(l, tangents)));
            if (metric || l + 1 >= top) continue;
            const Tensor transposed = torch::stable::contiguous(torch::stable::transpose(network.weights[l], 0, 1));
            const Tensor below = tangents;
            tangents = empty_stack(l + 1);
            product(stack(l, below), data<T>(transposed), stack(l + 1, tangents));
        }
        return results;
    }
};

std::tuple<Tensor, std::vector<Tensor>> active_sqnorm(std::vector<Tensor> hidden, std::vector<Tensor> weights,
                                                      bool gram, bool keep) {
    const ActiveNetwork network(hidden, weights, gram);
    return network.type == ScalarType::Float ? ActiveSweeps<float>{network}.norm(keep)
                                             : ActiveSweeps<double>{network}.norm(keep);
}

template <class T>
std::vector<Tensor> run_gradients(const ActiveNetwork& network, const std::vector<Tensor>& cotangents,
                                  const Tensor& factor, const std::vector<int64_t>& wanted) {
    const ActiveSweeps<T> sweeps{network};
    for (size_t l = 0; l < network.depth(); ++l)
        check_shape(cotangents[l], {network.batch, network.outputs, round_up(sweeps.width(l), sweeps.kernel.lanes)},
                    network.type, "cotangents");
    return sweeps.gradients(cotangents, data<T>(factor), wanted);
}

std::vector<Tensor> active_sqnorm_gradients(std::vector<Tensor> hidden, std::vector<Tensor> weights, bool gram,
                                            std::vector<Tensor> cotangents, Tensor factor,
                                            std::vector<int64_t> wanted) {
    const ActiveNetwork network(hidden, weights, gram);
    factor = as_contiguous(factor);
    check_shape(factor, {network.batch}, network.type, "factor");
    STD_TORCH_CHECK(wanted.size() == network.depth(), "wanted must have an entry for each weight");
    STD_TORCH_CHECK(cotangents.size() == network.depth(), "cotangents must have an entry for each weight");
    const auto run = network.type == ScalarType::Float ? run_gradients<float> : run_gradients<double>;
    return run(network, cotangents, factor, wanted);
}

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    library.impl("active_sqnorm", TORCH_BOX(&gradreg_fast::active_sqnorm));
    library.impl("active_sqnorm_gradients", TORCH_BOX(&gradreg_fast::active_sqnorm_gradients));
}
