#include <cuda_runtime.h>

#include <cstdlib>

#include "cuda/mlp.h"
#include "cuda/runtime.h"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {

const char* problem() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

void use_device(int index) {
    check(cudaSetDevice(index));
}

Device current_device() {
    Device device;
    int index = 0;
    check(cudaGetDevice(&index));
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index));
    check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    if (const char* wish = std::getenv("GRADREG_FAST_TILE_ROWS")) device.tile_rows = std::atoi(wish);
    return device;
}

}  // namespace gradreg_fast::cuda
