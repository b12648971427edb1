// The operations on averages over windows of an activation around the kernels of average_pool.cuh.

#include "cuda/average_pool.h"

#include "common/average_pool_operations.h"
#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

struct AveragePasses {
    const Type type;
    const OnDevice device;

    explicit AveragePasses(const torch::stable::Tensor& like) : type(type_of(like, "z")), device(like) {}

    void forward(const AveragePool& pool, const void* z, void* y, uint8_t* mask) const {
        average_values(type, pool, z, y, mask, device.stream());
    }
    void push(const AveragePool& pool, const void* z, const uint8_t* mask, const void* xdot, int64_t stack,
              void* ydot) const {
        push_averages(type, pool, z, mask, xdot, stack, ydot, device.stream());
    }
    void pull(const AveragePool& pool, const void* z, const uint8_t* mask, const void* u, int64_t stack,
              const void* second, void* below) const {
        pull_averages(type, pool, z, mask, u, stack, second, below, device.stream());
    }
    void meet(const AveragePool& pool, const void* u, const void* xdot, int64_t stack, void* second) const {
        meet_averages(type, pool, u, xdot, stack, second, device.stream());
    }
};

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    gradreg_fast::AveragePoolOperations<gradreg_fast::cuda::AveragePasses>::implement(library);
}
