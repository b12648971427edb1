// The operations on activations: checks and memory around the passes of a device.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/elementwise.h"
#include "common/tensors.h"

namespace gradreg_fast {

// `Passes(like)` checks the dtype of a tensor and serves tensors like it:
//
//   value(pass, z, y, mask)                 y = phi(z), and the mask if it is not null; y may be z
//   slope(pass, v, stack, result)           phi' v^k for each of a stack [stack, count]; the result may be v
//   meet(pass, u, xdot, stack, w, ydot)     w = sum_k u^k xdot^k, and ydot^k = phi' xdot^k unless ydot is null
//   bend(pass, d, w, below, result)         phi' d + phi'' w, or phi' d + (phi'' / phi') w if `below`; d may be null
template <class Passes>
struct ElementwiseOperations {
    using Tensor = torch::stable::Tensor;
    using Optional = std::optional<Tensor>;
    using Numbers = std::vector<double>;

    static Elementwise pass_of(int64_t count, int64_t kind, const Numbers& settings) {
        STD_TORCH_CHECK(kind >= 0 && kind < int64_t(Kind::Count), "unknown activation ", kind);
        STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
        return {Kind(kind), {settings[0], settings[1]}, count, nullptr, nullptr};
    }

    static Elementwise pass_of(const Tensor& like, int64_t count, int64_t kind, const Numbers& settings,
                               const Tensor& kept) {
        Elementwise pass = pass_of(count, kind, settings);
        if (kept.scalar_type() == torch::headeronly::ScalarType::Byte) {
            STD_TORCH_CHECK(pass.kind == Kind::ReLU || pass.kind == Kind::LeakyReLU, "this activation needs no mask");
            STD_TORCH_CHECK(kept.numel() == mask_bytes(count, like.element_size()), "the mask has the wrong size");
            pass.mask = data<uint8_t>(kept);
        } else {
            STD_TORCH_CHECK(kept.scalar_type() == like.scalar_type() && kept.numel() == count, "kept does not fit");
            check_without_gaps(kept, "kept");
            pass.kept = kept.const_data_ptr();
        }
        return pass;
    }

    static void check_stack(const Tensor& stack, const Tensor& like, int64_t count, const char* name) {
        STD_TORCH_CHECK(stack.scalar_type() == like.scalar_type(), name, " has the wrong dtype");
        STD_TORCH_CHECK(count == 0 || stack.numel() % count == 0, name, " has the wrong size");
        check_without_gaps(stack, name);
    }

    static Tensor evaluate(const Tensor& z, const Tensor& y, int64_t kind, const Numbers& settings, bool masked) {
        const int64_t count = z.numel();
        const Elementwise pass = pass_of(count, kind, settings);
        const Passes passes(z);
        Tensor mask = torch::stable::new_empty(z, {masked ? mask_bytes(count, z.element_size()) : 0},
                                               torch::headeronly::ScalarType::Byte);
        if (count)
            passes.value(pass, z.const_data_ptr(), y.mutable_data_ptr(),
                         masked ? mutable_data<uint8_t>(mask) : nullptr);
        return mask;
    }

    static std::tuple<Tensor, Tensor> activate(Tensor z, int64_t kind, Numbers settings, bool masked) {
        check_without_gaps(z, "z");
        Tensor y = torch::stable::empty_like(z);
        Tensor mask = evaluate(z, y, kind, settings, masked);
        return {y, mask};
    }

    static Tensor activate_in_place(Tensor z, int64_t kind, Numbers settings, bool masked) {
        check_without_gaps(z, "z");
        return evaluate(z, z, kind, settings, masked);
    }

    static void scale(const Tensor& kept, const Tensor& v, const Tensor& result, int64_t kind,
                      const Numbers& settings) {
        STD_TORCH_CHECK(v.dim() > 0 && v.size(0) > 0, "v must be a stack, [K, ...]");
        const int64_t stack = v.size(0), count = v.numel() / stack;
        const Elementwise pass = pass_of(v, count, kind, settings, kept);
        check_stack(v, v, count, "v");
        const Passes passes(v);
        if (count) passes.slope(pass, v.const_data_ptr(), stack, result.mutable_data_ptr());
    }

    static Tensor slope(Tensor kept, Tensor v, int64_t kind, Numbers settings) {
        Tensor result = torch::stable::empty_like(v);
        scale(kept, v, result, kind, settings);
        return result;
    }

    static void slope_in_place(Tensor kept, Tensor v, int64_t kind, Numbers settings) {
        scale(kept, v, v, kind, settings);
    }

    static std::vector<Tensor> meet(Tensor kept, Tensor u, Tensor xdot, int64_t kind, Numbers settings, bool push) {
        STD_TORCH_CHECK(u.dim() > 0 && u.size(0) > 0, "u must be a stack, [K, ...]");
        const int64_t stack = u.size(0), count = u.numel() / stack;
        const Elementwise pass = pass_of(u, count, kind, settings, kept);
        check_stack(u, u, count, "u");
        check_stack(xdot, u, count, "xdot");
        STD_TORCH_CHECK(xdot.numel() == u.numel(), "xdot must be shaped like u");
        const Passes passes(u);
        std::vector<Tensor> results{torch::stable::empty_like(torch::stable::select(u, 0, 0))};
        if (push) results.push_back(torch::stable::empty_like(xdot));
        if (count)
            passes.meet(pass, u.const_data_ptr(), xdot.const_data_ptr(), stack, results[0].mutable_data_ptr(),
                        push ? results[1].mutable_data_ptr() : nullptr);
        return results;
    }

    static Tensor bend(Tensor kept, Optional d, Tensor w, int64_t kind, Numbers settings, bool below) {
        const int64_t count = w.numel();
        const Elementwise pass = pass_of(w, count, kind, settings, kept);
        STD_TORCH_CHECK(!pass.mask, "a piecewise linear activation has no curvature");
        check_stack(w, w, count, "w");
        if (d) {
            check_stack(*d, w, count, "d");
            STD_TORCH_CHECK(d->numel() == count, "d must be shaped like w");
        }
        const Passes passes(w);
        Tensor result = torch::stable::empty_like(w);
        if (count)
            passes.bend(pass, d ? d->const_data_ptr() : nullptr, w.const_data_ptr(), below, result.mutable_data_ptr());
        return result;
    }

    template <class Library>
    static void implement(Library& library) {
        library.impl("activate", TORCH_BOX(&activate));
        library.impl("activate_", TORCH_BOX(&activate_in_place));
        library.impl("activation_slope", TORCH_BOX(&slope));
        library.impl("activation_slope_", TORCH_BOX(&slope_in_place));
        library.impl("activation_meet", TORCH_BOX(&meet));
        library.impl("activation_bend", TORCH_BOX(&bend));
    }
};

}  // namespace gradreg_fast
