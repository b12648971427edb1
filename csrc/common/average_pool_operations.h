// The operations on averages over windows of an activation: checks and memory around the passes of a device.

#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/average_pool.h"
#include "common/pool_images.h"
#include "common/tensors.h"

namespace gradreg_fast {

// `Passes(like)` serves tensors like this one, and checks its dtype. Of z and the mask, one is null:
//
//   forward(pool, z, y, mask)                       y = A phi(z), and the mask unless it is null
//   push(pool, z, mask, xdot, stack, ydot)          A phi' xdot^k for each of a stack
//   pull(pool, z, mask, u, stack, second, below)    phi' A^T u^k, plus phi'' second unless it is null
//   meet(pool, u, xdot, stack, second)              sum_k (A^T u^k) xdot^k
template <class Passes>
struct AveragePoolOperations {
    using Tensor = torch::stable::Tensor;
    using Optional = std::optional<Tensor>;
    using Numbers = std::vector<double>;
    using Sizes = std::vector<int64_t>;
    using ScalarType = torch::headeronly::ScalarType;

    static AveragePool pool_of(const PoolImages& images, const Sizes& options, int64_t kind, const Numbers& settings) {
        STD_TORCH_CHECK(options.size() == PoolImages::count + 2, "options must have ", PoolImages::count + 2,
                        " entries");
        STD_TORCH_CHECK(kind > 0 && kind < int64_t(Kind::Count), "unknown activation ", kind);
        STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
        const bool counts_margins = options[PoolImages::count];
        return {images.windows, counts_margins, options[PoolImages::count + 1], Kind(kind), {settings[0], settings[1]}};
    }

    // What the forward pass left, checked.
    struct Kept {
        const void* z = nullptr;
        const uint8_t* mask = nullptr;

        Kept(const Tensor& kept, const Tensor& like, const PoolImages& images, const AveragePool& pool) {
            if (pool.masked()) {
                STD_TORCH_CHECK(kept.scalar_type() == ScalarType::Byte, "the mask must be bytes");
                STD_TORCH_CHECK(kept.numel() == pool.mask_bytes() * pool.planes * pool.pooled_image(),
                                "the mask has the wrong size");
                mask = data<uint8_t>(kept);
            } else {
                STD_TORCH_CHECK(kept.scalar_type() == like.scalar_type(), "z has the wrong dtype");
                images.check(kept, 1, images.shape, "z");
                z = kept.const_data_ptr();
            }
        }
    };

    static std::tuple<Tensor, Tensor> forward(Tensor z, Sizes options, int64_t kind, Numbers settings) {
        const PoolImages images(z, false, options);
        const AveragePool pool = pool_of(images, options, kind, settings);
        images.check(z, 1, images.shape, "z");
        const Passes passes(z);
        Tensor y = new_images(z, images.pooled, images.last);
        Tensor mask =
            torch::stable::new_empty(z, {pool.masked() ? pool.mask_bytes() * y.numel() : 0}, ScalarType::Byte);
        if (z.numel())
            passes.forward(pool, z.const_data_ptr(), y.mutable_data_ptr(),
                           pool.masked() ? mutable_data<uint8_t>(mask) : nullptr);
        return {y, mask};
    }

    static Tensor push(Tensor kept, Tensor xdot, Sizes options, int64_t kind, Numbers settings) {
        const PoolImages images(xdot, true, options);
        const AveragePool pool = pool_of(images, options, kind, settings);
        const Kept of(kept, xdot, images, pool);
        images.check(xdot, xdot.size(0), images.shape, "xdot");
        const Passes passes(xdot);
        Tensor ydot = images.stack(xdot, xdot.size(0), images.pooled);
        if (xdot.numel())
            passes.push(pool, of.z, of.mask, xdot.const_data_ptr(), xdot.size(0), ydot.mutable_data_ptr());
        return ydot;
    }

    static Tensor pull(Tensor kept, Tensor u, Optional second, Sizes options, int64_t kind, Numbers settings) {
        const PoolImages images(u, true, options);
        const AveragePool pool = pool_of(images, options, kind, settings);
        const Kept of(kept, u, images, pool);
        images.check(u, u.size(0), images.pooled, "u");
        if (second) {
            STD_TORCH_CHECK(!pool.masked() && u.size(0) == 1, "a second-order term is that of one smooth adjoint");
            STD_TORCH_CHECK(second->scalar_type() == u.scalar_type(), "second has the wrong dtype");
            images.check(*second, 1, images.shape, "second");
        }
        const Passes passes(u);
        Tensor below = images.stack(u, u.size(0), images.shape);
        if (u.numel())
            passes.pull(pool, of.z, of.mask, u.const_data_ptr(), u.size(0), second ? second->const_data_ptr() : nullptr,
                        below.mutable_data_ptr());
        return below;
    }

    static Tensor meet(Tensor u, Tensor xdot, Sizes options, int64_t kind, Numbers settings) {
        const PoolImages images(xdot, true, options);
        const AveragePool pool = pool_of(images, options, kind, settings);
        STD_TORCH_CHECK(u.scalar_type() == xdot.scalar_type(), "u has the wrong dtype");
        images.check(u, xdot.size(0), images.pooled, "u");
        images.check(xdot, xdot.size(0), images.shape, "xdot");
        const Passes passes(xdot);
        Tensor second = new_images(xdot, images.shape, images.last);
        if (xdot.numel())
            passes.meet(pool, u.const_data_ptr(), xdot.const_data_ptr(), xdot.size(0), second.mutable_data_ptr());
        return second;
    }

    template <class Library>
    static void implement(Library& library) {
        library.impl("average_pool", TORCH_BOX(&forward));
        library.impl("average_pool_push", TORCH_BOX(&push));
        library.impl("average_pool_pull", TORCH_BOX(&pull));
        library.impl("average_pool_meet", TORCH_BOX(&meet));
    }
};

}  // namespace gradreg_fast
