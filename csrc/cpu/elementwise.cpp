// The operations on activations around the passes of elementwise.h, and threads.

#include "cpu/elementwise.h"

#include "common/elementwise_operations.h"
#include "cpu/capability.h"
#include "cpu/parts.h"

namespace gradreg_fast {
namespace {

class Passes {
  public:
    explicit Passes(const torch::stable::Tensor& like) : like(like) {}

    void value(const Elementwise& pass, const void* z, void* y, uint8_t* mask) const {
        in_parts(like, "z", pass.count, 1, [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().value(pass, static_cast<const T*>(z), static_cast<T*>(y), mask, begin, end);
        });
    }
    void slope(const Elementwise& pass, const void* v, int64_t stack, void* result) const {
        in_parts(like, "z", pass.count, 1, [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().slope(pass, static_cast<const T*>(v), stack, static_cast<T*>(result), begin, end);
        });
    }
    void meet(const Elementwise& pass, const void* u, const void* xdot, int64_t stack, void* w, void* ydot) const {
        in_parts(like, "z", pass.count, 1, [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().meet(pass, static_cast<const T*>(u), static_cast<const T*>(xdot), stack, static_cast<T*>(w),
                              static_cast<T*>(ydot), begin, end);
        });
    }
    void bend(const Elementwise& pass, const void* d, const void* w, bool below, void* result) const {
        in_parts(like, "z", pass.count, 1, [&](auto number, int64_t begin, int64_t end) {
            using T = decltype(number);
            kernels<T>().bend(pass, static_cast<const T*>(d), static_cast<const T*>(w), below, static_cast<T*>(result),
                              begin, end);
        });
    }

  private:
    const torch::stable::Tensor& like;

    template <class T>
    static const ElementwiseKernels<T>& kernels() {
        return best_of([](auto capability) -> auto& { return elementwise_kernels<T, capability>(); });
    }
};

}  // namespace
}  // namespace gradreg_fast

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CPU, library) {
    gradreg_fast::ElementwiseOperations<gradreg_fast::Passes>::implement(library);
}
