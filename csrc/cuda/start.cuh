// Starting kernels, and from a tensor's dtype to the type of its numbers.

#pragma once

#include <stdexcept>
#include <string>

#include "cuda/numbers.h"
#include "cuda/types.h"

namespace gradreg_fast::cuda {

// Whether a kernel must ask for this much dynamic shared memory: without asking there are 48 KB, of which kernels'
// static arrays take up to 10.
constexpr bool must_ask(size_t shared_bytes) {
    return shared_bytes > 38 << 10;
}

// Starts a kernel on a stream; no waiting. Tests have their own.
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared_bytes, void* stream,
           const Arguments&... arguments);

#if defined(__CUDACC__)
inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared_bytes, void* stream,
           const Arguments&... arguments) {
    if (must_ask(shared_bytes))
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
    kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    check(cudaGetLastError());
}
#endif

// The `launch` of kernels with one struct of parameters.
struct Launcher {
    void* stream;
    int threads;

    template <class Kernel, class Parameters>
    void operator()(Kernel kernel, int columns, int rows, int shared_bytes, const Parameters& parameters) const {
        start(kernel, {unsigned(columns), unsigned(rows), 1}, unsigned(threads), size_t(shared_bytes), stream,
              parameters);
    }
};

// Calls function with a number of this type.
template <class Function>
void with_type(Type type, Function&& function) {
    switch (type) {
        case Type::Float32:
            return function(float());
        case Type::Float64:
            return function(double());
        case Type::BFloat16:
            return function(BFloat16());
        case Type::Float16:
            return function(Float16());
    }
}

}  // namespace gradreg_fast::cuda
