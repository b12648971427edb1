#include <algorithm>

#include "cuda/average_pool.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

// How many threads share a window: each has at least a byte of the mask.
int team_of(const AveragePool& pool) {
    int team = 1;
    while (team < 32 && 2 * team <= pool.mask_bytes())
        team *= 2;
    return team;
}

dim3 blocks_of_teams(const AveragePool& pool, int team) {
    return pool_blocks((pool.planes * pool.pooled_image() * team + 31) / 32 * 32);
}

}  // namespace

void average_values(Type type, const AveragePool& pool, const void* z, void* y, uint8_t* mask, void* stream) {
    const int team = team_of(pool);
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(average_pool_kernel<T>, blocks_of_teams(pool, team), pool_threads, 0, stream, pool, team,
              static_cast<const T*>(z), static_cast<T*>(y), mask);
    });
}

void push_averages(Type type, const AveragePool& pool, const void* z, const uint8_t* mask, const void* xdot,
                   int64_t stack, void* ydot, void* stream) {
    const int team = team_of(pool);
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(average_push_kernel<T>, blocks_of_teams(pool, team), pool_threads, 0, stream, pool, team,
              static_cast<const T*>(z), mask, static_cast<const T*>(xdot), stack, static_cast<T*>(ydot));
    });
}

void pull_averages(Type type, const AveragePool& pool, const void* z, const uint8_t* mask, const void* u, int64_t stack,
                   const void* second, void* below, void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(average_pull_kernel<T>, pool_blocks(pool.planes * pool.image()), pool_threads, 0, stream, pool,
              static_cast<const T*>(z), mask, static_cast<const T*>(u), stack, static_cast<const T*>(second),
              static_cast<T*>(below));
    });
}

void meet_averages(Type type, const AveragePool& pool, const void* u, const void* xdot, int64_t stack, void* second,
                   void* stream) {
    with_type(type, [&](auto number) {
        using T = decltype(number);
        start(average_meet_kernel<T>, pool_blocks(pool.planes * pool.image()), pool_threads, 0, stream, pool,
              static_cast<const T*>(u), static_cast<const T*>(xdot), stack, static_cast<T*>(second));
    });
}

}  // namespace gradreg_fast::cuda
