// The convolution operations' arguments, checked, for the CPU and for CUDA devices.

#pragma once

#include <array>
#include <vector>

#include "common/activation.h"
#include "common/images.h"
#include "common/pooling.h"
#include "common/tensors.h"

namespace gradreg_fast {

// The sizes and settings of a block for a batch of images, checked.
struct ConvSizes {
    using ScalarType = torch::headeronly::ScalarType;
    using Tensor = torch::stable::Tensor;
    using Pair = std::array<int64_t, 2>;  // of the height and the width

    ScalarType type;
    int64_t samples, inputs, outputs;
    Pair size, kernel, stride, padding, dilation, window, step, margin, summed, pooled;
    Pooling pooling;
    Kind kind;
    Settings settings;
    bool channels_last;  // results

    // options: stride, padding, dilation, the pooling's number, window, step and margin, the activation's number, and
    // whether resulting images are channels last.
    ConvSizes(const std::vector<int64_t>& shape, const Tensor& weight, const std::vector<int64_t>& options,
              const std::vector<double>& numbers)
        : type(weight.scalar_type()) {
        STD_TORCH_CHECK(weight.dim() == 4, "weight must be [outputs, inputs, height, width]");
        STD_TORCH_CHECK(shape.size() == 4, "x must be [B, C, H, W]");
        STD_TORCH_CHECK(options.size() == 15 && numbers.size() == 2, "15 options and 2 settings describe a block");
        samples = shape[0], inputs = shape[1], outputs = weight.size(0);
        STD_TORCH_CHECK(weight.size(1) == inputs, "weight must have as many inputs as x has channels");
        STD_TORCH_CHECK(options[6] >= 0 && options[6] < int64_t(Pooling::Count), "unknown pooling ", options[6]);
        STD_TORCH_CHECK(options[13] >= 0 && options[13] < int64_t(Kind::Count), "unknown activation ", options[13]);
        pooling = Pooling(options[6]);
        kind = Kind(options[13]);
        settings = {numbers[0], numbers[1]};
        channels_last = options[14];
        for (int i = 0; i < 2; ++i) {
            size[i] = shape[2 + i], kernel[i] = weight.size(2 + i);
            stride[i] = options[i], padding[i] = options[2 + i], dilation[i] = options[4 + i];
            window[i] = options[7 + i], step[i] = options[9 + i], margin[i] = options[11 + i];
            STD_TORCH_CHECK(stride[i] > 0 && padding[i] >= 0 && dilation[i] > 0, "wrong stride, padding or dilation");
            STD_TORCH_CHECK(window[i] > 0 && step[i] > 0 && margin[i] >= 0 && 2 * margin[i] <= window[i],
                            "wrong pooling window, step or margin");
            const int64_t room = size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1;
            STD_TORCH_CHECK(kernel[i] > 0 && room >= 0, "the images are smaller than the kernel");
            summed[i] = room / stride[i] + 1;
            pooled[i] = summed[i];
            if (pooling == Pooling::None) continue;
            STD_TORCH_CHECK(summed[i] + 2 * margin[i] >= window[i], "the images are smaller than the pooling window");
            pooled[i] = (summed[i] + 2 * margin[i] - window[i]) / step[i] + 1;
        }
        STD_TORCH_CHECK(samples >= 0 && inputs > 0 && outputs > 0, "there must be channels");
    }

    bool curved() const { return kind > Kind::LeakyReLU; }
    int64_t taps() const { return inputs * kernel[0] * kernel[1]; }
    std::vector<int64_t> x() const { return {samples, inputs, size[0], size[1]}; }
    std::vector<int64_t> x(int64_t stack) const { return {stack, samples, inputs, size[0], size[1]}; }
    std::vector<int64_t> y() const { return {samples, outputs, pooled[0], pooled[1]}; }
    std::vector<int64_t> y(int64_t stack) const { return {stack, samples, outputs, pooled[0], pooled[1]}; }
};

}  // namespace gradreg_fast
