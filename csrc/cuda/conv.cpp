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

// phi' v of a stack, or phi' v + second; v itself without an activation. v or second may be missing.
template <class S>
Optional below(const Block& block, int64_t stack, const Optional& v, const Optional& second, const Tensor& kept,
               const OnDevice& device) {
    if (block.kind == Kind::Identity && v && !second) return v;
    Tensor result = new_images(kept, block.y(stack), true);
    Down<S> down{};
    down.rows = block.c.pixels(), down.lines = stack * down.rows, down.columns = block.c.outputs;
    down.kind = block.kind, down.settings = block.settings;
    down.source = data<S>(v);
    down.state = block.kind == Kind::Identity ? nullptr : data<S>(kept);
    down.second = data<Wide<S>>(second);
    down.result = mutable_data<S>(result);
    launch_between(down, device.stream());
    return result;
}

template <class Arithmetic, class S>
Tensor weight_gradient(const Block& block, int64_t stack, const Tensor& u, const Tensor& x, const OnDevice& device) {
    const Device machine = current_device();
    const GradientPlan plan = plan_gradient<S>(block.c, stack, machine);
    Tensor gradient = torch::stable::new_empty(x, block.weight());
    const Tensor sums = torch::stable::new_empty(x, {plan.slices * gradient.numel()}, wide(block.type));
    launch_image_gradient<Arithmetic>(block.c, stack, data<S>(u), data<S>(x), plan, mutable_data<Wide<S>>(sums),
                                      mutable_data<S>(gradient), machine, device.stream());
    return gradient;
}

template <class S>
Tensor bias_gradient(const Block& block, const Tensor& d, const OnDevice& device) {
    const int64_t lines = block.c.pixels();
    const int slices =
        int(std::max<int64_t>(std::min<int64_t>(ceiling(lines, least_slice), current_device().multiprocessors), 1));
    Tensor gradient = torch::stable::new_empty(d, {block.outputs});
    const Tensor sums = torch::stable::new_empty(d, {slices * block.outputs}, wide(block.type));
    launch_bias_gradient(data<S>(d), lines, block.c.outputs, slices, mutable_data<Wide<S>>(sums),
                         mutable_data<S>(gradient), device.stream());
    return gradient;
}

std::tuple<Tensor, Tensor> conv_forward(Tensor x, Tensor weight, Optional bias, std::vector<int64_t> options,
                                        std::vector<double> settings) {
    STD_TORCH_CHECK(x.dim() == 4, "x must be [B, C, H, W]");
    const Block block({x.size(0), x.size(1), x.size(2), x.size(3)}, weight, options, settings);
    block.check(x, block.x(), "x", weight);
    bias = as_contiguous(bias);
    check_shape(bias, {block.outputs}, block.type, "bias", x.device());
    const OnDevice device(x);
    const Tensor y = new_images(x, block.y(), true);
    const Tensor kept = block.keeps_output() ? torch::stable::new_empty(x, {0}) : new_images(x, block.y(), true);
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        const ImageForward<S> p{data<S>(x),
                                data<S>(weight),
                                data<S>(bias),
                                block.kind,
                                block.settings,
                                mutable_data<S>(y),
                                block.keeps_output() ? nullptr : mutable_data<S>(kept)};
        launch_image_forward<std::remove_pointer_t<decltype(name)>>(block.c, p, current_device(), device.stream());
    });
    return {y, kept};
}

std::vector<Tensor> conv_push(Tensor xdot, Optional u, Tensor kept, Tensor weight, std::vector<int64_t> options,
                              std::vector<double> settings, bool push, bool curvature, bool gradient) {
    STD_TORCH_CHECK(xdot.dim() == 5, "xdot must be [K, B, C, H, W]");
    const int64_t stack = xdot.size(0);
    const Block block({xdot.size(1), xdot.size(2), xdot.size(3), xdot.size(4)}, weight, options, settings);
    block.check(xdot, block.x(stack), "xdot", weight);
    block.check(u, block.y(stack), "u", weight);
    if (block.kind != Kind::Identity) block.check(kept, block.y(), "kept", weight);
    STD_TORCH_CHECK(u || !(curvature || gradient), "tangents meet nothing without u");
    STD_TORCH_CHECK(!curvature || block.curved(), "there is no curvature in a piecewise linear block");
    const OnDevice device(xdot);
    std::vector<Tensor> results;
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        using Arithmetic = std::remove_pointer_t<decltype(name)>;
        const Device machine = current_device();
        ImagePush<S> p{};
        p.stack = stack;
        p.xdot = data<S>(xdot), p.weight = data<S>(weight), p.state = data<S>(kept), p.u = data<S>(u);
        p.kind = block.kind, p.settings = block.settings;
        if (push) {
            results.push_back(new_images(xdot, block.y(stack), true));
            p.ydot = mutable_data<S>(results.back());
        }
        Optional terms;
        if (curvature) {
            const int64_t count = block.c.pixels() * block.outputs;
            results.push_back(torch::stable::new_empty(xdot, {count}, wide(block.type)));
            p.second = mutable_data<Wide<S>>(results.back());
            terms = torch::stable::new_empty(xdot, {stack > 1 ? stack * count : 0}, wide(block.type));
            p.terms = mutable_data<Wide<S>>(*terms);
        }
        if (push || curvature) launch_image_push<Arithmetic>(block.c, p, machine, device.stream());
        if (!gradient) return;
        const Optional u_z = below<S>(block, stack, u, std::nullopt, kept, device);
        results.push_back(weight_gradient<Arithmetic, S>(block, stack, *u_z, xdot, device));
    });
    return results;
}

std::vector<Tensor> conv_pull(Optional u, Optional second, Optional x, Tensor kept, Tensor weight,
                              std::vector<int64_t> shape, std::vector<int64_t> options, std::vector<double> settings,
                              bool pull, bool bias) {
    const Block block(shape, weight, options, settings);
    STD_TORCH_CHECK(u || second, "u or second must be given");
    const int64_t stack = u ? u->size(0) : 1;
    STD_TORCH_CHECK(stack == 1 || !(second || x || bias), "there is only one adjoint");
    block.check(u, block.y(stack), "u", weight);
    block.check(x, block.x(), "x", weight);
    if (block.kind != Kind::Identity) block.check(kept, block.y(), "kept", weight);
    check_shape(second, {block.c.pixels() * block.outputs}, wide(block.type), "second", weight.device());
    const OnDevice device(weight);
    std::vector<Tensor> results;
    with_arithmetic(block.type, block.tf32, [&](auto* name, auto number) {
        using S = decltype(number);
        using Arithmetic = std::remove_pointer_t<decltype(name)>;
        const Tensor u_z = *below<S>(block, stack, u, second, kept, device);
        if (pull) {
            results.push_back(new_images(weight, block.x(stack), true));
            launch_image_pull<Arithmetic>(block.c, stack, data<S>(u_z), data<S>(weight),
                                          mutable_data<S>(results.back()), current_device(), device.stream());
        }
        if (x) results.push_back(weight_gradient<Arithmetic, S>(block, 1, u_z, *x, device));
        if (bias) results.push_back(bias_gradient<S>(block, u_z, device));
    });
    return results;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("conv_forward", TORCH_BOX(&gradreg_fast::cuda::conv_forward));
    library.impl("conv_push", TORCH_BOX(&gradreg_fast::cuda::conv_push));
    library.impl("conv_pull", TORCH_BOX(&gradreg_fast::cuda::conv_pull));
}
