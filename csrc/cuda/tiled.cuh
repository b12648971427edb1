// Products of operands in global memory, a tile of sums a block, and what a sweep does with them: one main loop, any
// operands, any epilogue.
//
// A block of 256 threads holds [size, size] sums in registers and goes along `inner` in steps of 64 bytes, with three
// steps in shared memory: one is read while two are on their way (cp.async). An operand lies there as in global memory,
// along `inner` or across it, with rows 16 bytes (across: 8 numbers) apart beyond their length, so that fragments are
// read without conflicts between banks: by ldmatrix, but for 32-bit operands across. A warp has [size / 2, size / 4]
// sums: for 128 and 16-bit operands 6 ldmatrix serve 16 products of 4096 operations each. On CUDA cores a thread has
// [size / 16, size / 16]: for 128, 16 loads of 16 bytes for 256 multiply-adds or, with an operand across, 4 to 10 loads
// for 64. Then the sums go through shared memory, so that the epilogue sees pieces of 16 bytes of a row and global
// memory is read and written along rows.
//
// An operand says where a number is:
//
//   Storage, across         its numbers, and whether those with the same place in `inner` lie side by side
//   data                    an address in its memory
//   whole                   whether 16 bytes along its rows are aligned, and all there or all not
//   outer(i), inner(k)      what follows from one place alone, worked out once
//   at(outer, inner)        the number's address; null: zero
//
// An epilogue is called as epilogue(row, column, sums): a piece of a row of the whole product.
//
// Operations of [m, n] = [m, k] [k, n]: 2 m n k. From global memory: each operand once, and from the second-level cache
// once for each tile along the other: (m k n + k n m) / size numbers. An H100 moves about 5.5 TB/s from there: at 128,
// 16 bits, that is half the time of the products at 400 TFLOP/s, about the most that mma.sync reaches there (wgmma,
// which only sm_90a has: 990); TF32 likewise at half the rate, and float32 on CUDA cores (67 TFLOP/s) is far from it.
// Shared memory: 128 from 128, or 64 from 64 lines each: 3 steps of both operands, or the sums: 70 KB, or 31 KB (37 KB
// in float64).

#pragma once

#include "cuda/product.cuh"
#include "cuda/tiled.h"
#include "cuda/vector.cuh"

namespace gradreg_fast::cuda {

// How an operand lies in shared memory: [lines, depth] or, across, [depth, lines].
template <class S, bool across, int lines>
struct Staged {
    static constexpr int depth = 64 / sizeof(S);
    static constexpr int distance = across ? lines + (sizeof(S) == 8 ? 4 : 8) : depth + int(16 / sizeof(S));
    static constexpr int count = (across ? depth : lines) * distance;
    static __device__ __forceinline__ int at(int line, int k) {
        return across ? k * distance + line : line * distance + k;
    }
};

// Copies an operand's numbers to shared memory, step by step.
template <class Operand, int lines>
class Feed {
    using S = typename Operand::Storage;
    using Place = Staged<S, Operand::across, lines>;
    static constexpr int piece = 16 / sizeof(S);
    static constexpr int row = Operand::across ? lines : Place::depth;  // as they lie
    static constexpr int pieces = row / piece, each = lines * Place::depth / piece / threads;
    static_assert(each > 0 && threads % pieces == 0);
    const Operand& operand;
    const int64_t first;
    typename Operand::Outer outers[Operand::across ? 1 : each];

    // This thread's pieces are in the same place of several rows.
    static __device__ __forceinline__ int along() { return threadIdx.x % pieces * piece; }
    static __device__ __forceinline__ int row_of(int i) { return threadIdx.x / pieces + i * (threads / pieces); }

    template <int bytes>
    __device__ __forceinline__ void copy(S* to, const S* from) const {
        copy_async<bytes>(to, from ? from : operand.data, from);
    }

  public:
    __device__ __forceinline__ Feed(const Operand& operand, int64_t first) : operand(operand), first(first) {
        if constexpr (Operand::across) {
            outers[0] = operand.outer(first + along());
        } else {
#pragma unroll
            for (int i = 0; i < each; ++i)
                outers[i] = operand.outer(first + row_of(i));
        }
    }

    __device__ __forceinline__ void operator()(S* to, int64_t k) const {
        if (!operand.whole) {
#pragma unroll 1
            for (int i = threadIdx.x; i < lines * Place::depth; i += threads) {
                const int line = Operand::across ? i % lines : i / Place::depth;
                const int inner = Operand::across ? i / lines : i % Place::depth;
                const S* const from = operand.at(operand.outer(first + line), operand.inner(k + inner));
                if constexpr (sizeof(S) >= 4)
                    copy<sizeof(S)>(to + Place::at(line, inner), from);
                else
                    to[Place::at(line, inner)] = from ? *from : S{};
            }
        } else if constexpr (Operand::across) {
#pragma unroll
            for (int i = 0; i < each; ++i)
                copy<16>(to + Place::at(along(), row_of(i)), operand.at(outers[0], operand.inner(k + row_of(i))));
        } else {
            const auto inner = operand.inner(k + along());
#pragma unroll
            for (int i = 0; i < each; ++i)
                copy<16>(to + Place::at(row_of(i), along()), operand.at(outers[i], inner));
        }
    }
};

// The sums of a tile, on tensor cores.
template <class Arithmetic, int size, bool left_across, bool right_across>
class TileSums {
    using S = typename Arithmetic::Element;
    using Left = Staged<S, left_across, size>;
    using Right = Staged<S, right_across, size>;
    static constexpr int high = size / 2 / 16, wide = size / 4 / 8, half = Arithmetic::step / 2;
    float sums[high][wide][4];

    static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
    static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 % 2 * (size / 2); }
    static __device__ __forceinline__ int first_column() { return threadIdx.x / 64 * (size / 4); }

    // Four fragments of 8 lines and half a step each: of lines 0 to 7, of 8 to 15 if `lines_first`, ... or the other
    // way round.
    template <class Place, bool across, bool lines_first>
    static __device__ __forceinline__ void load(const S* from, int line, int k, uint32_t (&words)[4]) {
        if constexpr (across && sizeof(S) == 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int later = lines_first ? i % 2 : i / 2, deeper = lines_first ? i / 2 : i % 2;
                const int at = Place::at(line + 8 * later + lane() / 4, k + half * deeper + lane() % 4);
                words[i] = load_as<uint32_t>(from + at);
            }
        } else {
            const int later = 8 * (lines_first ? lane() / 8 % 2 : lane() / 16);
            const int deeper = half * (lines_first ? lane() / 16 : lane() / 8 % 2);
            const int r = lane() % 8;
            const int at = across ? Place::at(line + later, k + deeper + r) : Place::at(line + later + r, k + deeper);
            load_matrices<across>(words, from + at);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            words[i] = Arithmetic::word(words[i]);
    }

  public:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < high; ++i)
#pragma unroll
            for (int j = 0; j < wide; ++j)
#pragma unroll
                for (int s = 0; s < 4; ++s)
                    sums[i][j][s] = 0;
    }

    __device__ __forceinline__ void add(const S* left, const S* right) {
#pragma unroll
        for (int k = 0; k < Left::depth; k += Arithmetic::step) {
            uint32_t a[high][4];
#pragma unroll
            for (int i = 0; i < high; ++i)
                load<Left, left_across, true>(left, first_row() + 16 * i, k, a[i]);
#pragma unroll
            for (int j = 0; j < wide; j += 2) {
                uint32_t b[4];
                load<Right, right_across, false>(right, first_column() + 8 * j, k, b);
                const uint32_t ours[2] = {b[0], b[1]}, next[2] = {b[2], b[3]};
#pragma unroll
                for (int i = 0; i < high; ++i) {
                    Arithmetic::multiply(sums[i][j], a[i], ours);
                    Arithmetic::multiply(sums[i][j + 1], a[i], next);
                }
            }
        }
    }

    // Calls use(row, column, sum) for each of this thread's sums.
    template <class Use>
    __device__ __forceinline__ void each(Use use) const {
#pragma unroll
        for (int i = 0; i < high; ++i)
#pragma unroll
            for (int j = 0; j < wide; ++j)
#pragma unroll
                for (int s = 0; s < 4; ++s)
                    use(first_row() + 16 * i + lane() / 4 + 8 * (s / 2),
                        first_column() + 8 * j + 2 * (lane() % 4) + s % 2, sums[i][j][s]);
    }
};

// On CUDA cores.
template <class N, int size, bool left_across, bool right_across>
class TileSums<Exact<N>, size, left_across, right_across> {
    using Left = Staged<N, left_across, size>;
    using Right = Staged<N, right_across, size>;
    static constexpr int own = size / 16, step = 4, together = 4;
    static_assert(!left_across || right_across, "no sweep has it");
    N sums[own][own];

    // Numbers side by side of an operand that lies across, so that they are loaded at once; else every 16th.
    template <bool across>
    static __device__ __forceinline__ int line(int thread, int i) {
        return across ? together * thread + 16 * together * (i / together) + i % together : thread + 16 * i;
    }
    template <class Place>
    static __device__ __forceinline__ void load_across(const N* from, int thread, int k, N (&to)[own]) {
#pragma unroll
        for (int i = 0; i < own; i += together) {
            const auto some = load_as<Pack<N, together>>(from + Place::at(line<true>(thread, i), k));
#pragma unroll
            for (int j = 0; j < together; ++j)
                to[i + j] = some.of[j];
        }
    }
    template <class Place>
    static __device__ __forceinline__ Pack<N, step> load_along(const N* from, int thread, int i, int k) {
        return load_as<Pack<N, step>>(from + Place::at(line<false>(thread, i), k));
    }
    static __device__ __forceinline__ int down() { return threadIdx.x / 16; }
    static __device__ __forceinline__ int across() { return threadIdx.x % 16; }

  public:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < own; ++i)
#pragma unroll
            for (int j = 0; j < own; ++j)
                sums[i][j] = 0;
    }

    // Four deep where neither operand lies across; else one after another, for want of registers.
    __device__ __forceinline__ void add(const N* left, const N* right) {
        if constexpr (right_across) {
#pragma unroll 2
            for (int k = 0; k < Left::depth; ++k) {
                N a[own], b[own];
                if constexpr (left_across) {
                    load_across<Left>(left, down(), k, a);
                } else {
#pragma unroll
                    for (int i = 0; i < own; ++i)
                        a[i] = left[Left::at(line<false>(down(), i), k)];
                }
                load_across<Right>(right, across(), k, b);
#pragma unroll
                for (int i = 0; i < own; ++i)
#pragma unroll
                    for (int j = 0; j < own; ++j)
                        sums[i][j] += a[i] * b[j];
            }
        } else {
#pragma unroll 1
            for (int k = 0; k < Left::depth; k += step) {
                Pack<N, step> b[own];
#pragma unroll
                for (int j = 0; j < own; ++j)
                    b[j] = load_along<Right>(right, across(), j, k);
#pragma unroll
                for (int i = 0; i < own; ++i) {
                    const auto a = load_along<Left>(left, down(), i, k);
#pragma unroll
                    for (int s = 0; s < step; ++s)
#pragma unroll
                        for (int j = 0; j < own; ++j)
                            sums[i][j] += a.of[s] * b[j].of[s];
                }
            }
        }
    }

    template <class Use>
    __device__ __forceinline__ void each(Use use) const {
#pragma unroll
        for (int i = 0; i < own; ++i)
#pragma unroll
            for (int j = 0; j < own; ++j)
                use(line<left_across>(down(), i), line<right_across>(across(), j), sums[i][j]);
    }
};

// The tile of the product at [first_row, first_column], of `inner` from begin (a multiple of the depth) to end.
template <class Arithmetic, int size, class Left, class Right, class Epilogue>
__device__ __forceinline__ void multiply_tile(const Left& left, const Right& right, int64_t first_row,
                                              int64_t first_column, int64_t begin, int64_t end, int64_t rows,
                                              int64_t columns, Epilogue epilogue) {
    using S = typename Arithmetic::Storage;
    using T = Wide<S>;
    using OfLeft = Staged<S, Left::across, size>;
    using OfRight = Staged<S, Right::across, size>;
    constexpr int depth = OfLeft::depth, step_count = OfLeft::count + OfRight::count;
    constexpr int distance = sums_distance(size, sizeof(T));
    static_assert(sizeof(S) * staged_steps * step_count <= size_t(tile_bytes(size, sizeof(S), sizeof(T))));
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    S* const staged = reinterpret_cast<S*>(memory);

    TileSums<Arithmetic, size, Left::across, Right::across> sums;
    {
        const Feed<Left, size> feed_left(left, first_row);
        const Feed<Right, size> feed_right(right, first_column);
        const int steps = int((end - begin + depth - 1) / depth);
        const auto feed = [&](int step) {  // a group a step, though it be empty
            if (step < steps) {
                S* const to = staged + step % staged_steps * step_count;
                feed_left(to, begin + int64_t(step) * depth);
                feed_right(to + OfLeft::count, begin + int64_t(step) * depth);
            }
            close_copies();
        };
        sums.clear();
#pragma unroll
        for (int step = 0; step < staged_steps - 1; ++step)
            feed(step);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            wait_for_copies<staged_steps - 2>();
            __syncthreads();  // this step is there, and the one before has been read
            feed(step + staged_steps - 1);
            const S* const from = staged + step % staged_steps * step_count;
            sums.add(from, from + OfLeft::count);
        }
        wait_for_copies<0>();
    }
    __syncthreads();  // all has been read
    T* const results = reinterpret_cast<T*>(memory);
    sums.each([&](int row, int column, T sum) { results[row * distance + column] = sum; });
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x * width<S>; i < size * size; i += threads * width<S>) {
        const int row = i / size, column = i % size;
        if (first_row + row >= rows || first_column + column >= columns) continue;
        T piece[width<S>];
#pragma unroll
        for (int j = 0; j < width<S>; ++j)
            piece[j] = results[row * distance + column + j];
        epilogue(first_row + row, first_column + column, piece);
    }
}

__device__ __forceinline__ bool is_aligned(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// A matrix without gaps: [outer, inner] or, across, [inner, outer], then of two, the second beginning at `split`.
template <class S, bool across_>
struct Matrix;

template <class S>
struct Matrix<S, false> {
    using Storage = S;
    using Outer = int64_t;
    static constexpr bool across = false;
    const S* data;
    int64_t outers, inners;
    bool whole;

    __device__ __forceinline__ Outer outer(int64_t i) const { return i < outers ? i * inners : -1; }
    __device__ __forceinline__ int64_t inner(int64_t k) const { return k < inners ? k : -1; }
    __device__ __forceinline__ const S* at(Outer outer, int64_t inner) const {
        return outer < 0 || inner < 0 ? nullptr : data + outer + inner;
    }
};

template <class S>
struct Matrix<S, true> {
    using Storage = S;
    using Outer = int64_t;
    static constexpr bool across = true;
    const S* data;
    const S* more;
    int64_t outers, inners, split;
    bool whole;

    __device__ __forceinline__ Outer outer(int64_t i) const { return i < outers ? i : -1; }
    __device__ __forceinline__ const S* inner(int64_t k) const {
        return k >= inners ? nullptr : k < split ? data + k * outers : more + (k - split) * outers;
    }
    __device__ __forceinline__ const S* at(Outer outer, const S* line) const {
        return outer < 0 || !line ? nullptr : line + outer;
    }
};

}  // namespace gradreg_fast::cuda
