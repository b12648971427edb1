// Large memory for what goes from one operation to another: a tensor in memory of malloc's, where PyTorch's would come
// aligned from the system and cost faults (common/tensors.h).

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <new>

#include "common/tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// There from torch 2.11 on; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace gradreg_fast {

// So many numbers, uninitialised, of the dtype of `like`, which is float32 or float64; on the CPU.
inline torch::stable::Tensor new_memory(const torch::stable::Tensor& like, int64_t count) {
    char* const block =
        torch_from_blob ? new (std::nothrow) char[count * int64_t(like.element_size()) + cache_line] : nullptr;
    if (block == nullptr) return torch::stable::new_empty(like, {count});
    constexpr int64_t stride = 1;
    const bool single = like.scalar_type() == torch::headeronly::ScalarType::Float;
    AtenTensorHandle result;
    TORCH_ERROR_CODE_CHECK(torch_from_blob(
        first_line(block), 1, &count, &stride, 0, single ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64(),
        aoti_torch_device_type_cpu(), -1, &result, aoti_torch_layout_strided(), nullptr, 0,
        [](void*, void* block) { delete[] static_cast<char*>(block); }, block));
    return torch::stable::Tensor(result);
}

// Have the system back this memory by few large pages, if it can, for memory that comes fresh at every call.
inline void advise_large_pages(const torch::stable::Tensor& memory) {
#if defined(__linux__)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
    const uintptr_t begin = (address + page - 1) / page * page,
                    end = (address + memory.numel() * memory.element_size()) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
#endif
}

}  // namespace gradreg_fast
