// Launches on a stream.

#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/product.cuh"

namespace gradreg_fast::cuda {

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// `launch(kernel, columns, rows of blocks, shared bytes, parameters)`.
struct Launcher {
    cudaStream_t stream;

    template <class Parameters>
    void operator()(void (*kernel)(Parameters), int columns, int rows, int shared_bytes,
                    const std::remove_const_t<Parameters>& parameters) const {
        if (shared_bytes > 48 << 10)  // what every kernel may have
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
        kernel<<<dim3(columns, rows), threads, shared_bytes, stream>>>(parameters);
        check(cudaGetLastError());
    }
};

}  // namespace gradreg_fast::cuda
