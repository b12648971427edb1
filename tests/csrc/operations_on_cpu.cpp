#include "operations_on_cpu.h"

namespace gradreg_fast::cuda {

cuda_on_cpu::Order order = cuda_on_cpu::Order::Forward;

extern "C" __attribute__((visibility("default"))) void choose_order(int number) {
    order = cuda_on_cpu::Order(number);
}

}  // namespace gradreg_fast::cuda
