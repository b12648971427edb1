// The operations on maxima over windows around the kernels of max_pool.h, and threads.

#include "cpu/max_pool.h"

#include "common/max_pool_operations.h"
#include "cpu/capability.h"
#include "cpu/parts.h"

namespace gradreg_fast {
namespace {

class MaxPasses {
  public:
    explicit MaxPasses(const torch::stable::Tensor& like) : like(like) {}

    void forward(const MaxPool& pool, const void* z, void* y, uint8_t* code) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().forward(pool, static_cast<const T*>(z), static_cast<T*>(y), code, begin, end);
        });
    }
    void push(const MaxPool& pool, const uint8_t* code, const void* xdot, int64_t stack, void* ydot) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().push(pool, code, static_cast<const T*>(xdot), stack, static_cast<T*>(ydot), begin, end);
        });
    }
    void pull(const MaxPool& pool, const uint8_t* code, const void* u, int64_t stack, void* below) const {
        in_parts(like, "z", pool.planes, pool.image(), [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().pull(pool, code, static_cast<const T*>(u), stack, static_cast<T*>(below), begin, end);
        });
    }

  private:
    const torch::stable::Tensor& like;

    template <class T>
    static const MaxPoolKernels<T>& kernels() {
        return best_of([](auto capability) -> auto& { return max_pool_kernels<T, capability>(); });
    }
};

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    gradreg_fast::MaxPoolOperations<gradreg_fast::MaxPasses>::implement(library);
}
