// Rows of numbers with only their active ones, and back.
//
// Where the processor compresses a register by a mask, a row takes an instruction or two a register; elsewhere its
// active numbers are copied one by one.

#pragma once

#include <cstdint>

#include "cpu/vector_math.h"

#if defined(__AVX512F__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

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

#if defined(__AVX512F__) && defined(__AVX512VL__)

template <>
struct Compress<float, 64> {
    static constexpr int lanes = 16;

    static void select(const float* values, Selection& to) {
        const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        int64_t count = 0;
        for (int64_t j = 0; j < to.registers; ++j) {
            const int64_t left = to.width - j * lanes;
            __mmask16 mask = left < lanes ? __mmask16((1u << left) - 1) : __mmask16(0xffff);
            if (values)
                mask = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, values + j * lanes),
                                               _mm512_setzero_ps(), _CMP_NLE_UQ);
            const __m512i units = _mm512_add_epi32(first, _mm512_set1_epi32(int32_t(j * lanes)));
            _mm512_storeu_si512(to.units + count, _mm512_maskz_compress_epi32(mask, units));
            to.offsets[j] = int32_t(count);
            to.masks[j] = mask;
            count += __builtin_popcount(mask);
        }
        to.offsets[to.registers] = int32_t(count);
        to.count = count;
    }

    static GRADREG_FAST_INLINE void compress(const Selection& active, const float* row, float* to) {
        for (int64_t j = 0; j < active.registers; ++j) {
            const __mmask16 mask = active.masks[j];
            _mm512_storeu_ps(to + active.offsets[j],
                             _mm512_maskz_compress_ps(mask, _mm512_maskz_loadu_ps(mask, row + j * lanes)));
        }
        _mm512_storeu_ps(to + active.count, _mm512_setzero_ps());
    }

    static GRADREG_FAST_INLINE void expand_add(const Selection& active, int64_t registers, float factor,
                                               const float* from, float* row) {
        const __m512 factors = _mm512_set1_ps(factor);
        for (int64_t j = 0; j < registers; ++j) {
            const __mmask16 mask = active.masks[j];
            const __m512 terms = _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(from + active.offsets[j]));
            const __m512 sum = _mm512_fmadd_ps(terms, factors, _mm512_maskz_loadu_ps(mask, row + j * lanes));
            _mm512_mask_storeu_ps(row + j * lanes, mask, sum);
        }
    }
};

template <>
struct Compress<double, 64> {
    static constexpr int lanes = 8;

    static void select(const double* values, Selection& to) {
        const __m256i first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        int64_t count = 0;
        for (int64_t j = 0; j < to.registers; ++j) {
            const int64_t left = to.width - j * lanes;
            __mmask8 mask = left < lanes ? __mmask8((1u << left) - 1) : __mmask8(0xff);
            if (values)
                mask = _mm512_mask_cmp_pd_mask(mask, _mm512_maskz_loadu_pd(mask, values + j * lanes),
                                               _mm512_setzero_pd(), _CMP_NLE_UQ);
            const __m256i units = _mm256_add_epi32(first, _mm256_set1_epi32(int32_t(j * lanes)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.units + count), _mm256_maskz_compress_epi32(mask, units));
            to.offsets[j] = int32_t(count);
            to.masks[j] = mask;
            count += __builtin_popcount(mask);
        }
        to.offsets[to.registers] = int32_t(count);
        to.count = count;
    }

    static GRADREG_FAST_INLINE void compress(const Selection& active, const double* row, double* to) {
        for (int64_t j = 0; j < active.registers; ++j) {
            const __mmask8 mask = __mmask8(active.masks[j]);
            _mm512_storeu_pd(to + active.offsets[j],
                             _mm512_maskz_compress_pd(mask, _mm512_maskz_loadu_pd(mask, row + j * lanes)));
        }
        _mm512_storeu_pd(to + active.count, _mm512_setzero_pd());
    }

    static GRADREG_FAST_INLINE void expand_add(const Selection& active, int64_t registers, double factor,
                                               const double* from, double* row) {
        const __m512d factors = _mm512_set1_pd(factor);
        for (int64_t j = 0; j < registers; ++j) {
            const __mmask8 mask = __mmask8(active.masks[j]);
            const __m512d terms = _mm512_maskz_expand_pd(mask, _mm512_loadu_pd(from + active.offsets[j]));
            const __m512d sum = _mm512_fmadd_pd(terms, factors, _mm512_maskz_loadu_pd(mask, row + j * lanes));
            _mm512_mask_storeu_pd(row + j * lanes, mask, sum);
        }
    }
};

#endif

}  // namespace gradreg_fast
