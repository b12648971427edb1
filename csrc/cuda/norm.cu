#include <algorithm>

#include "cuda/norm.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

constexpr int64_t least_part = 2048;  // elements of a channel that pay for a block of their own
constexpr int64_t most_parts = 64;

int64_t elements_of(const Norm& norm) {
    return norm.batch * norm.pixels;
}

dim3 blocks_for(int64_t count) {
    return {unsigned((count + norm_threads - 1) / norm_threads), 1, 1};
}

// Totals [K, sums, channels] and, unless it is null, the weight's gradient.
template <class S, int sums>
void sum(const Norm& norm, const void* u, const void* v, int64_t stack, void* totals, void* gradient, void* workspace,
         void* stream) {
    using T = Wide<S>;
    const int64_t parts = norm_parts(norm), each = (elements_of(norm) + parts - 1) / parts;
    const int64_t columns = norm.channels_last ? (norm.channels + 31) / 32 : norm.channels;
    start(channel_sums<S, sums>, {unsigned(columns), unsigned(parts), unsigned(stack)}, norm_threads, 0, stream, norm,
          static_cast<const S*>(u), static_cast<const S*>(v), uint32_t(each), static_cast<T*>(workspace));
    start(add_parts<T, sums>, blocks_for(norm.channels), norm_threads, 0, stream, norm,
          static_cast<const T*>(workspace), parts, stack, static_cast<T*>(totals), static_cast<T*>(gradient));
}

}  // namespace

int64_t norm_parts(const Norm& norm) {
    const int64_t lines = norm.channels_last ? 32 : 1;
    return std::clamp<int64_t>(elements_of(norm) * lines / (8 * least_part), 1, most_parts);
}

int64_t norm_workspace(const Norm& norm, int64_t stack) {
    return (norm_parts(norm) + 1) * stack * meeting_sums * norm.channels;
}

void project(const Norm& norm, const void* v, int64_t stack, const void* second, void* result, void* sums,
             void* workspace, void* stream) {
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        sum<S, projected_sums>(norm, nullptr, v, stack, sums, nullptr, workspace, stream);
        start(project_kernel<S>, blocks_for(elements_of(norm) * norm.channels), norm_threads, 0, stream, norm,
              static_cast<const S*>(v), stack, static_cast<const Wide<S>*>(sums), static_cast<const S*>(second),
              static_cast<S*>(result));
    });
}

void meet(const Norm& norm, const void* u, const void* v, int64_t stack, void* second, void* gradient, void* ydot,
          void* workspace, void* stream) {
    with_type(norm.type, [&](auto number) {
        using S = decltype(number);
        Wide<S>* const totals =
            static_cast<Wide<S>*>(workspace) + norm_parts(norm) * stack * meeting_sums * norm.channels;
        sum<S, meeting_sums>(norm, u, v, stack, totals, gradient, workspace, stream);
        start(meet_norm<S>, blocks_for(elements_of(norm) * norm.channels), norm_threads, 0, stream, norm,
              static_cast<const S*>(u), static_cast<const S*>(v), stack, static_cast<const Wide<S>*>(totals),
              static_cast<S*>(second), static_cast<S*>(ydot));
    });
}

}  // namespace gradreg_fast::cuda
