// Tensors of images, in either of the two layouts.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace gradreg_fast {

// Whether images lie channels last and without gaps; the strides of sizes of one say nothing.
inline bool is_channels_last(const torch::stable::Tensor& images) {
    const int64_t dimensions = images.dim();
    int64_t stride = 1;
    const auto fits = [&](int64_t dimension) {
        const bool right = images.size(dimension) == 1 || images.stride(dimension) == stride;
        stride *= images.size(dimension);
        return right;
    };
    bool last = fits(dimensions - 3) && fits(dimensions - 1) && fits(dimensions - 2);
    for (int64_t dimension = dimensions - 4; dimension >= 0; --dimension)
        last = last && fits(dimension);
    return last;
}

// New images [.., C, H, W] in one of the two layouts.
inline torch::stable::Tensor new_images(const torch::stable::Tensor& like, std::vector<int64_t> shape,
                                        bool channels_last,
                                        std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
    if (!channels_last) return torch::stable::new_empty(like, shape, type);
    const int64_t dimensions = int64_t(shape.size());
    std::rotate(shape.end() - 3, shape.end() - 2, shape.end());
    const torch::stable::Tensor images = torch::stable::new_empty(like, shape, type);  // [.., H, W, C]
    return torch::stable::transpose(torch::stable::transpose(images, dimensions - 3, dimensions - 1), dimensions - 2,
                                    dimensions - 1);
}

}  // namespace gradreg_fast
