#include <algorithm>

#include "cuda/rows.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {
namespace {

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
        T* const sums = static_cast<T*>(parts > 1 ? workspace : dots);
        launch_dots(
            Dots<S>{of.stack, of.batch, of.columns, static_cast<const S*>(a), static_cast<const S*>(b), parts, sums},
            Launcher{stream, row_threads});
        if (parts > 1)
            start(add_blocks<T>, {blocks_for(of.batch, 32), 1, 1}, row_threads, 0, stream, static_cast<const T*>(sums),
                  parts, of.batch, static_cast<T*>(dots));
    });
}

void scale_rows(const Stack& of, const void* a, const void* b, const void* factor, void* result, void* stream) {
    with_type(of.type, [&](auto number) {
        using S = decltype(number);
        start(scale_kernel<S>, {blocks_for(of.stack * of.batch * pieces_of<S>(of.columns), row_threads), 1, 1},
              row_threads, 0, stream, of, static_cast<const S*>(a), static_cast<const S*>(b),
              static_cast<const Wide<S>*>(factor), static_cast<S*>(result));
    });
}

}  // namespace gradreg_fast::cuda
