#include <cuda_runtime.h>

#include "cuda/runtime.h"

namespace gradreg_fast::cuda {

const char* problem() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace gradreg_fast::cuda
