// The MLP operations' arguments, checked, for the CPU and for CUDA devices.

#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/activation.h"
#include "common/loss.h"
#include "common/tensors.h"

namespace gradreg_fast {

// A loss's target as kernels take it; checked.
struct CheckedTarget {
    using ScalarType = torch::headeronly::ScalarType;
    using Tensor = torch::stable::Tensor;
    using Optional = std::optional<Tensor>;

    Loss loss;
    Optional tensor;

    CheckedTarget(int64_t number, const Optional& given, int64_t rows, int64_t outputs, ScalarType type,
                  const torch::stable::Device& device)
        : loss(Loss(number)), tensor(as_contiguous(given)) {
        STD_TORCH_CHECK(number >= 0 && number < int64_t(Loss::Count), "unknown loss ", number);
        STD_TORCH_CHECK((loss == Loss::None) == !tensor, "a loss, and nothing else, has a target");
        if (has_classes())
            check_shape(tensor, {rows}, ScalarType::Long, "target", device);
        else
            check_shape(tensor, {rows, outputs}, type, "target", device);
    }

    bool has_classes() const {
        return tensor && loss == Loss::CrossEntropy && tensor->scalar_type() == ScalarType::Long;
    }

    template <class T>
    Target<T> as() const {
        if (has_classes()) return {loss, data<int64_t>(tensor), nullptr};
        return {loss, nullptr, data<T>(tensor)};
    }
};

// A network's tensors and settings, checked.
struct CheckedNetwork {
    using ScalarType = torch::headeronly::ScalarType;
    using Tensor = torch::stable::Tensor;
    using Optional = std::optional<Tensor>;

    std::vector<Tensor> weights;
    std::vector<int64_t> kinds;
    std::vector<double> settings;
    ScalarType type;
    torch::stable::Device device;

    CheckedNetwork(const Tensor& x, const std::vector<Tensor>& given, const std::vector<int64_t>& kinds,
                   const std::vector<double>& settings, std::initializer_list<ScalarType> types, int64_t most_layers)
        : kinds(kinds), settings(settings), type(x.scalar_type()), device(x.device()) {
        STD_TORCH_CHECK(std::find(types.begin(), types.end(), type) != types.end(), "x must be float32 or float64",
                        types.size() > 2 ? ", or bfloat16 or float16" : "");
        STD_TORCH_CHECK(x.dim() == 2, "x must have two dimensions, [B, d]");
        STD_TORCH_CHECK(!given.empty() && int64_t(given.size()) <= most_layers, "between 1 and ", most_layers,
                        " layers");
        STD_TORCH_CHECK(kinds.size() == given.size(), "kinds must have an entry for each layer");
        STD_TORCH_CHECK(settings.size() == 2 * given.size(), "settings must have two entries for each layer");
        int64_t inputs = x.size(1);
        for (size_t l = 0; l < given.size(); ++l) {
            STD_TORCH_CHECK(kinds[l] >= 0 && kinds[l] < int64_t(Kind::Count), "unknown activation ", kinds[l]);
            weights.push_back(as_contiguous(given[l]));
            STD_TORCH_CHECK(given[l].dim() == 2, "weights must be matrices");
            check_shape(weights[l], {given[l].size(0), inputs}, type, "weight", device);
            inputs = given[l].size(0);
        }
    }

    int64_t depth() const { return int64_t(weights.size()); }
    int64_t outputs() const { return weights.back().size(0); }
    int64_t element_size() const { return type == ScalarType::Float ? 4 : 8; }

    // Of the input and of each layer.
    std::vector<int64_t> widths() const {
        std::vector<int64_t> widths{weights[0].size(1)};
        for (const Tensor& weight : weights)
            widths.push_back(weight.size(0));
        return widths;
    }

    // Makes the operation's other arguments contiguous and checks them.
    CheckedTarget check_forward_pull(Tensor& x, Optional& cotangent, const Optional& target, Optional& offset,
                                     std::vector<Optional>& biases, int64_t loss, int64_t stack, bool unit_seed) const {
        const int64_t rows = x.size(0), inputs = x.size(1);
        x = as_contiguous(x);
        cotangent = as_contiguous(cotangent);
        offset = as_contiguous(offset);
        check_shape(cotangent, {stack, rows, outputs()}, type, "cotangent", device);
        check_shape(offset, {stack, rows, inputs}, type, "offset", device);
        STD_TORCH_CHECK(stack >= 0 && (!unit_seed || (stack == 1 && outputs() == 1)), "wrong number of cotangents");
        STD_TORCH_CHECK(loss == 0 || (stack == 1 && !cotangent && !unit_seed), "a loss makes the only cotangent");
        const CheckedTarget checked(loss, target, rows, outputs(), type, device);
        STD_TORCH_CHECK(biases.size() == weights.size(), "biases must have an entry for each layer");
        for (size_t l = 0; l < biases.size(); ++l) {
            biases[l] = as_contiguous(biases[l]);
            check_shape(biases[l], {weights[l].size(0)}, type, "bias", device);
        }
        return checked;
    }

    // Likewise; norms: their dtype.
    CheckedTarget check_push_adjoint(Tensor& x, Optional& cotangent, const Optional& target, const Tensor& kept,
                                     Optional& ybar, Optional& gbar, Optional& norm_weights, ScalarType norms,
                                     int64_t loss, int64_t stack, const std::vector<int64_t>& wanted) const {
        const int64_t rows = x.size(0), inputs = x.size(1);
        x = as_contiguous(x);
        cotangent = as_contiguous(cotangent);
        ybar = as_contiguous(ybar);
        gbar = as_contiguous(gbar);
        norm_weights = as_contiguous(norm_weights);
        check_shape(kept, {kept.numel()}, type, "kept", device);
        check_shape(cotangent, {stack, rows, outputs()}, type, "cotangent", device);
        check_shape(ybar, {rows, outputs()}, type, "ybar", device);
        check_shape(gbar, {stack, rows, inputs}, type, "gbar", device);
        check_shape(norm_weights, {rows}, norms, "norm_weights", device);
        STD_TORCH_CHECK(wanted.size() == 2 + 2 * weights.size(), "wanted must have 2 + 2 depth entries");
        STD_TORCH_CHECK(!wanted[1] || gbar, "the cotangent has a gradient only where g has");
        return CheckedTarget(loss, target, rows, outputs(), type, device);
    }
};

}  // namespace gradreg_fast
