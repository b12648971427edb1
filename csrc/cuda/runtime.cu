#include "cuda/runtime.h"

#include <cuda_runtime.h>

namespace gradreg_fast {

const char* cuda_problem() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace gradreg_fast
