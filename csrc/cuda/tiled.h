// Products of operands in global memory (tiled.cuh), as the host sees them.

#pragma once

#include "cuda/numbers.h"

namespace gradreg_fast::cuda {

// Tiles are square. The larger reads less, the smaller keeps more multiprocessors busy.
template <class S>
constexpr int large_tile = sizeof(S) > 4 ? 64 : 128;
constexpr int small_tile = 64;

constexpr int staged_steps = 3;  // of an operand that shared memory holds

// Rows of sums in shared memory are so far apart.
GRADREG_FAST_INLINE constexpr int sums_distance(int size, int wide) {
    return size + (wide == 8 ? 4 : 8);
}

// Shared memory of a block with a tile [size, size] of numbers of so many bytes, and sums of `wide` bytes.
GRADREG_FAST_INLINE constexpr int tile_bytes(int size, int number, int wide) {
    const int line = 64 + 16, across = 64 / number * (size * number + (number == 8 ? 32 : 8 * number));
    const int operand = size * line > across ? size * line : across;
    const int staged = staged_steps * 2 * operand, sums = size * sums_distance(size, wide) * wide;
    return staged > sums ? staged : sums;
}

// Whether 16 bytes along rows of a matrix, without gaps, are aligned.
template <class S>
bool has_whole_pieces(const S* data, int64_t columns) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * sizeof(S) % 16 == 0;
}

}  // namespace gradreg_fast::cuda
