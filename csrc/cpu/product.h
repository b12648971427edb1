// Matrix products of a tile, in registers: C (+)= A B, with B's columns across the lanes and A broadcast.
//
// A may be given transposed: weight gradients are products over the rows. Widths of B and C are whole registers.

#pragma once

#include <cstdint>

#include "cpu/vector_math.h"

namespace gradreg_fast {

// How a product begins.
enum class Start { Zero, Bias, Accumulate };

// C [M, N registers] in registers throughout.
template <class T, int Bytes, int M, int N, bool Transposed>
GRADREG_FAST_INLINE void product_block(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c,
                                       int64_t c_stride, Start start, const T* bias) {
    using V = Vector<T, Bytes>;
    typename V::T sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            if (start == Start::Zero)
                sum[i][j] = typename V::T{};
            else
                sum[i][j] = V::load(start == Start::Bias ? bias + j * V::lanes : c + i * c_stride + j * V::lanes);
        }
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k) {
        typename V::T line[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j)
            line[j] = V::load(b + j * V::lanes);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            const typename V::T factor = V::broadcast(Transposed ? a[i] : a[i * a_stride]);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j)
                sum[i][j] += factor * line[j];
        }
        a += Transposed ? a_stride : 1;
        b += b_stride;
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j)
            V::store(c + i * c_stride + j * V::lanes, sum[i][j]);
}

// C [rows, N registers]: blocks of M rows, and a smaller one for what is left.
template <class T, int Bytes, int M, int N, bool Transposed>
void product_panel(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c,
                   int64_t c_stride, Start start, const T* bias) {
    while (rows >= M) {
        product_block<T, Bytes, M, N, Transposed>(depth, a, a_stride, b, b_stride, c, c_stride, start, bias);
        a += M * (Transposed ? 1 : a_stride);
        c += M * c_stride;
        rows -= M;
    }
    if constexpr (M > 1)
        if (rows > 0)
            product_panel<T, Bytes, M - 1, N, Transposed>(rows, depth, a, a_stride, b, b_stride, c, c_stride, start,
                                                          bias);
}

// C [rows, width] (+)= A B with A [rows, depth], or its transpose given, and B [depth, width]; whole registers wide.
template <class T, int Bytes, bool Transposed>
void product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
             T* c, int64_t c_stride, Start start, const T* bias = nullptr) {
    using V = Vector<T, Bytes>;
    // Sums in flight: 24 of 32 registers, or 12 of 16; wide ones first, for they broadcast least.
    constexpr int wide = Bytes == 64 ? 4 : 2;
    constexpr int64_t deep = 128;  // lines of B at a time: N registers of each stay in the first-level cache
    for (int64_t k = 0; k < depth; k += deep) {
        const int64_t lines = depth - k < deep ? depth - k : deep;
        const Start begin = k == 0 ? start : Start::Accumulate;
        const T* from = a + k * (Transposed ? a_stride : 1);
        const T* with = b + k * b_stride;
        int64_t j = 0;
        for (; j + wide * V::lanes <= width; j += wide * V::lanes)
            product_panel<T, Bytes, 6, wide, Transposed>(rows, lines, from, a_stride, with + j, b_stride, c + j,
                                                         c_stride, begin, bias + j);
        if (wide > 2 && j + 2 * V::lanes <= width) {
            product_panel<T, Bytes, 8, 2, Transposed>(rows, lines, from, a_stride, with + j, b_stride, c + j, c_stride,
                                                      begin, bias + j);
            j += 2 * V::lanes;
        }
        if (j < width)
            product_panel<T, Bytes, 8, 1, Transposed>(rows, lines, from, a_stride, with + j, b_stride, c + j, c_stride,
                                                      begin, bias + j);
    }
}

// C [rows, width] = A B^T (+ bias) for narrow C, B^T given as [width, depth]: lanes run along the sums.
template <class T, int Bytes>
void narrow_product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row,
                    T* c, int64_t c_row, const T* bias) {
    using V = Vector<T, Bytes>;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; ++j) {
            typename V::T sum{};
            for (int64_t k = 0; k < depth; k += V::lanes)
                sum += V::load(a + i * a_row + k) * V::load(b + j * b_row + k);
            c[i * c_row + j] = V::sum(sum) + (bias ? bias[j] : T(0));
        }
        for (int64_t j = width; j < c_row; ++j)
            c[i * c_row + j] = T(0);
    }
}

// Whether lanes along the sums take fewer steps: a sum across a register costs about eight products.
template <class T, int Bytes>
bool is_narrow(int64_t width, int64_t width_stride, int64_t depth, int64_t depth_stride) {
    constexpr int lanes = Vector<T, Bytes>::lanes;
    return width * (depth_stride / lanes + 8) < depth * (width_stride / lanes);
}

}  // namespace gradreg_fast
