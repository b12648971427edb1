// Memory around the kernels of a normalisation, `project` and `meet` (norm.h, layer_norm.h).

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cuda/tensors.h"

namespace gradreg_fast::cuda {

// J v or J^T v + second for a stack and, unless their shape is empty, the gradients; these and the workspace like
// `statistics`.
template <class Norm>
std::vector<torch::stable::Tensor> projected(const Norm& norm, const torch::stable::Tensor& v, bool push,
                                             const std::optional<torch::stable::Tensor>& second,
                                             const torch::stable::Tensor& statistics, std::vector<int64_t> gradients,
                                             int64_t workspace) {
    STD_TORCH_CHECK(gradients.empty() || v.size(0) == 1, "gradients are those of one adjoint");
    const OnDevice device(v);
    std::vector<torch::stable::Tensor> results{torch::stable::empty_like(v)};
    if (!gradients.empty()) results.push_back(torch::stable::new_empty(statistics, gradients));
    const torch::stable::Tensor memory = torch::stable::new_empty(statistics, {workspace});
    if (v.size(0))
        project(norm, v.const_data_ptr(), v.size(0), push, second ? second->const_data_ptr() : nullptr,
                results[0].mutable_data_ptr(), gradients.empty() ? nullptr : results[1].mutable_data_ptr(),
                memory.mutable_data_ptr(), device.stream());
    return results;
}

// The second-order term like x, the weight's gradient of `columns` numbers, 0 for none, and, if wanted, J v.
template <class Norm>
std::vector<torch::stable::Tensor> met(const Norm& norm, const torch::stable::Tensor& u, const torch::stable::Tensor& v,
                                       bool push, const torch::stable::Tensor& x,
                                       const torch::stable::Tensor& statistics, int64_t columns, int64_t workspace) {
    STD_TORCH_CHECK(v.size(0) > 0, "v must be a stack, [K, ...]");
    const OnDevice device(x);
    std::vector<torch::stable::Tensor> results{torch::stable::empty_like(x),
                                               torch::stable::new_empty(statistics, {columns})};
    if (push) results.push_back(torch::stable::empty_like(v));
    const torch::stable::Tensor memory = torch::stable::new_empty(statistics, {workspace});
    meet(norm, u.const_data_ptr(), v.const_data_ptr(), v.size(0), results[0].mutable_data_ptr(),
         columns ? results[1].mutable_data_ptr() : nullptr, push ? results[2].mutable_data_ptr() : nullptr,
         memory.mutable_data_ptr(), device.stream());
    return results;
}

}  // namespace gradreg_fast::cuda
