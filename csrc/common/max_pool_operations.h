// The operations on maxima over windows: checks and memory around the passes of a device.

#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "common/activation.h"
#include "common/images.h"
#include "common/max_pool.h"
#include "common/tensors.h"

namespace gradreg_fast {

// `Passes(like)` checks the dtype of a tensor and serves tensors like it:
//
//   forward(pool, z, y, code)
//   push(pool, code, xdot, stack, ydot)     for each of a stack; all numbers of the result are written
//   pull(pool, code, u, stack, below)
template <class Passes>
struct MaxPoolOperations {
    using Tensor = torch::stable::Tensor;
    using Numbers = std::vector<double>;
    using Sizes = std::vector<int64_t>;
    using ScalarType = torch::headeronly::ScalarType;

    struct Images {
        MaxPool pool;
        Sizes shape, pooled;
        bool last;

        // like: z, y or the code; options: pairs of the window, its step and its margin, of z's height and width, and
        // whether channels are last.
        Images(const Tensor& like, const Sizes& options, int64_t kind, const Numbers& settings) {
            STD_TORCH_CHECK(options.size() == 9, "options must have nine entries");
            STD_TORCH_CHECK(kind >= 0 && kind <= int64_t(Kind::LeakyReLU), "the activation must be piecewise linear");
            STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
            const int64_t dimensions = like.dim();
            for (int64_t dimension = 0; dimension < dimensions; ++dimension)
                shape.push_back(like.size(dimension));
            pooled = shape;
            last = options[8];
            STD_TORCH_CHECK(dimensions >= 2 && (!last || dimensions == 4), "z must be images [.., H, W]");
            pool.planes = 1, pool.channels = last ? shape[1] : 1;
            for (int64_t dimension = 0; dimension < dimensions - 2; ++dimension)
                pool.planes *= last && dimension == 1 ? 1 : shape[dimension];
            for (int i = 0; i < 2; ++i) {
                shape[dimensions - 2 + i] = pool.size[i] = options[6 + i];
                pool.window[i] = options[i], pool.step[i] = options[2 + i], pool.margin[i] = options[4 + i];
                const bool fits = pool.window[i] > 0 && pool.step[i] > 0 && pool.margin[i] >= 0 &&
                                  2 * pool.margin[i] <= pool.window[i] &&
                                  pool.size[i] + 2 * pool.margin[i] >= pool.window[i];
                STD_TORCH_CHECK(fits, "the windows do not fit into the images");
                pool.pooled[i] = (pool.size[i] + 2 * pool.margin[i] - pool.window[i]) / pool.step[i] + 1;
                pooled[dimensions - 2 + i] = pool.pooled[i];
            }
            STD_TORCH_CHECK(pool.window[0] * pool.window[1] <= MaxPool::most_places, "the windows are too large");
            pool.rectifies = Kind(kind) == Kind::ReLU;
            pool.negative_slope = Kind(kind) == Kind::LeakyReLU ? settings[0] : pool.rectifies ? 0 : 1;
        }

        static Sizes stacked(int64_t stack, Sizes sizes) {
            sizes.insert(sizes.begin(), stack);
            return sizes;
        }
        static int64_t count(const Sizes& sizes) {
            int64_t numbers = 1;
            for (const int64_t size : sizes)
                numbers *= size;
            return numbers;
        }
        // Raises unless the tensor is images or a stack of images in this layout, without gaps.
        void check(const Tensor& images, int64_t stack, const Sizes& sizes, const char* name) const {
            STD_TORCH_CHECK(images.numel() == stack * count(sizes), name, " has the wrong size");
            STD_TORCH_CHECK(images.numel() == 0 || (last ? is_channels_last(images) : images.is_contiguous()), name,
                            " has the wrong layout");
        }
    };

    static std::tuple<Tensor, Tensor> forward(Tensor z, Sizes options, int64_t kind, Numbers settings) {
        const Images images(z, options, kind, settings);
        images.check(z, 1, images.shape, "z");
        const Passes passes(z);
        Tensor y = new_images(z, images.pooled, images.last);
        Tensor code = new_images(z, images.pooled, images.last, ScalarType::Byte);
        if (z.numel())
            passes.forward(images.pool, z.const_data_ptr(), y.mutable_data_ptr(), mutable_data<uint8_t>(code));
        return {y, code};
    }

    static Tensor push(Tensor code, Tensor xdot, Sizes options, int64_t kind, Numbers settings) {
        const Images images(code, options, kind, settings);
        const int64_t stack = xdot.size(0);
        check_code(images, code);
        images.check(xdot, stack, images.shape, "xdot");
        const Passes passes(xdot);
        Tensor ydot = new_images(xdot, Images::stacked(stack, images.pooled), images.last);
        if (xdot.numel())
            passes.push(images.pool, data<uint8_t>(code), xdot.const_data_ptr(), stack, ydot.mutable_data_ptr());
        return ydot;
    }

    static Tensor pull(Tensor code, Tensor u, Sizes options, int64_t kind, Numbers settings) {
        const Images images(code, options, kind, settings);
        const int64_t stack = u.size(0);
        check_code(images, code);
        images.check(u, stack, images.pooled, "u");
        const Passes passes(u);
        Tensor below = new_images(u, Images::stacked(stack, images.shape), images.last);
        if (u.numel())
            passes.pull(images.pool, data<uint8_t>(code), u.const_data_ptr(), stack, below.mutable_data_ptr());
        return below;
    }

    static void check_code(const Images& images, const Tensor& code) {
        STD_TORCH_CHECK(code.scalar_type() == ScalarType::Byte, "code must be bytes");
        images.check(code, 1, images.pooled, "code");
    }

    template <class Library>
    static void implement(Library& library) {
        library.impl("max_pool", TORCH_BOX(&forward));
        library.impl("max_pool_push", TORCH_BOX(&push));
        library.impl("max_pool_pull", TORCH_BOX(&pull));
    }
};

}  // namespace gradreg_fast
