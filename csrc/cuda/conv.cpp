// The convolution operations on CUDA devices: checks, memory and launches around the kernels of conv.cuh.

#include "cuda/conv.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/conv_arguments.h"
#include "cuda/arithmetic.h"
#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// A block without pooling, channels last.
struct Block : ConvSizes {
    Convolution c;
    bool tf32;

    Block(const std::vector<int64_t>& shape, const Tensor& weight, const std::vector<int64_t>& options,
          std::vector<double> numbers)
        : Block(shape, weight, options, take_tf32(numbers, 2), numbers) {}

    std::vector<int64_t> weight() const { return {outputs, inputs, kernel[0], kernel[1]}; }
    bool keeps_output() const {  // its slope follows from y
        return cuda::keeps_output(kind) || (kind == Kind::LeakyReLU && settings.first >= 0);
    }

  private:
    Block(const std::vector<int64_t>& shape, const Tensor& weight, const std::vector<int64_t>& options, bool tf32,
          const std::vector<double>& numbers)
        : ConvSizes(shape, weight, options, numbers), c{}, tf32(tf32) {
        type_of(weight, "weight");
        STD_TORCH_CHECK(pooling == Pooling::None && channels_last, "on CUDA devices, blocks do not pool");
        c.samples = samples;
        c.inputs = int(inputs), c.outputs = int(outputs);
        for (int i = 0; i < 2; ++i) {
            c.size[i] = int(size[i]), c.summed[i] = int(summed[i]), c.kernel[i] = int(kernel[i]);
            c.stride[i] = int(stride[i]), c.padding[i] = int(padding[i]), c.dilation[i] = int(dilation[i]);
        }
        STD_TORCH_CHECK(is_regular(c), "on CUDA devices, a convolution has a stride or a dilation");
        check(weight, this->weight(), "weight", weight);
    }

  public:
    void check(const Tensor& images, const std::vector<int64_t>& shape, const char* name, const Tensor& like) const {
        STD_TORCH_CHECK(images.device() == like.device(), name, " is on the wrong device");
        STD_TORCH_CHECK(images.scalar_type() == type, name, " must have the dtype of the weight");
        bool fits = images.dim() == int64_t(shape.size());
        for (size_t i = 0; fits && i < shape.size(); ++i)
            fits = images.size(int64_t(i)) == shape[i];
        STD_TORCH_CHECK(fits, name, " has the wrong shape");
        STD_TORCH_CHECK(images.numel() == 0 || is_channels_last(images), name, " must be channels last, without gaps");
    }
    void check(const Optional& images, const std::vector<int64_t>& shape, const char* name, const Tensor& like) const {
        if (images) check(*images, shape, name, like);
    }
};

// phi' v + second for the v of a stack [K, B, C, H, W], of an activation with this state; terms may be missing.
template <class S>
Down<S> down_of(int64_t stack, int64_t pixels, int64_t columns, Kind kind, Settings settings, const Optional& state,
                const Optional& second) {
    Down<S> down{};
    down.rows = pixels, down.lines = stack * pixels, down.columns = int(columns);
    down.kind = kind, down.settings = settings;
    down.state = kind == Kind::Identity ? nullptr : data<S>(state);
    down.second = data<Wide<S>>(second);
    return down;
}

std::tuple<Tensor, Tensor> image_forward(Tensor x, Tensor weight, Optional bias, std::vector<int64_t> options,
                                         std::vector<double> settings) {
    STD_TORCH_CHECK(x.dim() == 4, "x must be [B, C, H, W]");
    const Block block({x.size(0), x.size(1), x.size(2), x.size(3)}, weight, options, settings);
    block.check(x, block.x(), "x", weight);
    bias = as_contiguous(bias);
    check_shape(bias, {block.outputs}, block.type, "bias", x.device());
    const OnDevice device(x);
    const Tensor y = new_images(x, block.y(), true);
    const Tensor state = block.keeps_output() ? torch::stable::new_empty(x, {0}) : new_images(x, block.y(), true);
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        const ImageForward<S> p{data<S>(x),
                                data<S>(weight),
                                data<S>(bias),
                                block.kind,
                                block.settings,
                                mutable_data<S>(y),
                                block.keeps_output() ? nullptr : mutable_data<S>(state)};
        launch_image_forward<std::remove_pointer_t<decltype(name)>>(block.c, p, current_device(), device.stream());
    });
    return {y, state};
}

std::vector<Tensor> image_push(Tensor xdot, Optional u, Optional state, Tensor weight, std::vector<int64_t> options,
                               std::vector<double> settings, bool push) {
    STD_TORCH_CHECK(xdot.dim() == 5, "xdot must be [K, B, C, H, W]");
    const int64_t stack = xdot.size(0);
    const Block block({xdot.size(1), xdot.size(2), xdot.size(3), xdot.size(4)}, weight, options, settings);
    block.check(xdot, block.x(stack), "xdot", weight);
    block.check(u, block.y(stack), "u", weight);
    block.check(state, block.y(), "state", weight);
    STD_TORCH_CHECK(state || block.kind == Kind::Identity, "an activation must have its state");
    STD_TORCH_CHECK(!u || block.curved(), "there is no curvature in a piecewise linear block");
    const OnDevice device(xdot);
    std::vector<Tensor> results;
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        ImagePush<S> p{};
        p.stack = stack;
        p.xdot = data<S>(xdot), p.weight = data<S>(weight), p.state = data<S>(state), p.u = data<S>(u);
        p.kind = block.kind, p.settings = block.settings;
        if (push) {
            results.push_back(new_images(xdot, block.y(stack), true));
            p.ydot = mutable_data<S>(results.back());
        }
        Optional terms;
        if (u) {
            const int64_t count = block.c.pixels() * block.outputs;
            results.push_back(torch::stable::new_empty(xdot, {count}, wide(block.type)));
            p.second = mutable_data<Wide<S>>(results.back());
            terms = torch::stable::new_empty(xdot, {stack > 1 ? stack * count : 0}, wide(block.type));
            p.terms = mutable_data<Wide<S>>(*terms);
        }
        launch_image_push<std::remove_pointer_t<decltype(name)>>(block.c, p, current_device(), device.stream());
    });
    return results;
}

std::vector<Tensor> image_pull(Tensor u, Tensor weight, Optional state, Optional second, std::vector<int64_t> size,
                               std::vector<int64_t> options, std::vector<double> settings, bool above) {
    STD_TORCH_CHECK(u.dim() == 5 && weight.dim() == 4 && size.size() == 2, "u must be [K, B, C, H, W], size of x two");
    const int64_t stack = u.size(0);
    const Block block({u.size(1), weight.size(1), size[0], size[1]}, weight, options, settings);
    const int64_t pixels = block.samples * size[0] * size[1];
    block.check(u, block.y(stack), "u", weight);
    block.check(state, block.x(), "state", weight);
    STD_TORCH_CHECK(state || block.kind == Kind::Identity, "an activation must have its state");
    STD_TORCH_CHECK(!second || stack == 1, "there is only one adjoint");
    check_shape(second, {pixels * block.inputs}, wide(block.type), "second", weight.device());
    const OnDevice device(u);
    std::vector<Tensor> results{new_images(u, block.x(stack), true)};
    if (above) results.push_back(new_images(u, block.x(stack), true));
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        Down<S> below = down_of<S>(stack, pixels, block.inputs, block.kind, block.settings, state, second);
        below.result = mutable_data<S>(results[0]);
        if (above) below.above = mutable_data<S>(results[1]);
        launch_image_pull<std::remove_pointer_t<decltype(name)>>(block.c, stack, data<S>(u), data<S>(weight), below,
                                                                 current_device(), device.stream());
    });
    return results;
}

Tensor image_slope(Optional v, Tensor state, Optional second, int64_t kind, std::vector<double> settings) {
    STD_TORCH_CHECK(kind >= 0 && kind < int64_t(Kind::Count), "unknown activation ", kind);
    STD_TORCH_CHECK(settings.size() == 2, "an activation has two settings");
    STD_TORCH_CHECK(v || second, "v or second must be given");
    STD_TORCH_CHECK(state.dim() == 4 && (!state.numel() || is_channels_last(state)),
                    "state must be [B, C, H, W], channels last, without gaps");
    if (v) {
        check_like(*v, state, v->size(0), "v");
        STD_TORCH_CHECK(!v->numel() || is_channels_last(*v), "v must be channels last, without gaps");
    }
    const int64_t stack = v ? v->size(0) : 1;
    STD_TORCH_CHECK(!second || stack == 1, "there is only one adjoint");
    check_shape(second, {state.numel()}, wide(state.scalar_type()), "second", state.device());
    const OnDevice device(state);
    const Tensor result = new_images(state, {stack, state.size(0), state.size(1), state.size(2), state.size(3)}, true);
    with_arithmetic(state.scalar_type(), false, [&](auto*, auto number) {
        using S = decltype(number);
        const int64_t pixels = state.size(0) * state.size(2) * state.size(3);
        Down<S> down = down_of<S>(stack, pixels, state.size(1), Kind(kind), {settings[0], settings[1]}, state, second);
        down.source = data<S>(v);
        down.result = mutable_data<S>(result);
        launch_between(down, device.stream());
    });
    return result;
}

Tensor image_gradient(Tensor u, Tensor x, Tensor weight, std::vector<int64_t> options, std::vector<double> settings) {
    STD_TORCH_CHECK(x.dim() == 5, "x must be [K, B, C, H, W]");
    const int64_t stack = x.size(0);
    const Block block({x.size(1), x.size(2), x.size(3), x.size(4)}, weight, options, settings);
    block.check(u, block.y(stack), "u", weight);
    block.check(x, block.x(stack), "x", weight);
    const OnDevice device(x);
    const Tensor gradient = torch::stable::new_empty(x, block.weight());
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        using Arithmetic = std::remove_pointer_t<decltype(name)>;
        const Device machine = current_device();
        const GradientPlan plan = plan_gradient<S>(block.c, stack, machine);
        const Tensor sums = torch::stable::new_empty(x, {plan.slices * gradient.numel()}, wide(block.type));
        launch_image_gradient<Arithmetic>(block.c, stack, data<S>(u), data<S>(x), plan, mutable_data<Wide<S>>(sums),
                                          mutable_data<S>(gradient), machine, device.stream());
    });
    return gradient;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("image_forward", TORCH_BOX(&gradreg_fast::cuda::image_forward));
    library.impl("image_push", TORCH_BOX(&gradreg_fast::cuda::image_push));
    library.impl("image_pull", TORCH_BOX(&gradreg_fast::cuda::image_pull));
    library.impl("image_slope", TORCH_BOX(&gradreg_fast::cuda::image_slope));
    library.impl("image_gradient", TORCH_BOX(&gradreg_fast::cuda::image_gradient));
}
