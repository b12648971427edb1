#include <algorithm>

#include "cuda/norm.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

constexpr int64_t least_part = 2048;  // elements of a channel that pay for a block of their own
constexpr int64_t most_parts = 64;
constexpr int64_t most_alone = 512;  // elements of a channel that a warp sums by itself
constexpr int with_cotangents = 0b10011;

int64_t elements_of(const Norm& norm) {
    return norm.batch * norm.pixels;
}

int64_t lines_above(const Norm& norm) {
    return norm.samples * norm.channels;
}

unsigned blocks_for(int64_t count, int64_t each) {
    return unsigned((count + each - 1) / each);
}

// Sums of each channel, [parts, K, sums, lines], and behind them in the workspace totals [K, sums, samples groups].
template <class S, int sums>
Wide<S>* sum(const Norm& norm, const void* u, const void* v, int64_t stack, int weighted, void* workspace,
             void* stream) {
    using T = Wide<S>;
    const int64_t parts = norm_parts(norm), each = (elements_of(norm) + parts - 1) / parts;
    const int team = !norm.channels_last && elements_of(norm) <= most_alone ? 32 : norm_threads;
    const unsigned blocks = norm.channels_last ? unsigned(norm.samples) * blocks_for(norm.channels, 32)
                                               : blocks_for(lines_above(norm), norm_threads / team);
    T* const lines = static_cast<T*>(workspace);
    T* const totals = lines + parts * stack * sums * lines_above(norm);
    start(channel_sums<S, sums>, {blocks, unsigned(parts), unsigned(stack)}, norm_threads, 0, stream, norm,
          static_cast<const S*>(u), static_cast<const S*>(v), team, uint32_t(each), lines);
    start(add_channels<T, sums>, {blocks_for(norm.samples * norm.groups, norm_warps), 1, 1}, norm_threads, 0, stream,
          norm, static_cast<const T*>(lines), parts, stack, weighted, totals);
    return totals;
}

template <class S>
dim3 pass_of(const Norm& norm) {
    return {blocks_for(elements_of(norm) * lines_above(norm), norm_threads * pass_each<S>), 1, 1};
}

}  // namespace

int64_t norm_parts(const Norm& norm) {
    const int64_t lines = norm.channels_last ? 32 : 1;
    return std::clamp<int64_t>(elements_of(norm) * lines / (8 * least_part), 1, most_parts);
}

int64_t norm_workspace(const Norm& norm, int64_t stack) {
    return stack * meeting_sums * (norm_parts(norm) * lines_above(norm) + norm.samples * norm.groups);
}

void project(const Norm& norm, const void* v, int64_t stack, bool push, const void* second, void* result,
             void* gradients, void* workspace, void* stream) {
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        using T = Wide<S>;
        const T* totals = sum<S, projected_sums>(norm, nullptr, v, stack, push ? 0 : 0b11, workspace, stream);
        start(project_kernel<S>, pass_of<S>(norm), norm_threads, 0, stream, norm, static_cast<const S*>(v), stack, push,
              static_cast<const T*>(workspace), norm_parts(norm), totals, static_cast<const S*>(second),
              static_cast<S*>(result), static_cast<T*>(gradients));
    });
}

void meet(const Norm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream) {
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        using T = Wide<S>;
        const T* totals = sum<S, meeting_sums>(norm, u, v, stack, with_cotangents, workspace, stream);
        start(meet_norm<S>, pass_of<S>(norm), norm_threads, 0, stream, norm, static_cast<const S*>(u),
              static_cast<const S*>(v), stack, static_cast<const T*>(workspace), norm_parts(norm), totals,
              static_cast<S*>(second), static_cast<T*>(gradient), static_cast<S*>(ydot));
    });
}

}  // namespace gradreg_fast::cuda
