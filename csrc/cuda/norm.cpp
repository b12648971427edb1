// The operations on normalisations whose channels share statistics: checks and memory around the kernels of norm.cuh.

#include "cuda/norm.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "cuda/normalise.h"

namespace gradreg_fast::cuda {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Norm norm_of(const Tensor& x, const Tensor& mean, const Tensor& inverse, const Optional& weight) {
    STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "x must be [B, C, ...], not empty");
    check_without_gaps(x, "x");
    const int64_t B = x.size(0), channels = x.size(1), pixels = x.numel() / (B * channels);
    const bool last = x.stride(1) == 1;
    STD_TORCH_CHECK(last || x.is_contiguous(), "x must be contiguous or channels last");
    const bool apart = mean.dim() == 2;
    const int64_t samples = apart ? B : 1, batch = apart ? 1 : B, groups = mean.size(-1);
    STD_TORCH_CHECK((apart ? mean.size(0) == B : mean.dim() == 1 && groups == channels) && channels % groups == 0,
                    "mean must be [C] of a batch, or [B, groups] of samples");
    STD_TORCH_CHECK(batch * pixels < int64_t(1) << 31 && samples * channels < int64_t(1) << 31,
                    "x has too many elements a channel, or channels");
    Norm norm{type_of(x, "x"),    samples, batch,   channels, pixels, groups, last,
              x.const_data_ptr(), nullptr, nullptr, nullptr};
    norm.mean = statistic(mean, x, samples * groups, "mean");
    norm.inverse = statistic(inverse, x, samples * groups, "inverse");
    norm.weight = weight ? statistic(*weight, x, channels, "weight") : nullptr;
    return norm;
}

std::vector<Tensor> norm_project(Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight, Optional second,
                                 bool push, bool gradients) {
    const Norm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_like(v, x, stack, "v");
    if (second) check_like(*second, x, stack, "second");
    return projected(norm, v, push, second, mean,
                     gradients ? std::vector<int64_t>{2, norm.channels} : std::vector<int64_t>{},
                     norm_workspace(norm, stack));
}

std::vector<Tensor> norm_meet(Tensor u, Tensor v, Tensor x, Tensor mean, Tensor inverse, Optional weight, bool push) {
    const Norm norm = norm_of(x, mean, inverse, weight);
    const int64_t stack = v.size(0);
    check_like(u, x, stack, "u");
    check_like(v, x, stack, "v");
    return met(norm, u, v, push, x, mean, norm.channels, norm_workspace(norm, stack));
}

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    library.impl("norm_project", TORCH_BOX(&gradreg_fast::cuda::norm_project));
    library.impl("norm_meet", TORCH_BOX(&gradreg_fast::cuda::norm_meet));
}
