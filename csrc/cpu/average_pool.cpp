// The operations on averages over windows of an activation around the kernels of average_pool.h, and threads.

#include "cpu/average_pool.h"

#include "common/average_pool_operations.h"
#include "cpu/capability.h"
#include "cpu/parts.h"

namespace gradreg_fast {
namespace {

class AveragePasses {
  public:
    explicit AveragePasses(const torch::stable::Tensor& like) : like(like) {}

    void forward(const AveragePool& pool, const void* z, void* y, uint8_t* mask) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().forward(pool, static_cast<const T*>(z), static_cast<T*>(y), mask, begin, end);
        });
    }
    void push(const AveragePool& pool, const void* z, const uint8_t* mask, const void* xdot, int64_t stack,
              void* ydot) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().push(pool, static_cast<const T*>(z), mask, static_cast<const T*>(xdot), stack,
                              static_cast<T*>(ydot), begin, end);
        });
    }
    void pull(const AveragePool& pool, const void* z, const uint8_t* mask, const void* u, int64_t stack,
              const void* second, void* below) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().pull(pool, static_cast<const T*>(z), mask, static_cast<const T*>(u), stack,
                              static_cast<const T*>(second), static_cast<T*>(below), begin, end);
        });
    }
    void meet(const AveragePool& pool, const void* u, const void* xdot, int64_t stack, void* second) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().meet(pool, static_cast<const T*>(u), static_cast<const T*>(xdot), stack,
                              static_cast<T*>(second), begin, end);
        });
    }

  private:
    const torch::stable::Tensor& like;

    template <class T>
    static const AveragePoolKernels<T>& kernels() {
        return best_of([](auto capability) -> auto& { return average_pool_kernels<T, capability>(); });
    }
};

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    gradreg_fast::AveragePoolOperations<gradreg_fast::AveragePasses>::implement(library);
}
