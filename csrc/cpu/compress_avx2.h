// compress.h for avx2: a permutation a register, looked up by its mask. To be included where these are allowed.

#pragma once

#include <immintrin.h>

#include "cpu/compress.h"

namespace gradreg_fast {

// For each mask, the places in a register that its 32-bit words come from: active numbers move to its beginning, or
// from there to where they belong.
template <int Lanes>
struct Permutations {
    uint8_t compressing[1 << Lanes][8]{}, expanding[1 << Lanes][8]{};

    constexpr Permutations() {
        constexpr int words = 8 / Lanes;  // a number's
        for (int mask = 0; mask < 1 << Lanes; ++mask)
            for (int lane = 0, place = 0; lane < Lanes; ++lane)
                if (mask >> lane & 1) {
                    for (int word = 0; word < words; ++word) {
                        compressing[mask][place * words + word] = uint8_t(lane * words + word);
                        expanding[mask][lane * words + word] = uint8_t(place * words + word);
                    }
                    ++place;
                }
    }
};

template <class T>
struct Compress<T, 32> : CompressNumbers<T, 32> {
    using V = Vector<T, 32>;
    using Register = typename V::T;
    using Bits = typename VectorMath<T, 32>::Bits;
    static constexpr int lanes = V::lanes;
    static constexpr Permutations<lanes> permutations{};

    static GRADREG_FAST_INLINE Register permuted(Register from, const uint8_t* words) {
        const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(words)));
        return Register(_mm256_permutevar8x32_epi32(__m256i(from), places));
    }

    // Zero where a mask has no bit.
    static GRADREG_FAST_INLINE Register masked(Register from, int mask) {
        Bits bits;
        for (int lane = 0; lane < lanes; ++lane)
            bits[lane] = 1 << lane;
        return Register(((Bits{} + mask) & bits) != 0 ? Bits(from) : Bits{});
    }

    static void compress(const Selection& active, const T* row, T* to) {
        const int64_t whole = active.width / lanes;
        for (int64_t j = 0; j < whole; ++j)
            V::store(to + active.offsets[j],
                     permuted(V::load(row + j * lanes), permutations.compressing[active.masks[j]]));
        for (int64_t i = active.offsets[whole]; i < active.count; ++i)
            to[i] = row[active.units[i]];
        V::store(to + active.count, Register{});
    }

    static void expand_add(const Selection& active, int64_t registers, T factor, const T* from, T* row) {
        const int64_t whole = registers < active.width / lanes ? registers : active.width / lanes;
        for (int64_t j = 0; j < whole; ++j) {
            const int mask = active.masks[j];
            const Register terms = permuted(V::load(from + active.offsets[j]) * factor, permutations.expanding[mask]);
            V::store(row + j * lanes, V::load(row + j * lanes) + masked(terms, mask));
        }
        for (int64_t i = active.offsets[whole]; i < active.offsets[registers]; ++i)
            row[active.units[i]] += factor * from[i];
    }
};

}  // namespace gradreg_fast
