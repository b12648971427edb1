#include <algorithm>

#include "cuda/rows.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

constexpr int64_t warp_bytes = 16 << 10;  // of a sample that one warp sums; a block else
constexpr int64_t part_bytes = 256 << 10;
constexpr int64_t most_parts = 64;

int64_t sample_bytes(const Stack& of) {
    return of.stack * of.columns * (of.type == Type::Float64 ? 8 : of.type == Type::Float32 ? 4 : 2);
}

unsigned blocks_for(int64_t count, int64_t each) {
    return unsigned((count + each - 1) / each);
}

}  // namespace

int64_t dot_parts(const Stack& of) {
    return std::clamp<int64_t>(sample_bytes(of) / part_bytes, 1, most_parts);
}

void dot_rows(const Stack& of, const void* a, const void* b, void* dots, void* workspace, void* stream) {
    const int64_t parts = dot_parts(of);
    with_type(of.type, [&](auto number) {
        using S = decltype(number);
        using T = Wide<S>;
        const int64_t pieces = (of.columns + width<S> - 1) / width<S> * of.stack;
        T* const sums = static_cast<T*>(parts > 1 ? workspace : dots);
        const auto run = [&](auto kernel, int team) {
            start(kernel, {blocks_for(of.batch, row_threads / team), unsigned(parts), 1}, row_threads, 0, stream, of,
                  static_cast<const S*>(a), static_cast<const S*>(b), (pieces + parts - 1) / parts, sums);
        };
        if (sample_bytes(of) <= warp_bytes)
            run(dot_kernel<S, 32>, 32);
        else
            run(dot_kernel<S, row_threads>, row_threads);
        if (parts > 1)
            start(add_blocks<T>, {blocks_for(of.batch, 32), 1, 1}, row_threads, 0, stream, static_cast<const T*>(sums),
                  parts, of.batch, static_cast<T*>(dots));
    });
}

void scale_rows(const Stack& of, const void* a, const void* b, const void* factor, void* result, void* stream) {
    with_type(of.type, [&](auto number) {
        using S = decltype(number);
        const int64_t pieces = (of.columns + width<S> - 1) / width<S>;
        start(scale_kernel<S>, {blocks_for(of.stack * of.batch * pieces, row_threads), 1, 1}, row_threads, 0, stream,
              of, static_cast<const S*>(a), static_cast<const S*>(b), static_cast<const Wide<S>*>(factor),
              static_cast<S*>(result));
    });
}

}  // namespace gradreg_fast::cuda
