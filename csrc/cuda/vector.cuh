// Arrays in pieces of 16 bytes, the most that a thread moves at once: any length, any alignment.

#pragma once

#include "cuda/device.cuh"

namespace gradreg_fast::cuda {

// Numbers in a piece.
template <class S>
constexpr int width = 16 / sizeof(S);

template <class S>
struct alignas(16) Piece {
    S numbers[width<S>];
};

// Whether numbers [first, first + width) are there, and can be moved at once.
template <class S>
__device__ __forceinline__ bool is_whole(const S* array, int64_t first, int64_t count) {
    return first + width<S> <= count && reinterpret_cast<uintptr_t>(array + first) % 16 == 0;
}

// Numbers [first, first + width) of an array of `count`; zeros behind its end.
template <class S>
__device__ __forceinline__ void load(const S* array, int64_t first, int64_t count, Wide<S> (&to)[width<S>]) {
    if (is_whole(array, first, count)) {
        const Piece<S> piece = *reinterpret_cast<const Piece<S>*>(array + first);
        for (int i = 0; i < width<S>; ++i)
            to[i] = piece.numbers[i];
        return;
    }
    for (int i = 0; i < width<S>; ++i)
        to[i] = first + i < count ? Wide<S>(array[first + i]) : Wide<S>(0);
}

// And back; nothing behind the end.
template <class S>
__device__ __forceinline__ void store(const Wide<S> (&from)[width<S>], int64_t first, int64_t count, S* array) {
    if (is_whole(array, first, count)) {
        Piece<S> piece;
        for (int i = 0; i < width<S>; ++i)
            piece.numbers[i] = narrow<S>(from[i]);
        *reinterpret_cast<Piece<S>*>(array + first) = piece;
        return;
    }
    for (int i = 0; i < width<S>; ++i)
        if (first + i < count) array[first + i] = narrow<S>(from[i]);
}

}  // namespace gradreg_fast::cuda
