#include "cuda/elementwise.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

template <class T>
dim3 blocks_for(const Elementwise& pass) {
    constexpr int64_t each = elementwise_threads * width<T>;
    return {unsigned((pass.count + each - 1) / each), 1, 1};
}

}  // namespace

void apply_value(Type type, const Elementwise& pass, const void* z, void* y, uint8_t* mask, void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(activate_kernel<T>, blocks_for<T>(pass), elementwise_threads, 0, stream, pass, static_cast<const T*>(z),
              static_cast<T*>(y), mask);
    });
}

void apply_slope(Type type, const Elementwise& pass, const void* v, int64_t stack, void* result, void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(slope_kernel<T>, blocks_for<T>(pass), elementwise_threads, 0, stream, pass, static_cast<const T*>(v),
              stack, static_cast<T*>(result));
    });
}

void apply_meet(Type type, const Elementwise& pass, const void* u, const void* xdot, int64_t stack, void* w, void* ydot,
                void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(meet_kernel<T>, blocks_for<T>(pass), elementwise_threads, 0, stream, pass, static_cast<const T*>(u),
              static_cast<const T*>(xdot), stack, static_cast<T*>(w), static_cast<T*>(ydot));
    });
}

void apply_bend(Type type, const Elementwise& pass, const void* d, const void* w, bool below, void* result,
                void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(bend_kernel<T>, blocks_for<T>(pass), elementwise_threads, 0, stream, pass, static_cast<const T*>(d),
              static_cast<const T*>(w), below, static_cast<T*>(result));
    });
}

}  // namespace gradreg_fast::cuda
