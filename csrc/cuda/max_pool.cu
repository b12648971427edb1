#include "cuda/max_pool.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
void pool_values(Type type, const MaxPool& pool, const void* z, void* y, uint8_t* code, void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(max_pool_kernel<T>, pool_blocks(pool.planes * pool.pooled_image()), pool_threads, 0, stream, pool,
              static_cast<const T*>(z), static_cast<T*>(y), code);
    });
}

void push_maxima(Type type, const MaxPool& pool, const uint8_t* code, const void* xdot, int64_t stack, void* ydot,
                 void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(max_push_kernel<T>, pool_blocks(pool.planes * pool.pooled_image()), pool_threads, 0, stream, pool, code,
              static_cast<const T*>(xdot), stack, static_cast<T*>(ydot));
    });
}

void pull_maxima(Type type, const MaxPool& pool, const uint8_t* code, const void* u, int64_t stack, void* below,
                 void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(max_pull_kernel<T>, pool_blocks(pool.planes * pool.image()), pool_threads, 0, stream, pool, code,
              static_cast<const T*>(u), stack, static_cast<T*>(below));
    });
}

}  // namespace gradreg_fast::cuda
