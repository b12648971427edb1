// Rows of numbers with only their active ones, and back: number by number, for every processor. compress_avx2.h and
// compress_avx512.h do so register by register.

#pragma once

#include <cstdint>

#include "cpu/vector_math.h"

namespace gradreg_fast {

// Which of `width` units are active: their numbers in order, and for each register of a row, where its first active
// number lies in the compressed row, and which ones they are.
struct Selection {
    int32_t* units;    // [count], with room for `width` and a register more
    int32_t* offsets;  // [registers + 1]
    uint16_t* masks;   // [registers]
    int64_t width, registers, count;
};

template <class T, int Bytes>
struct CompressNumbers {
    static constexpr int lanes = Vector<T, Bytes>::lanes;

    // A unit is inactive where its value is zero or less, as in PyTorch; null: all are active.
    static void select(const T* values, Selection& to) {
        int64_t count = 0;
        for (int64_t j = 0; j < to.registers; ++j) {
            to.offsets[j] = int32_t(count);
            to.masks[j] = 0;
            for (int64_t unit = j * lanes; unit < to.width && unit < (j + 1) * lanes; ++unit) {
                const bool active = values == nullptr || !(values[unit] <= T(0));
                to.units[count] = int32_t(unit);
                to.masks[j] |= uint16_t(active << unit % lanes);
                count += active;
            }
        }
        to.offsets[to.registers] = int32_t(count);
        to.count = count;
    }

    // The active numbers of a row; behind them zeros, a register of them at most.
    static void compress(const Selection& active, const T* row, T* to) {
        for (int64_t i = 0; i < active.count; ++i)
            to[i] = row[active.units[i]];
        Vector<T, Bytes>::store(to + active.count, typename Vector<T, Bytes>::T{});
    }

    // Add a multiple of compressed numbers to the active ones in a row's first registers.
    static void expand_add(const Selection& active, int64_t registers, T factor, const T* from, T* row) {
        for (int64_t i = 0; i < active.offsets[registers]; ++i)
            row[active.units[i]] += factor * from[i];
    }
};

template <class T, int Bytes>
struct Compress : CompressNumbers<T, Bytes> {};

}  // namespace gradreg_fast
