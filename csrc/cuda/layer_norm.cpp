// The operations on normalisations over rows: checks and memory around the kernels of layer_norm.cuh.

#include "cuda/layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "cuda/normalise.h"

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
    return projected(norm, v, push, second, inverse,
                     gradients ? std::vector<int64_t>{2, norm.columns} : std::vector<int64_t>{},
                     gradients ? project_workspace(norm) : 0);
}

std::vector<Tensor> layer_norm_meet(Tensor u, Tensor v, Tensor x, Optional mean, Tensor inverse, Optional weight,
                                    bool push) {
    const LayerNorm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_rows(u, x, stack, "u");
    check_rows(v, x, stack, "v");
    return met(norm, u, v, push, x, inverse, weight ? norm.columns : 0, meet_workspace(norm, stack));
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("layer_norm_project", TORCH_BOX(&gradreg_fast::cuda::layer_norm_project));
    library.impl("layer_norm_meet", TORCH_BOX(&gradreg_fast::cuda::layer_norm_meet));
}
