// The operations on normalisations over rows: checks and memory around the kernels of layer_norm.cuh.

#include "cuda/layer_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

LayerNorm norm_of(const Tensor& x, const Optional& mean, const Tensor& inverse, const Optional& weight) {
    STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
    const int64_t rows = inverse.numel();
    STD_TORCH_CHECK(rows > 0 && x.numel() > 0 && x.numel() % rows == 0, "inverse must have a number for each row of x");
    const int64_t columns = x.numel() / rows;
    LayerNorm norm{type_of(x, "x"), rows, columns, x.const_data_ptr(), nullptr, nullptr, nullptr};
    norm.mean = mean ? statistic(*mean, x, rows, "mean") : nullptr;
    norm.inverse = statistic(inverse, x, rows, "inverse");
    norm.weight = weight ? statistic(*weight, x, columns, "weight") : nullptr;
    return norm;
}

void check_rows(const Tensor& tensor, const Tensor& x, int64_t stack, const char* name) {
    check_like(tensor, x, stack, name);
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

std::vector<Tensor> layer_norm_project(Tensor v, Tensor x, Optional mean, Tensor inverse, Optional weight,
                                       Optional second, bool push, bool gradients) {
    const LayerNorm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_rows(v, x, stack, "v");
    if (second) check_rows(*second, x, stack, "second");
    STD_TORCH_CHECK(!gradients || stack == 1, "gradients are those of one adjoint");
    const OnDevice device(x);
    std::vector<Tensor> results{torch::stable::empty_like(v)};
    if (gradients) results.push_back(torch::stable::new_empty(inverse, {2, norm.columns}));
    Tensor workspace = torch::stable::new_empty(inverse, {gradients ? project_workspace(norm) : 0});
    if (stack)
        project(norm, v.const_data_ptr(), stack, push, second ? second->const_data_ptr() : nullptr,
                results[0].mutable_data_ptr(), gradients ? results[1].mutable_data_ptr() : nullptr,
                workspace.mutable_data_ptr(), device.stream());
    return results;
}

std::vector<Tensor> layer_norm_meet(Tensor u, Tensor v, Tensor x, Optional mean, Tensor inverse, Optional weight,
                                    bool push) {
    const LayerNorm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    STD_TORCH_CHECK(stack > 0, "v must be a stack, [K, ...]");
    check_rows(u, x, stack, "u");
    check_rows(v, x, stack, "v");
    const OnDevice device(x);
    std::vector<Tensor> results{torch::stable::empty_like(x),
                                torch::stable::new_empty(inverse, {weight ? norm.columns : 0})};
    if (push) results.push_back(torch::stable::empty_like(v));
    Tensor workspace = torch::stable::new_empty(inverse, {meet_workspace(norm, stack)});
    meet(norm, u.const_data_ptr(), v.const_data_ptr(), stack, results[0].mutable_data_ptr(),
         weight ? results[1].mutable_data_ptr() : nullptr, push ? results[2].mutable_data_ptr() : nullptr,
         workspace.mutable_data_ptr(), device.stream());
    return results;
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("layer_norm_project", TORCH_BOX(&gradreg_fast::cuda::layer_norm_project));
    library.impl("layer_norm_meet", TORCH_BOX(&gradreg_fast::cuda::layer_norm_meet));
}
