// The operations on maxima over windows: checks and memory around the passes of a device.

#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "common/activation.h"
#include "common/max_pool.h"
#include "common/pool_images.h"
#include "common/tensors.h"

namespace gradreg_fast {

// `Passes(like)` serves tensors like this one, and checks its dtype:
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

    static MaxPool pool_of(const PoolImages& images, int64_t kind, const Numbers& settings) {
        STD_TORCH_CHECK(kind >= 0 && kind <= int64_t(Kind::LeakyReLU), "the activation must be piecewise linear");
        STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
        STD_TORCH_CHECK(images.windows.places() <= MaxPool::most_places, "the windows are too large");
        const bool rectifies = Kind(kind) == Kind::ReLU;
        return {images.windows, rectifies, Kind(kind) == Kind::LeakyReLU ? settings[0] : rectifies ? 0 : 1};
    }

    static std::tuple<Tensor, Tensor> forward(Tensor z, Sizes options, int64_t kind, Numbers settings) {
        const PoolImages images(z, false, options);
        const MaxPool pool = pool_of(images, kind, settings);
        images.check(z, 1, images.shape, "z");
        const Passes passes(z);
        Tensor y = new_images(z, images.pooled, images.last);
        Tensor code = new_images(z, images.pooled, images.last, ScalarType::Byte);
        if (z.numel()) passes.forward(pool, z.const_data_ptr(), y.mutable_data_ptr(), mutable_data<uint8_t>(code));
        return {y, code};
    }

    // Up or down: `run(passes, pool, code, from, to)` for a stack.
    template <class Run>
    static Tensor sweep(const Tensor& code, const Tensor& from, const char* name, bool up, const Sizes& options,
                        int64_t kind, const Numbers& settings, const Run& run) {
        const PoolImages images(from, true, options);
        const MaxPool pool = pool_of(images, kind, settings);
        STD_TORCH_CHECK(code.scalar_type() == ScalarType::Byte, "code must be bytes");
        images.check(code, 1, images.pooled, "code");
        images.check(from, from.size(0), up ? images.shape : images.pooled, name);
        const Passes passes(from);
        Tensor to = images.stack(from, from.size(0), up ? images.pooled : images.shape);
        if (from.numel())
            run(passes, pool, data<uint8_t>(code), from.const_data_ptr(), from.size(0), to.mutable_data_ptr());
        return to;
    }

    static Tensor push(Tensor code, Tensor xdot, Sizes options, int64_t kind, Numbers settings) {
        return sweep(code, xdot, "xdot", true, options, kind, settings,
                     [](const Passes& passes, const auto&... arguments) { passes.push(arguments...); });
    }

    static Tensor pull(Tensor code, Tensor u, Sizes options, int64_t kind, Numbers settings) {
        return sweep(code, u, "u", false, options, kind, settings,
                     [](const Passes& passes, const auto&... arguments) { passes.pull(arguments...); });
    }

    template <class Library>
    static void implement(Library& library) {
        library.impl("max_pool", TORCH_BOX(&forward));
        library.impl("max_pool_push", TORCH_BOX(&push));
        library.impl("max_pool_pull", TORCH_BOX(&pull));
    }
};

}  // namespace gradreg_fast
