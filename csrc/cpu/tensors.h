// What operations share around their kernels: checks of tensors, memory, threads' settings.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <new>
#include <optional>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gradreg_fast {

using Optional = std::optional<torch::stable::Tensor>;

template <class T>
const T* data(const torch::stable::Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* data(const Optional& tensor) {
    return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_data(const torch::stable::Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Optional as_contiguous(const Optional& tensor) {
    return tensor ? Optional(as_contiguous(*tensor)) : std::nullopt;
}

inline int64_t round_up(int64_t size, int64_t multiple) {
    return (size + multiple - 1) / multiple * multiple;
}

// While it lives, its thread counts numbers too small for full precision (1e-38 in float32) as zero. Slopes such as
// those of a sharp softplus produce many, and a product with one takes a hundred times as long.
class FlushDenormals {
  public:
#if defined(__SSE2__)
    FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }

  private:
    const unsigned before;
#endif
};

// Memory for the threads of one call.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t count) : memory(static_cast<T*>(::operator new(count * sizeof(T), alignment))) {}
    T* get() const { return memory.get(); }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(T* pointer) const { ::operator delete(pointer, alignment); }
    };
    std::unique_ptr<T, Free> memory;
};

}  // namespace gradreg_fast
