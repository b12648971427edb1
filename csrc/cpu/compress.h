// Rows of numbers with only their active ones, and back.
//
// compress_avx512.h has the same for processors that compress a register by a mask.

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

// One by one, for every processor.
template <class T, int Bytes>
struct Compress {
    static constexpr int lanes = Vector<T, Bytes>::lanes;

    // A unit is inactive where its value is zero or less, as in PyTorch; null: all are active.
    static void select(const T* values, Selection& to) {
        int64_t count = 0;
        for (int64_t unit = 0; unit < to.width; ++unit) {
            if (unit % lanes == 0) to.offsets[unit / lanes] = int32_t(count);
            to.units[count] = int32_t(unit);
            count += values == nullptr || !(values[unit] <= T(0));
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

}  // namespace gradreg_fast
