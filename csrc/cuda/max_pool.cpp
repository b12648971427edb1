// The operations on maxima over windows around the kernels of max_pool.cuh.

#include "cuda/max_pool.h"

#include "common/max_pool_operations.h"
#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

struct PoolPasses {
    const Type type;
    const OnDevice device;

    explicit PoolPasses(const torch::stable::Tensor& like) : type(type_of(like, "z")), device(like) {}

    void forward(const MaxPool& pool, const void* z, void* y, uint8_t* code) const {
        pool_values(type, pool, z, y, code, device.stream());
    }
    void push(const MaxPool& pool, const uint8_t* code, const void* xdot, int64_t stack, void* ydot) const {
        push_maxima(type, pool, code, xdot, stack, ydot, device.stream());
    }
    void pull(const MaxPool& pool, const uint8_t* code, const void* u, int64_t stack, void* below) const {
        pull_maxima(type, pool, code, u, stack, below, device.stream());
    }
};

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    gradreg_fast::MaxPoolOperations<gradreg_fast::cuda::PoolPasses>::implement(library);
}
