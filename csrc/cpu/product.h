// Matrix products of a tile, in registers: C (+)= A B, with B's columns across the lanes and A broadcast.
//
// A is read with any two strides, so that the same lines multiply by a transpose: weight gradients are products over the
// rows. Widths of B and C are whole registers.

#pragma once

#include <cstdint>

#include "cpu/vector_math.h"

namespace gradreg_fast {

// How a product begins.
enum class Start { Zero, Bias, Accumulate };

// C [M, N registers] in registers throughout. 512-bit code has 32 of them, the others 16.
template <class T, int Bytes, int M, int N>
GRADREG_FAST_INLINE void product_block(int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* b,
                                       int64_t b_row, T* c, int64_t c_row, Start start, const T* bias) {
    using V = Vector<T, Bytes>;
    typename V::T sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            if (start == Start::Zero)
                sum[i][j] = typename V::T{};
            else
                sum[i][j] = V::load(start == Start::Bias ? bias + j * V::lanes : c + i * c_row + j * V::lanes);
        }
    for (int64_t k = 0; k < depth; ++k) {
        typename V::T line[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) line[j] = V::load(b + k * b_row + j * V::lanes);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            const typename V::T factor = V::broadcast(a[i * a_row + k * a_column]);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) sum[i][j] += factor * line[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) V::store(c + i * c_row + j * V::lanes, sum[i][j]);
}

// C [rows, N registers]: full blocks of M rows, then halves for what is left.
template <class T, int Bytes, int M, int N>
void product_panel(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row,
                   T* c, int64_t c_row, Start start, const T* bias) {
    int64_t i = 0;
    for (; i + M <= rows; i += M)
        product_block<T, Bytes, M, N>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, start,
                                      bias);
    if constexpr (M > 1)
        if (i < rows)
            product_panel<T, Bytes, M / 2, N>(rows - i, depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row,
                                              c_row, start, bias);
}

// C [rows, width] (+)= A [rows, depth] B [depth, width], width in whole registers.
template <class T, int Bytes>
void product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* b,
             int64_t b_row, T* c, int64_t c_row, Start start, const T* bias = nullptr) {
    using V = Vector<T, Bytes>;
    constexpr int M = Bytes == 64 ? 8 : 4;
    constexpr int tall = Bytes == 64 ? 4 : 2;  // few rows: as many sums in flight with more registers a row
    int64_t j = 0;
    if (rows <= M / 2)
        for (; j + tall * V::lanes <= width; j += tall * V::lanes)
            product_panel<T, Bytes, M / 2, tall>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, start,
                                                 bias + j);
    for (; j + 2 * V::lanes <= width; j += 2 * V::lanes)
        product_panel<T, Bytes, M, 2>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, start, bias + j);
    for (; j < width; j += V::lanes)
        product_panel<T, Bytes, M, 1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, start, bias + j);
}

// C [rows, width] = A B^T (+ bias) for narrow C, B^T given as [width, depth]: lanes run along the sums.
template <class T, int Bytes>
void narrow_product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row,
                    T* c, int64_t c_row, const T* bias) {
    using V = Vector<T, Bytes>;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; ++j) {
            typename V::T sum{};
            for (int64_t k = 0; k < depth; k += V::lanes) sum += V::load(a + i * a_row + k) * V::load(b + j * b_row + k);
            c[i * c_row + j] = V::sum(sum) + (bias ? bias[j] : T(0));
        }
        for (int64_t j = width; j < c_row; ++j) c[i * c_row + j] = T(0);
    }
}

// Whether lanes along the sums take fewer steps: a sum across a register costs about eight products.
template <class T, int Bytes>
bool is_narrow(int64_t width, int64_t width_stride, int64_t depth, int64_t depth_stride) {
    constexpr int lanes = Vector<T, Bytes>::lanes;
    return width * (depth_stride / lanes + 8) < depth * (width_stride / lanes);
}

}  // namespace gradreg_fast
