// Read before the CUDA operations' sources when a C++ compiler makes them for tests: the same operations, with their
// kernels run on the CPU, on CPU tensors, in a library of another name (operations_on_cpu.py).

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda_on_cpu.h"

#define gradreg_fast gradreg_fast_on_cpu
#define CUDA CPU  // the key of the operations

#include "cuda/start.cuh"

namespace gradreg_fast::cuda {

// In place of cuda/start.cuh's; the order of threads is chosen by the test.
extern cuda_on_cpu::Order order;

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared_bytes, void*,
           const Arguments&... arguments) {
    const size_t most = must_ask(shared_bytes) ? cuda_on_cpu::most_shared_bytes : cuda_on_cpu::unasked_shared_bytes;
    cuda_on_cpu::launch({blocks, {threads, 1, 1}, shared_bytes, order, -1, most}, [&] { kernel(arguments...); });
}

}  // namespace gradreg_fast::cuda
