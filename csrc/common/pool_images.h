// Tensors of images around windows: their sizes and layouts, checked.

#pragma once

#include <vector>

#include "common/images.h"
#include "common/windows.h"

namespace gradreg_fast {

struct PoolImages {
    using Tensor = torch::stable::Tensor;
    using Sizes = std::vector<int64_t>;

    static constexpr size_t count = 11;

    Windows windows;
    Sizes shape, pooled;  // of z and y
    bool last;

    // like: z, or a stack of images like z or y; options: pairs of the windows' height and width, of their steps and
    // margins, of z's and of y's; whether channels are last.
    PoolImages(const Tensor& like, bool stacked, const Sizes& options) {
        STD_TORCH_CHECK(options.size() >= count, "options must have ", count, " entries");
        for (int64_t dimension = stacked; dimension < like.dim(); ++dimension)
            shape.push_back(like.size(dimension));
        const size_t dimensions = shape.size();
        last = options[10];
        STD_TORCH_CHECK(dimensions >= 2 && (!last || dimensions == 4), "z must be images [.., H, W]");
        pooled = shape;
        windows.planes = 1, windows.channels = last ? shape[1] : 1;
        for (size_t dimension = 0; dimension < dimensions - 2; ++dimension)
            windows.planes *= last && dimension == 1 ? 1 : shape[dimension];
        for (int i = 0; i < 2; ++i) {
            const int64_t window = windows.window[i] = options[i], step = windows.step[i] = options[2 + i];
            const int64_t margin = windows.margin[i] = options[4 + i], size = windows.size[i] = options[6 + i];
            const int64_t count = windows.pooled[i] = options[8 + i];
            const bool fits = window > 0 && step > 0 && margin >= 0 && 2 * margin <= window && size > 0 && count > 0 &&
                              (count - 1) * step < size + margin;
            STD_TORCH_CHECK(fits, "the windows do not fit into the images");
            shape[dimensions - 2 + i] = size, pooled[dimensions - 2 + i] = count;
        }
    }

    // Raises unless the tensor is `stack` images in this layout, without gaps.
    void check(const Tensor& images, int64_t stack, const Sizes& sizes, const char* name) const {
        int64_t numbers = stack;
        for (const int64_t size : sizes)
            numbers *= size;
        STD_TORCH_CHECK(images.numel() == numbers, name, " has the wrong size");
        STD_TORCH_CHECK(numbers == 0 || (last ? is_channels_last(images) : images.is_contiguous()), name,
                        " has the wrong layout");
    }

    // A new stack of images of these sizes.
    Tensor stack(const Tensor& like, int64_t stack, Sizes sizes) const {
        sizes.insert(sizes.begin(), stack);
        return new_images(like, sizes, last);
    }
};

}  // namespace gradreg_fast
