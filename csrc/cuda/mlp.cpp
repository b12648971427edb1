// The MLP operations on CUDA devices: checks, memory and launches around the kernels of mlp.cuh and, of wide networks,
// layerwise.cuh.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/mlp_arguments.h"
#include "cuda/arithmetic.h"
#include "cuda/layerwise.h"
#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

CheckedNetwork checked(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<int64_t>& kinds,
                       const std::vector<double>& settings) {
    return {x,
            weights,
            kinds,
            settings,
            {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half},
            most_layers};
}

template <class S>
void describe(const CheckedNetwork& given, const Tensor& x, const Optional& cotangent, const CheckedTarget& target,
              int64_t stack, bool unit_seed, Network<S>& network) {
    network.depth = int(given.depth());
    network.stack = int(stack);
    network.rows = x.size(0);
    network.unit_seed = unit_seed;
    network.x = data<S>(x);
    network.cotangent = data<S>(cotangent);
    network.target = target.as<S>();
    for (int l = 0; l < network.depth; ++l) {
        Layer<S>& layer = network.layers[l];
        layer.inputs = int(given.weights[l].size(1));
        layer.outputs = int(given.weights[l].size(0));
        layer.kind = Kind(given.kinds[l]);
        layer.settings = {given.settings[2 * l], given.settings[2 * l + 1]};
        layer.weight = data<S>(given.weights[l]);
    }
}

void check_plan(bool fits) {
    STD_TORCH_CHECK(fits, "the network's layers are too wide for this device's shared memory");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_forward_pull(Tensor x, Optional cotangent, Optional target,
                                                            Optional offset, std::vector<Tensor> weights,
                                                            std::vector<Optional> biases, std::vector<int64_t> kinds,
                                                            std::vector<double> settings, int64_t loss, int64_t stack,
                                                            bool unit_seed, bool keep) {
    const bool tf32 = take_tf32(settings, 2 * weights.size());
    const CheckedNetwork network = checked(x, weights, kinds, settings);
    const OnDevice device(x);
    const CheckedTarget goal = network.check_forward_pull(x, cotangent, target, offset, biases, loss, stack, unit_seed);
    const int64_t rows = x.size(0);
    Tensor y = torch::stable::new_empty(x, {rows, network.outputs()});
    Tensor g = torch::stable::new_empty(x, {stack, rows, x.size(1)});
    Tensor norms = torch::stable::new_empty(x, {rows}, wide(network.type));
    Optional kept;
    with_arithmetic(network.type, tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        ForwardPull<S> p{};
        describe(network, x, cotangent, goal, stack, unit_seed, p);
        for (int l = 0; l < p.depth; ++l)
            p.layers[l].bias = data<S>(biases[l]);
        p.keep = keep;
        p.offset = data<S>(offset);
        p.y = mutable_data<S>(y);
        p.g = mutable_data<S>(g);
        p.norms = mutable_data<Wide<S>>(norms);
        using Arithmetic = std::remove_pointer_t<decltype(name)>;
        const Device machine = current_device();
        if (is_layerwise(p)) {
            LayerwiseMemory<S> also;
            const int64_t layers = place_layers(p, also, keep, nullptr) / int64_t(sizeof(S));
            kept = torch::stable::new_empty(x, {keep ? layers : 0});
            const Tensor own = torch::stable::new_empty(x, {keep ? 0 : layers});
            place_layers(p, also, keep, mutable_data<char>(keep ? *kept : own));
            S* top;
            Wide<S>* scratch;
            const Tensor workspace = new_bytes(x, place_top(p, nullptr, top, scratch));
            if (rows)
                launch_layerwise_forward_pull<Arithmetic>(p, also, mutable_data<char>(workspace), machine,
                                                          device.stream());
            return;
        }
        Plan plan;
        check_plan(plan_tiles(p, false, machine, plan));
        kept = torch::stable::new_empty(x, {keep ? kept_size(p) : 0});
        Optional states;  // a stream's memory is not used again before its kernels are done
        if (keep) {
            place_kept(p, mutable_data<S>(*kept));
        } else {
            states = torch::stable::new_empty(x, {states_size(p, plan)});
            place_states(p, plan, mutable_data<S>(*states));
        }
        if (rows) launch_forward_pull<Arithmetic>(p, plan, device.stream());
    });
    return {y, g, norms, *kept};
}

std::vector<Tensor> mlp_push_adjoint(Tensor x, Optional cotangent, Optional target, Tensor kept,
                                     std::vector<Tensor> weights, std::vector<int64_t> kinds,
                                     std::vector<double> settings, int64_t loss, int64_t stack, bool unit_seed,
                                     Optional ybar, Optional gbar, Optional norm_weights, std::vector<int64_t> wanted) {
    const bool tf32 = take_tf32(settings, 2 * weights.size());
    const CheckedNetwork network = checked(x, weights, kinds, settings);
    const OnDevice device(x);
    const CheckedTarget goal = network.check_push_adjoint(x, cotangent, target, kept, ybar, gbar, norm_weights,
                                                          wide(network.type), loss, stack, wanted);
    const int64_t rows = x.size(0);
    std::vector<Tensor> results;
    with_arithmetic(network.type, tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        PushAdjoint<S> p{};
        describe(network, x, cotangent, goal, stack, unit_seed, p);
        LayerwiseMemory<S> also;
        const bool layerwise = is_layerwise(p);
        const int64_t size = layerwise ? place_layers(p, also, true, nullptr) / int64_t(sizeof(S)) : kept_size(p);
        STD_TORCH_CHECK(kept.numel() == size, "kept is not what mlp_forward_pull returned for these tensors");
        S* const memory = const_cast<S*>(data<S>(kept));
        if (layerwise)
            place_layers(p, also, true, reinterpret_cast<char*>(memory));
        else
            place_kept(p, memory);
        p.ybar = data<S>(ybar);
        p.gbar = data<S>(gbar);
        p.norm_weights = data<Wide<S>>(norm_weights);
        const auto result = [&](int64_t flag, std::initializer_list<int64_t> shape) -> S* {
            if (!flag) return nullptr;
            results.push_back(torch::stable::new_empty(x, shape));
            return mutable_data<S>(results.back());
        };
        p.xbar = result(wanted[0], {rows, x.size(1)});
        p.cotangent_bar = result(wanted[1], {stack, rows, network.outputs()});
        for (int l = 0; l < p.depth; ++l) {
            Layer<S>& layer = p.layers[l];
            layer.weight_gradient = result(wanted[2 + 2 * l], {layer.outputs, layer.inputs});
            layer.bias_gradient = result(wanted[3 + 2 * l], {layer.outputs});
        }
        using Arithmetic = std::remove_pointer_t<decltype(name)>;
        const Device machine = current_device();
        if (layerwise) {
            int tile;
            plan_layerwise(p, gbar.has_value(), machine, tile);
            LayerwiseWorkspace<S> space;
            const Tensor workspace = new_bytes(x, place_layerwise(p, nullptr, space));
            launch_layerwise_push_adjoint<Arithmetic>(p, also, mutable_data<char>(workspace), tile, machine,
                                                      device.stream());
            return;
        }
        Plan plan;
        check_plan(plan_push_adjoint(p, gbar.has_value(), machine, plan));
        const Tensor workspace = new_bytes(x, place_workspace(p, nullptr));
        place_workspace(p, mutable_data<char>(workspace));
        launch_push_adjoint<Arithmetic>(p, plan, device.stream());
    });
    return results;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("mlp_forward_pull", TORCH_BOX(&gradreg_fast::cuda::mlp_forward_pull));
    library.impl("mlp_push_adjoint", TORCH_BOX(&gradreg_fast::cuda::mlp_push_adjoint));
}
