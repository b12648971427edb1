#include <algorithm>

#include "cuda/layer_norm.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

constexpr int64_t most_blocks = 512;
constexpr int64_t warp_bytes = 2048;            // that a row of one warp has at most
constexpr int64_t most_shared_sums = 96 << 10;  // bytes a block; warps' rows never need as many

int64_t number_bytes(const LayerNorm& norm) {
    return norm.type == Type::Float64 ? 8 : norm.type == Type::Float32 ? 4 : 2;
}

bool by_warps(const LayerNorm& norm) {
    return norm.columns * number_bytes(norm) <= warp_bytes;
}

int64_t teams_of(const LayerNorm& norm) {
    return by_warps(norm) ? row_warps : 1;
}

int64_t blocks_of(const LayerNorm& norm) {
    return std::clamp<int64_t>((norm.rows + teams_of(norm) - 1) / teams_of(norm), 1, most_blocks);
}

// Starts function with the kernel's team, the sums' shared memory, and whether they have it.
template <class T, class Function>
void with_team(const LayerNorm& norm, int64_t sums, const Function& function) {
    const int64_t bytes = teams_of(norm) * sums * int64_t(sizeof(T));
    const bool roomy = sums > 0 && bytes <= most_shared_sums;
    const size_t shared = roomy ? size_t(bytes) : 0;
    if (by_warps(norm)) return function(std::integral_constant<int, 32>(), shared, roomy);
    function(std::integral_constant<int, row_threads>(), shared, roomy);
}

template <class T>
void add(const T* parts, int64_t count, int64_t columns, void* sums, void* stream) {
    start(add_blocks<T>, {unsigned((columns + 31) / 32), 1, 1}, row_threads, 0, stream, parts, count, columns,
          static_cast<T*>(sums));
}

}  // namespace

int64_t project_workspace(const LayerNorm& norm) {
    return blocks_of(norm) * 2 * norm.columns;
}

int64_t meet_workspace(const LayerNorm& norm, int64_t stack) {
    return blocks_of(norm) * (teams_of(norm) * stack * row_statistics + norm.columns);
}

void project(const LayerNorm& norm, const void* v, int64_t stack, bool push, const void* second, void* result,
             void* gradients, void* workspace, void* stream) {
    const int64_t blocks = blocks_of(norm), sums = gradients ? 2 * norm.columns : 0;
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        using T = Wide<S>;
        T* const parts = gradients ? static_cast<T*>(workspace) : nullptr;
        with_team<T>(norm, sums, [&](auto team, size_t shared, bool roomy) {
            start(project_rows<S, team>, {unsigned(blocks), 1, 1}, row_threads, shared, stream, norm,
                  static_cast<const S*>(v), stack, push, static_cast<const S*>(second), static_cast<S*>(result), parts,
                  roomy);
        });
        if (gradients) add<T>(parts, blocks, sums, gradients, stream);
    });
}

void meet(const LayerNorm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream) {
    const int64_t blocks = blocks_of(norm), sums = gradient ? norm.columns : 0;
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        using T = Wide<S>;
        T* const statistics = static_cast<T*>(workspace);
        T* const parts = gradient ? statistics + blocks * teams_of(norm) * stack * row_statistics : nullptr;
        with_team<T>(norm, sums, [&](auto team, size_t shared, bool roomy) {
            start(meet_rows<S, team>, {unsigned(blocks), 1, 1}, row_threads, shared, stream, norm,
                  static_cast<const S*>(u), static_cast<const S*>(v), stack, statistics, static_cast<S*>(second),
                  static_cast<S*>(ydot), parts, roomy);
        });
        if (gradient) add<T>(parts, blocks, sums, gradient, stream);
    });
}

}  // namespace gradreg_fast::cuda
