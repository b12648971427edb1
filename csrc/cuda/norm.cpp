// The operations on batch normalisation: checks and memory around the kernels of norm.cuh.

#include "cuda/norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

ScalarType wide(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

const void* statistic(const Optional& tensor, const Tensor& x, const char* name) {
    if (!tensor) return nullptr;
    STD_TORCH_CHECK(tensor->scalar_type() == wide(x), name, " must be float64 if x is, else float32");
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == x.size(1) && tensor->is_contiguous(), name,
                    " must have a number for each channel");
    return tensor->const_data_ptr();
}

Norm norm_of(const Tensor& x, const Tensor& mean, const Tensor& inverse, const Optional& weight) {
    STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "x must be [B, C, ...], not empty");
    check_without_gaps(x, "x");
    const int64_t batch = x.size(0), channels = x.size(1), pixels = x.numel() / (batch * channels);
    STD_TORCH_CHECK(batch * pixels < int64_t(1) << 31, "x has too many elements a channel");
    const bool last = x.stride(1) == 1;
    STD_TORCH_CHECK(last || x.is_contiguous(), "x must be contiguous or channels last");
    return {type_of(x, "x"),
            batch,
            channels,
            pixels,
            last,
            x.const_data_ptr(),
            statistic(mean, x, "mean"),
            statistic(inverse, x, "inverse"),
            statistic(weight, x, "weight")};
}

void check_like(const Tensor& tensor, const Tensor& x, int64_t stack, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " has the wrong dtype");
    STD_TORCH_CHECK(tensor.numel() == stack * x.numel(), name, " has the wrong size");
    check_without_gaps(tensor, name);
}

std::tuple<Tensor, Tensor> norm_project(Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight,
                                        Optional second) {
    const Norm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_like(v, x, stack, "v");
    if (second) check_like(*second, x, stack, "second");
    const OnDevice device(x);
    Tensor result = torch::stable::empty_like(v);
    Tensor sums = torch::stable::new_empty(mean, {stack, 2, norm.channels});
    Tensor workspace = torch::stable::new_empty(mean, {norm_workspace(norm, stack)});
    if (stack)
        project(norm, v.const_data_ptr(), stack, second ? second->const_data_ptr() : nullptr, result.mutable_data_ptr(),
                sums.mutable_data_ptr(), workspace.mutable_data_ptr(), device.stream());
    return {result, sums};
}

std::vector<Tensor> norm_meet(Tensor u, Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight, bool push) {
    const Norm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    STD_TORCH_CHECK(stack > 0, "v must be a stack, [K, ...]");
    check_like(u, x, stack, "u");
    check_like(v, x, stack, "v");
    const OnDevice device(x);
    std::vector<Tensor> results{torch::stable::empty_like(x), torch::stable::empty_like(mean)};
    if (push) results.push_back(torch::stable::empty_like(v));
    Tensor workspace = torch::stable::new_empty(mean, {norm_workspace(norm, stack)});
    meet(norm, u.const_data_ptr(), v.const_data_ptr(), stack, results[0].mutable_data_ptr(),
         results[1].mutable_data_ptr(), push ? results[2].mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(),
         device.stream());
    return results;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("norm_project", TORCH_BOX(&gradreg_fast::cuda::norm_project));
    library.impl("norm_meet", TORCH_BOX(&gradreg_fast::cuda::norm_meet));
}
