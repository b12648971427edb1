// The operations on activations: checks and memory around the passes of elementwise.cuh.

#include "cuda/elementwise.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Elementwise pass_of(const Tensor& like, int64_t count, int64_t kind, const std::vector<double>& settings) {
    STD_TORCH_CHECK(kind >= 0 && kind < int64_t(Kind::Count), "unknown activation ", kind);
    STD_TORCH_CHECK(settings.size() == 2, "settings must have two entries");
    return {type_of(like, "z"), Kind(kind), {settings[0], settings[1]}, count, nullptr, nullptr};
}

Elementwise pass_of(const Tensor& like, int64_t count, int64_t kind, const std::vector<double>& settings,
                    const Tensor& kept) {
    Elementwise pass = pass_of(like, count, kind, settings);
    if (kept.scalar_type() == ScalarType::Byte) {
        STD_TORCH_CHECK(pass.kind == Kind::ReLU || pass.kind == Kind::LeakyReLU, "this activation needs no mask");
        STD_TORCH_CHECK(kept.numel() == mask_bytes(count, like.element_size()), "the mask has the wrong size");
        pass.mask = static_cast<const uint8_t*>(kept.const_data_ptr());
    } else {
        STD_TORCH_CHECK(kept.scalar_type() == like.scalar_type() && kept.numel() == count, "kept does not fit");
        check_without_gaps(kept, "kept");
        pass.kept = kept.const_data_ptr();
    }
    return pass;
}

void check_stack(const Tensor& stack, const Tensor& like, int64_t count, const char* name) {
    STD_TORCH_CHECK(stack.scalar_type() == like.scalar_type(), name, " has the wrong dtype");
    STD_TORCH_CHECK(count == 0 || stack.numel() % count == 0, name, " has the wrong size");
    check_without_gaps(stack, name);
}

std::tuple<Tensor, Tensor> activate(Tensor z, int64_t kind, std::vector<double> settings, bool masked) {
    check_without_gaps(z, "z");
    const int64_t count = z.numel();
    const Elementwise pass = pass_of(z, count, kind, settings);
    const OnDevice device(z);
    Tensor y = torch::stable::empty_like(z);
    Tensor mask = torch::stable::new_empty(z, {masked ? mask_bytes(count, z.element_size()) : 0}, ScalarType::Byte);
    uint8_t* bits = masked ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
    if (count) apply_value(pass, z.const_data_ptr(), y.mutable_data_ptr(), bits, device.stream());
    return {y, mask};
}

Tensor activation_slope(Tensor kept, Tensor v, int64_t count, int64_t kind, std::vector<double> settings) {
    const Elementwise pass = pass_of(v, count, kind, settings, kept);
    check_stack(v, v, count, "v");
    const OnDevice device(v);
    Tensor result = torch::stable::empty_like(v);
    if (v.numel()) apply_slope(pass, v.const_data_ptr(), v.numel() / count, result.mutable_data_ptr(), device.stream());
    return result;
}

std::vector<Tensor> activation_meet(Tensor kept, Tensor u, Tensor xdot, int64_t kind, std::vector<double> settings,
                                    bool push) {
    STD_TORCH_CHECK(u.dim() > 0 && u.size(0) > 0, "u must be a stack, [K, ...]");
    const int64_t stack = u.size(0), count = u.numel() / stack;
    const Elementwise pass = pass_of(u, count, kind, settings, kept);
    check_stack(u, u, count, "u");
    check_stack(xdot, u, count, "xdot");
    STD_TORCH_CHECK(xdot.numel() == u.numel(), "xdot must be shaped like u");
    const OnDevice device(u);
    std::vector<Tensor> results{torch::stable::empty_like(torch::stable::select(u, 0, 0))};
    if (push) results.push_back(torch::stable::empty_like(xdot));
    void* ydot = push ? results[1].mutable_data_ptr() : nullptr;
    if (count)
        meet(pass, u.const_data_ptr(), xdot.const_data_ptr(), stack, results[0].mutable_data_ptr(), ydot,
             device.stream());
    return results;
}

Tensor activation_bend(Tensor kept, Optional d, Tensor w, int64_t kind, std::vector<double> settings, bool below) {
    const int64_t count = w.numel();
    const Elementwise pass = pass_of(w, count, kind, settings, kept);
    STD_TORCH_CHECK(!pass.mask, "a piecewise linear activation has no curvature");
    check_stack(w, w, count, "w");
    if (d) {
        check_stack(*d, w, count, "d");
        STD_TORCH_CHECK(d->numel() == count, "d must be shaped like w");
    }
    const OnDevice device(w);
    Tensor result = torch::stable::empty_like(w);
    const void* adjoint = d ? d->const_data_ptr() : nullptr;
    if (count) apply_bend(pass, adjoint, w.const_data_ptr(), below, result.mutable_data_ptr(), device.stream());
    return result;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("activate", TORCH_BOX(&gradreg_fast::cuda::activate));
    library.impl("activation_slope", TORCH_BOX(&gradreg_fast::cuda::activation_slope));
    library.impl("activation_meet", TORCH_BOX(&gradreg_fast::cuda::activation_meet));
    library.impl("activation_bend", TORCH_BOX(&gradreg_fast::cuda::activation_bend));
}
