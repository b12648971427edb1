// The operations on stacks of cotangents: checks and memory around the kernels of rows.cuh.

#include "cuda/rows.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Stack stack_of(const Tensor& a) {
    STD_TORCH_CHECK(a.dim() >= 2 && a.is_contiguous(), "a must be a contiguous stack, [K, B, ...]");
    const int64_t rows = a.size(0) * a.size(1);
    return {type_of(a, "a"), a.size(0), a.size(1), rows ? a.numel() / rows : 0};
}

void check_same(const Tensor& b, const Tensor& a) {
    check_like(b, a, 1, "b");
    STD_TORCH_CHECK(b.is_contiguous(), "b must be contiguous");
}

Tensor dot_samples(Tensor a, Tensor b) {
    const Stack of = stack_of(a);
    check_same(b, a);
    const OnDevice device(a);
    const auto wide = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Tensor dots = torch::stable::new_empty(a, {of.batch}, wide);
    if (!a.numel()) return torch::stable::zero_(dots);
    const int64_t parts = dot_parts(of);
    Tensor workspace = torch::stable::new_empty(dots, {parts > 1 ? parts * of.batch : 0});
    dot_rows(of, a.const_data_ptr(), b.const_data_ptr(), dots.mutable_data_ptr(), workspace.mutable_data_ptr(),
             device.stream());
    return dots;
}

Tensor scale_samples(Tensor a, Optional b, Tensor factor) {
    const Stack of = stack_of(a);
    if (b) check_same(*b, a);
    const void* const factors = statistic(factor, a, of.batch, "factor");
    const OnDevice device(a);
    Tensor result = torch::stable::empty_like(a);
    if (a.numel())
        scale_rows(of, a.const_data_ptr(), b ? b->const_data_ptr() : nullptr, factors, result.mutable_data_ptr(),
                   device.stream());
    return result;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("dot_samples", TORCH_BOX(&gradreg_fast::cuda::dot_samples));
    library.impl("scale_samples", TORCH_BOX(&gradreg_fast::cuda::scale_samples));
}
