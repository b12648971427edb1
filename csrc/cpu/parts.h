// How passes over memory are divided among threads, and the types of their numbers.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace gradreg_fast {

// How many lines of this length a thread takes at a time: they stay in the second-level cache.
inline int64_t lines_of_part(int64_t length) {
    constexpr int64_t numbers = 1 << 14;
    return std::max<int64_t>(1, numbers / std::max<int64_t>(1, length));
}

// Calls function(number of the part, begin, end) for parts of so many lines, on all threads.
template <class Function>
void in_parts(int64_t lines, int64_t each, const Function& function) {
    torch::stable::parallel_for(0, (lines + each - 1) / each, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part)
            function(part, part * each, std::min(lines, (part + 1) * each));
    });
}

// Calls function(number) with a number of the tensor's type.
template <class Function>
auto with_numbers(const torch::stable::Tensor& tensor, const char* name, const Function& function) {
    using torch::headeronly::ScalarType;
    if (tensor.scalar_type() == ScalarType::Float) return function(float());
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, name, " must be float32 or float64");
    return function(double());
}

// Calls function(number, begin, end), with a number of the tensor's type, for parts of so many lines of this length.
template <class Function>
void in_parts(const torch::stable::Tensor& tensor, const char* name, int64_t lines, int64_t length,
              const Function& function) {
    with_numbers(tensor, name, [&](auto number) {
        in_parts(lines, lines_of_part(length),
                 [&](int64_t, int64_t begin, int64_t end) { function(number, begin, end); });
    });
}

}  // namespace gradreg_fast
