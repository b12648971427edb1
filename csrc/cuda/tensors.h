// What operations on CUDA tensors need to get to pointers and a stream.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/tensors.h"
#include "cuda/runtime.h"
#include "cuda/types.h"

// Only a torch with CUDA has it.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream) __attribute__((weak));

namespace gradreg_fast::cuda {

// Makes a tensor's device the current one for as long as it lives, and tells its current stream.
class OnDevice {
  public:
    explicit OnDevice(const torch::stable::Tensor& tensor) {
        if (tensor.is_cpu()) return;  // in tests
        const auto index = tensor.get_device_index();
        guard.emplace(index);
        use_device(index);
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    }
    void* stream() const { return current; }

  private:
    std::optional<torch::stable::accelerator::DeviceGuard> guard;
    void* current = nullptr;
};

inline Type type_of(const torch::stable::Tensor& tensor, const char* name) {
    using torch::headeronly::ScalarType;
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            return Type::Float32;
        case ScalarType::Double:
            return Type::Float64;
        case ScalarType::BFloat16:
            return Type::BFloat16;
        case ScalarType::Half:
            return Type::Float16;
        default:
            STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
    }
}

// Numbers beside x, in what x's are summed in.
inline const void* statistic(const torch::stable::Tensor& tensor, const torch::stable::Tensor& x, int64_t count,
                             const char* name) {
    using torch::headeronly::ScalarType;
    const auto wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(tensor.scalar_type() == wide, name, " must be float64 if x is, else float32");
    STD_TORCH_CHECK(tensor.numel() == count && tensor.is_contiguous(), name, " must have ", count, " numbers");
    return tensor.const_data_ptr();
}

}  // namespace gradreg_fast::cuda
