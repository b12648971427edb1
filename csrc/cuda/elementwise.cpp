// The operations on activations around the passes of elementwise.cuh.

#include "cuda/elementwise.h"

#include "common/elementwise_operations.h"
#include "cuda/tensors.h"

namespace gradreg_fast::cuda {
namespace {

struct Passes {
    const Type type;
    const OnDevice device;

    explicit Passes(const torch::stable::Tensor& like) : type(type_of(like, "z")), device(like) {}

    void value(const Elementwise& pass, const void* z, void* y, uint8_t* mask) const {
        apply_value(type, pass, z, y, mask, device.stream());
    }
    void slope(const Elementwise& pass, const void* v, int64_t stack, void* result) const {
        apply_slope(type, pass, v, stack, result, device.stream());
    }
    void meet(const Elementwise& pass, const void* u, const void* xdot, int64_t stack, void* w, void* ydot) const {
        apply_meet(type, pass, u, xdot, stack, w, ydot, device.stream());
    }
    void bend(const Elementwise& pass, const void* d, const void* w, bool below, void* result) const {
        apply_bend(type, pass, d, w, below, result, device.stream());
    }
};

}  // namespace
}  // namespace gradreg_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(gradreg_fast, CUDA, library) {
    gradreg_fast::ElementwiseOperations<gradreg_fast::cuda::Passes>::implement(library);
}
