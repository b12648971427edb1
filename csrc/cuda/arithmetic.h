// From a tensor's dtype, and PyTorch's word on float32, to what products are made of.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cuda/mlp.h"

namespace gradreg_fast::cuda {

using torch::headeronly::ScalarType;

// Sums of numbers of a type have this one.
inline ScalarType wide(ScalarType type) {
    return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `settings` may have one number more than an operation's own: whether products of float32 may round their factors to
// TF32.
inline bool take_tf32(std::vector<double>& settings, size_t own) {
    if (settings.size() != own + 1) return false;
    const bool allowed = settings.back() != 0;
    settings.pop_back();
    return allowed;
}

// Calls function with the kind of products, and a number of the storage, for a dtype.
template <class Function>
void with_arithmetic(ScalarType type, bool tf32, Function&& function) {
    switch (type) {
        case ScalarType::Double:
            return function((Exact<double>*)nullptr, double());
        case ScalarType::BFloat16:
            return function((Halves<BFloat16>*)nullptr, BFloat16());
        case ScalarType::Half:
            return function((Halves<Float16>*)nullptr, Float16());
        default:
            return tf32 ? function((TF32*)nullptr, float()) : function((Exact<float>*)nullptr, float());
    }
}

inline torch::stable::Tensor new_bytes(const torch::stable::Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {count}, ScalarType::Byte);
}

}  // namespace gradreg_fast::cuda
