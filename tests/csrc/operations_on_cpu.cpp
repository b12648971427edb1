#include "operations_on_cpu.h"

#include "cuda/mlp.h"
#include "cuda/runtime.h"

namespace gradreg_fast::cuda {

cuda_on_cpu::Order order = cuda_on_cpu::Order::Forward;

extern "C" __attribute__((visibility("default"))) void choose_order(int number) {
    order = cuda_on_cpu::Order(number);
}

void use_device(int) {}

Device current_device() {
    return {2, int(cuda_on_cpu::most_shared_bytes)};
}

}  // namespace gradreg_fast::cuda
