// compress.h for avx512: an instruction or two a register. To be included where these are allowed.

#pragma once

#include <immintrin.h>

#include "cpu/compress.h"

namespace gradreg_fast {

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

    static GRADREG_FAST_INLINE void compress(const Selection active, const float* row, float* to) {
        for (int64_t j = 0; j < active.registers; ++j) {
            const __mmask16 mask = active.masks[j];
            _mm512_storeu_ps(to + active.offsets[j],
                             _mm512_maskz_compress_ps(mask, _mm512_maskz_loadu_ps(mask, row + j * lanes)));
        }
        _mm512_storeu_ps(to + active.count, _mm512_setzero_ps());
    }

    static GRADREG_FAST_INLINE void expand_add(const Selection active, int64_t registers, float factor,
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

    static GRADREG_FAST_INLINE void compress(const Selection active, const double* row, double* to) {
        for (int64_t j = 0; j < active.registers; ++j) {
            const __mmask8 mask = __mmask8(active.masks[j]);
            _mm512_storeu_pd(to + active.offsets[j],
                             _mm512_maskz_compress_pd(mask, _mm512_maskz_loadu_pd(mask, row + j * lanes)));
        }
        _mm512_storeu_pd(to + active.count, _mm512_setzero_pd());
    }

    static GRADREG_FAST_INLINE void expand_add(const Selection active, int64_t registers, double factor,
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

}  // namespace gradreg_fast
