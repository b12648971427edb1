// The kernels of active.h, a template over the register's size.
//
// Kernel product: a stack's rows by those of a matrix whose units are active
//   dtypes     float32 float64
//   bound      multiply-adds: 2 K an active pair of units; with few cotangents, by gathering the matrix
//
// Kernel outer: a weight's gradient, the sum of outer products of active units
//   dtypes     float32 float64
//   bound      multiply-adds: 2 K an active pair of units
//
// Kernel dot: inner products of stacks with the same active units
//   dtypes     float32 float64
//   bound      memory: reads 2 K numbers an active unit

#pragma once

#include "cpu/active.h"
#include "cpu/compress.h"
#include "cpu/product.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct ActiveProducts {
    using V = Vector<T, Bytes>;
    using Rows = Compress<T, Bytes>;
    static constexpr int lanes = V::lanes;
    static constexpr int64_t deep = 128;             // gathered rows of W at a time
    static constexpr int64_t tall = 24;              // rows of a gradient at a time
    static constexpr int64_t block_bytes = 1 << 20;  // of W: samples take turns with it in the second-level cache

    static int64_t padded(int64_t width) { return (width + lanes - 1) / lanes * lanes; }

    // Of gathered rows: an odd number of registers, for powers of two share few places of a cache.
    static int64_t gathered_stride(int64_t width) {
        return padded(width) + (padded(width) / lanes % 2 ? 2 : 1) * lanes;
    }

    static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

    static int64_t selection_size(int64_t width) {
        const int64_t registers = padded(width) / lanes;
        return whole_lines((padded(width) + lanes) * sizeof(int32_t)) + whole_lines((registers + 1) * sizeof(int32_t)) +
               whole_lines(registers * sizeof(uint16_t));
    }

    static int64_t scratch_size(const ActiveLayer<T>& layer) {
        return selection_size(layer.above.width) + selection_size(layer.below.width) +
               whole_lines((deep * gathered_stride(layer.below.width) + lanes) * sizeof(T));
    }

    // A selection of `width` units whose memory begins at `scratch`, which moves behind it.
    static Selection selection(int64_t width, char*& scratch) {
        const auto take = [&](int64_t bytes) {
            char* const piece = scratch;
            scratch += whole_lines(bytes);
            return piece;
        };
        Selection made{};
        made.width = width;
        made.registers = padded(width) / lanes;
        made.units = reinterpret_cast<int32_t*>(take((padded(width) + lanes) * sizeof(int32_t)));
        made.offsets = reinterpret_cast<int32_t*>(take((made.registers + 1) * sizeof(int32_t)));
        made.masks = reinterpret_cast<uint16_t*>(take(made.registers * sizeof(uint16_t)));
        return made;
    }

    static void select(const Stack<T>& stack, int64_t b, Selection& to) {
        Rows::select(stack.values ? stack.values + b * stack.width : nullptr, to);
    }

    // The place of the first active unit from this one on.
    static int64_t place_of(const Selection& active, int64_t unit) {
        int64_t low = 0, high = active.count;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (active.units[middle] < unit)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    static T* sample(const Stack<T>& stack, int64_t K, int64_t b) { return stack.rows + b * K * padded(stack.width); }

    static void fill_zero(T* to, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            to[i] = T(0);
    }

    // Rows of W that samples take in turn: all of them, unless reading W less often outweighs adding to `below` often.
    static int64_t block_rows(const ActiveLayer<T>& layer) {
        const int64_t rows = layer.above.width, bytes = rows * layer.below.width * int64_t(sizeof(T));
        const int64_t blocks = (bytes + block_bytes - 1) / block_bytes;
        if (blocks < 2 || rows < 8 * layer.K * blocks) return rows;
        const int64_t block = (rows + blocks - 1) / blocks;
        return block > deep ? block : deep;
    }

    static void product(const ActiveLayer<T>& layer, const T* weight, int64_t begin, int64_t end, char* scratch) {
        const Stack<T>&above = layer.above, &below = layer.below;
        Selection rows = selection(above.width, scratch), columns = selection(below.width, scratch);
        T* const gathered = reinterpret_cast<T*>(scratch);
        const int64_t block = block_rows(layer);
        for (int64_t first = 0; first == 0 || first < above.width; first += block)
            for (int64_t b = begin; b < end; ++b) {
                select(below, b, columns);
                T* const to = sample(below, layer.K, b);
                const int64_t to_stride = padded(columns.count);
                if (above.rows == nullptr) {
                    const int64_t last = first + block < layer.K ? first + block : layer.K;
                    for (int64_t k = first; k < last; ++k) {
                        Rows::compress(columns, weight + k * below.width, gathered);
                        __builtin_memcpy(to + k * to_stride, gathered, to_stride * sizeof(T));
                    }
                    continue;
                }
                select(above, b, rows);
                const T* const from = sample(above, layer.K, b);
                const int64_t from_stride = padded(rows.count), stride = gathered_stride(columns.count);
                const int64_t last = place_of(rows, first + block);
                int64_t place = place_of(rows, first);
                if (first == 0 && place == last) fill_zero(to, layer.K * to_stride);
                for (Start start = first ? Start::Accumulate : Start::Zero; place < last; place += deep) {
                    const int64_t count = last - place < deep ? last - place : deep;
                    for (int64_t i = 0; i < count; ++i)
                        Rows::compress(columns, weight + rows.units[place + i] * below.width, gathered + i * stride);
                    panel_product<T, Bytes, false>(layer.K, to_stride, count, from + place, from_stride, gathered,
                                                   stride, to, to_stride, start, nullptr);
                    start = Start::Accumulate;
                }
            }
    }

    static void outer(const ActiveLayer<T>& layer, const T* factor, bool symmetric, int64_t begin, int64_t end,
                      T* gradient, char* scratch) {
        const Stack<T>&above = layer.above, &below = layer.below;
        Selection rows = selection(above.width, scratch), columns = selection(below.width, scratch);
        T* const terms = reinterpret_cast<T*>(scratch);
        fill_zero(gradient + begin * below.width, (end - begin) * below.width);
        for (int64_t b = 0; b < layer.batch; ++b) {
            select(below, b, columns);
            const T* const right = sample(below, layer.K, b);
            const int64_t right_stride = padded(columns.count);
            if (above.rows == nullptr) {
                for (int64_t k = begin; k < end; ++k) {
                    __builtin_memcpy(terms, right + k * right_stride, right_stride * sizeof(T));
                    Rows::expand_add(columns, columns.registers, factor[b], terms, gradient + k * below.width);
                }
                continue;
            }
            select(above, b, rows);
            const T* const left = sample(above, layer.K, b);
            const int64_t left_stride = padded(rows.count), stride = gathered_stride(columns.count);
            const int64_t last = place_of(rows, end);
            for (int64_t place = place_of(rows, begin); place < last; place += tall) {
                const int64_t count = last - place < tall ? last - place : tall;
                const int64_t registers =
                    symmetric ? rows.units[place + count - 1] / lanes + 1 : columns.registers;  // up to the diagonal
                panel_product<T, Bytes, true>(count, padded(columns.offsets[registers]), layer.K, left + place,
                                              left_stride, right, right_stride, terms, stride, Start::Zero, nullptr);
                for (int64_t i = 0; i < count; ++i)
                    Rows::expand_add(columns, registers, factor[b], terms + i * stride,
                                     gradient + rows.units[place + i] * below.width);
            }
        }
    }

    static void dot(const Stack<T>& left, const Stack<T>& right, int64_t K, int64_t begin, int64_t end, T* result,
                    char* scratch) {
        Selection columns = selection(left.width, scratch);
        for (int64_t b = begin; b < end; ++b) {
            select(left, b, columns);
            const int64_t stride = padded(columns.count);
            const T *one = sample(left, K, b), *other = sample(right, K, b);
            T total = T(0);
            for (int64_t k = 0; k < K; ++k) {
                typename V::T sum{};
                for (int64_t i = k * stride; i < (k + 1) * stride; i += lanes)
                    sum += V::load(one + i) * V::load(other + i);
                total += V::sum(sum);
            }
            result[b] = total;
        }
    }

    static const ActiveKernels<T>& kernels() {
        static constexpr ActiveKernels<T> all{lanes, scratch_size, product, outer, dot};
        return all;
    }
};

}  // namespace gradreg_fast
