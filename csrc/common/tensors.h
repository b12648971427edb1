// What operations need to get from tensors to plain pointers.

#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <memory>
#include <optional>

namespace gradreg_fast {

template <class T>
const T* data(const torch::stable::Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* data(const std::optional<torch::stable::Tensor>& tensor) {
    return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_data(const torch::stable::Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

inline int64_t round_up(int64_t size, int64_t multiple) {
    return (size + multiple - 1) / multiple * multiple;
}

inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<torch::stable::Tensor> as_contiguous(const std::optional<torch::stable::Tensor>& tensor) {
    return tensor ? std::optional(as_contiguous(*tensor)) : std::nullopt;
}

inline const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);

inline void check_shape(const torch::stable::Tensor& tensor, std::initializer_list<int64_t> shape,
                        torch::headeronly::ScalarType type, const char* name,
                        const torch::stable::Device& device = cpu) {
    STD_TORCH_CHECK(tensor.is_cpu() ? device.is_cpu() : tensor.device() == device, name, " is on the wrong device");
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
    bool fits = tensor.dim() == int64_t(shape.size());
    int64_t dimension = 0;
    for (const int64_t size : shape)
        fits = fits && tensor.size(dimension++) == size;
    STD_TORCH_CHECK(fits, name, " has the wrong shape");
}

inline void check_shape(const std::optional<torch::stable::Tensor>& tensor, std::initializer_list<int64_t> shape,
                        torch::headeronly::ScalarType type, const char* name,
                        const torch::stable::Device& device = cpu) {
    if (tensor) check_shape(*tensor, shape, type, name, device);
}

// Raises unless the tensor's numbers fill one piece of memory, in whatever order.
inline void check_without_gaps(const torch::stable::Tensor& tensor, const char* name) {
    int64_t span = 1;
    for (int64_t dimension = 0; dimension < tensor.dim(); ++dimension)
        span += (tensor.size(dimension) - 1) * tensor.stride(dimension);
    STD_TORCH_CHECK(tensor.numel() == 0 || span == tensor.numel(), name, " must have no gaps");
}

// Raises unless the tensor is a stack of K like x, without gaps.
inline void check_like(const torch::stable::Tensor& tensor, const torch::stable::Tensor& x, int64_t stack,
                       const char* name) {
    STD_TORCH_CHECK(tensor.is_cpu() ? x.is_cpu() : tensor.device() == x.device(), name, " is on the wrong device");
    STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " has the wrong dtype");
    STD_TORCH_CHECK(tensor.numel() == stack * x.numel(), name, " has the wrong size");
    check_without_gaps(tensor, name);
}

constexpr int64_t cache_line = 64;  // bytes

// The first line of the cache in a block that has room for one more than is needed. Memory is malloc's, aligned here:
// an aligned block that was freed often cannot serve again, not even for as many bytes (glibc's needs some more to find
// the alignment in, which small blocks have taken by then), and every page that comes fresh from the system costs a
// fault.
inline char* first_line(char* block) {
    return reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(block), cache_line));
}

// Uninitialised memory.
class Scratch {
  public:
    explicit Scratch(int64_t bytes) : memory(new char[bytes + cache_line]) {}
    char* get() const { return first_line(memory.get()); }

  private:
    std::unique_ptr<char[]> memory;
};

}  // namespace gradreg_fast
