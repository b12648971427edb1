// Matrix products of a tile, in registers: C (+)= A B, with B's columns across the lanes and A broadcast.
//
// Matrices are cut into panels: 256 bytes of columns each (the last one maybe fewer), a panel's rows one after the
// other without a gap. So the lines of a block are neighbours in memory, whatever the matrix's width: none evicts
// another from the cache's sets, as rows a power of two apart do, and 64 rows of a panel fit into a third of the
// first-level cache. A may be given transposed: weight gradients are products over the rows. Strides are whole
// registers.

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
void product_rows(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c,
                  int64_t c_stride, Start start, const T* bias) {
    while (rows >= M) {
#pragma GCC unroll 16
        for (int i = M; i < 2 * M; ++i)  // the next block's sums, while this one's are made
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j)
                __builtin_prefetch(c + i * c_stride + j * Vector<T, Bytes>::lanes, 1);
        product_block<T, Bytes, M, N, Transposed>(depth, a, a_stride, b, b_stride, c, c_stride, start, bias);
        a += M * (Transposed ? 1 : a_stride);
        c += M * c_stride;
        rows -= M;
    }
    if constexpr (M > 1)
        if (rows > 0)
            product_rows<T, Bytes, M - 1, N, Transposed>(rows, depth, a, a_stride, b, b_stride, c, c_stride, start,
                                                         bias);
}

// C [rows, width], whole registers wide: one panel, or plain rows.
template <class T, int Bytes, bool Transposed>
void panel_product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t a_stride, const T* b,
                   int64_t b_stride, T* c, int64_t c_stride, Start start, const T* bias) {
    using V = Vector<T, Bytes>;
    // Sums in flight: 24 of 32 registers, or 12 of 16; wide ones first, for they broadcast least.
    constexpr int wide = Bytes == 64 ? 4 : 2;
    int64_t j = 0;
    for (; j + wide * V::lanes <= width; j += wide * V::lanes)
        product_rows<T, Bytes, 6, wide, Transposed>(rows, depth, a, a_stride, b + j, b_stride, c + j, c_stride, start,
                                                    bias ? bias + j : nullptr);
    if (wide > 2 && j + 2 * V::lanes <= width) {
        product_rows<T, Bytes, 8, 2, Transposed>(rows, depth, a, a_stride, b + j, b_stride, c + j, c_stride, start,
                                                 bias ? bias + j : nullptr);
        j += 2 * V::lanes;
    }
    if (j < width)
        product_rows<T, Bytes, 8, 1, Transposed>(rows, depth, a, a_stride, b + j, b_stride, c + j, c_stride, start,
                                                 bias ? bias + j : nullptr);
}

// Columns in a panel.
template <class T>
constexpr int64_t panel = 256 / sizeof(T);

// And in the one that starts at this column, of a matrix with so many columns.
template <class T>
GRADREG_FAST_INLINE int64_t panel_width(int64_t column, int64_t columns, int64_t most = panel<T>) {
    return columns - column < most ? columns - column : most;
}

// A matrix [lines, stride], seen from line `first` on: in panels, or in plain rows, which serve as well where nobody
// walks down its columns or where its rows do not fall into few of the cache's sets.
template <class T>
struct Matrix {
    T* base;
    int64_t lines, stride;
    int64_t first = 0;
    bool plain = false;
    int64_t most = panel<T>;  // columns of a panel; the stride: one panel holds all

    Matrix from(int64_t line) const { return {base, lines, stride, first + line, plain, most}; }
    operator Matrix<const T>() const { return {base, lines, stride, first, plain, most}; }
    // Columns of the panel that starts at this one.
    GRADREG_FAST_INLINE int64_t width(int64_t column) const { return panel_width<T>(column, stride, most); }
    // From one of its lines to the next.
    GRADREG_FAST_INLINE int64_t step(int64_t column) const { return plain ? stride : width(column); }
    // Its first number in this line.
    GRADREG_FAST_INLINE T* at(int64_t line, int64_t column) const {
        return base + (plain ? column : lines * column) + (first + line) * step(column);
    }
};

// The first `rows` lines of C (+)= A B, with A [rows, depth] and B [depth, width].
template <class T, int Bytes>
void product(int64_t rows, int64_t depth, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, Start start,
             const T* bias = nullptr) {
    for (int64_t j = 0; j < c.stride; j += panel<T>)
        for (int64_t k = 0; k < depth; k += panel<T>)
            panel_product<T, Bytes, false>(rows, c.width(j), panel_width<T>(k, depth), a.at(0, k), a.step(k),
                                           b.at(k, j), b.step(j), c.at(0, j), c.step(j),
                                           k == 0 ? start : Start::Accumulate, bias ? bias + j : nullptr);
}

// C [width of A, width of B] (+)= A^T B over the first `rows` lines of both.
template <class T, int Bytes>
void outer_product(int64_t rows, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, Start start) {
    for (int64_t j = 0; j < c.stride; j += panel<T>)
        for (int64_t i = 0; i < c.lines; i += panel<T>)
            panel_product<T, Bytes, true>(panel_width<T>(i, c.lines), c.width(j), rows, a.at(0, i), a.step(i),
                                          b.at(0, j), b.step(j), c.at(i, j), c.step(j), start, nullptr);
}

// Let the bits s of line and lane numbers change places in two lines that differ in bit s alone.
template <class T, int Bytes>
GRADREG_FAST_INLINE void exchange(typename Vector<T, Bytes>::T& first, typename Vector<T, Bytes>::T& second, int s) {
    constexpr int lanes = Vector<T, Bytes>::lanes;
    typename VectorMath<T, Bytes>::Bits low{}, high{};
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
        low[i] = i & s ? lanes + i - s : i;
        high[i] = i & s ? lanes + i : i + s;
    }
    const typename Vector<T, Bytes>::T upper = __builtin_shuffle(first, second, low);
    second = __builtin_shuffle(first, second, high);
    first = upper;
}

// Lane r of the result is the sum of line r.
template <class T, int Bytes>
GRADREG_FAST_INLINE typename Vector<T, Bytes>::T sums_of_lines(typename Vector<T, Bytes>::T* line) {
#pragma GCC unroll 8
    for (int s = Vector<T, Bytes>::lanes / 2; s > 0; s /= 2)
#pragma GCC unroll 16
        for (int r = 0; r < s; ++r) {
            exchange<T, Bytes>(line[r], line[r + s], s);
            line[r] += line[r + s];
        }
    return line[0];
}

// The first `rows` lines of C [rows, width] = A B^T (+ bias) for narrow C, B^T given as [width, depth]: lanes run along
// the sums, which as many rows as there are lanes finish together.
template <class T, int Bytes>
void narrow_product(int64_t rows, int64_t width, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, const T* bias) {
    using V = Vector<T, Bytes>;
    for (int64_t j = 0; j < c.stride; j += V::lanes)
        for (int64_t i = 0; i < rows; ++i)
            V::store(c.at(i, j / panel<T> * panel<T>) + j % panel<T>, typename V::T{});
    for (int64_t first = 0; first < rows; first += V::lanes) {
        const int64_t count = rows - first < V::lanes ? rows - first : V::lanes;
        for (int64_t j = 0; j < width; ++j) {
            typename V::T sums[V::lanes]{};
            for (int64_t k = 0; k < a.stride; k += panel<T>) {
                const T* const right = b.at(j, k);
                for (int64_t i = 0; i < count; ++i) {
                    const T* const left = a.at(first + i, k);
                    typename V::T sum = sums[i];
                    for (int64_t lane = 0; lane < a.width(k); lane += V::lanes)
                        sum += V::load(left + lane) * V::load(right + lane);
                    sums[i] = sum;
                }
            }
            const typename V::T total = sums_of_lines<T, Bytes>(sums) + (bias ? bias[j] : T(0));
            for (int64_t i = 0; i < count; ++i)
                c.at(first + i, j / panel<T> * panel<T>)[j % panel<T>] = total[i];
        }
    }
}

// Whether lanes along the sums take less time: no register is used twice, and a sum across one costs three products.
template <class T, int Bytes>
bool is_narrow(int64_t width, int64_t width_stride, int64_t depth, int64_t depth_stride) {
    constexpr int lanes = Vector<T, Bytes>::lanes;
    return 3 * width * (depth_stride / lanes + 3) < 2 * depth * (width_stride / lanes);
}

}  // namespace gradreg_fast
