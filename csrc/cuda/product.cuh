// One product for all sweeps: operands in shared memory, sums in registers, a block of 256 threads.
//
// An `Accumulator` holds [rows, 128] sums and adds a b to them, a [rows, inner] with inner along its rows and b
// [columns, inner] likewise or, if `Transposed`, [inner, columns]. So one copy of a weight serves both directions, and
// the weight gradient is the same loop over lines of a batch. Widths in shared memory are rounded up to `granule`
// numbers, zero behind, and rows are `leading(width)` apart: 16 bytes past a multiple of 32, so that a warp's loads of
// fragments, or of vectors of 16 bytes, meet all banks.
//
// On CUDA cores a thread has 4 rows and rows / 8 columns: for 64 rows, 12 loads of 16 bytes for 128 multiply-adds,
// which bound it. On tensor cores a warp has 16 rows, and every eighth (rows = 16) to second (64) tile of 8 columns.

#pragma once

#include "cuda/device.cuh"

namespace gradreg_fast::cuda {

constexpr int threads = 256;
constexpr int warps = threads / 32;
constexpr int chunk = 128;  // columns of an accumulator

// Blocks a multiprocessor that registers must allow: 128 a thread, 255 of float64. Left alone, ptxas spills some for a
// third block, which shared memory seldom has room for.
template <class S>
constexpr int least_blocks = sizeof(S) > 4 ? 1 : 2;

// What products are made of. Storage: numbers in global memory; Wide: sums, and everything between products; Element:
// operands; step: how much of `inner` one turn takes; word: four bytes of Storage as an operand.

template <class N>
struct Exact {
    using Storage = N;
    using Element = N;
    static constexpr int step = 4;
    static __device__ __forceinline__ Element element(N value) { return value; }
};

struct TF32 {
    using Storage = float;
    using Element = float;
    static constexpr int step = 8;
    static __device__ __forceinline__ Element element(float value) { return to_tf32(value); }
    static __device__ __forceinline__ uint32_t word(uint32_t stored) { return to_tf32(stored); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_tf32(d, a, b);
    }
};

template <class Half>
struct Halves {
    using Storage = Half;
    using Element = Half;
    static constexpr int step = 16;
    static __device__ __forceinline__ Element element(float value) { return narrow<Half>(value); }
    static __device__ __forceinline__ uint32_t word(uint32_t stored) { return stored; }
    static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
};
template <>
__device__ __forceinline__ void Halves<BFloat16>::multiply(float (&d)[4], const uint32_t (&a)[4],
                                                           const uint32_t (&b)[2]) {
    mma_bfloat16(d, a, b);
}
template <>
__device__ __forceinline__ void Halves<Float16>::multiply(float (&d)[4], const uint32_t (&a)[4],
                                                          const uint32_t (&b)[2]) {
    mma_float16(d, a, b);
}

template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Pack {
    T of[count];
};

template <class To, class From>
__device__ __forceinline__ To load_as(const From* from) {
    return *reinterpret_cast<const To*>(from);
}

// Tensor cores. Lanes have places in fragments: `group` of 8, `place` of 4.
template <class Arithmetic, int rows, bool Transposed>
class Accumulator {
    using Element = typename Arithmetic::Element;
    static constexpr int per = 4 / sizeof(Element);  // numbers in a word of a fragment
    static constexpr int strips = rows / 16, warps_across = warps / strips, tiles = chunk / 8 / warps_across;
    float sums[tiles][4];

    static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }
    static __device__ __forceinline__ int group() { return threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ int place() { return threadIdx.x % 4; }
    static __device__ __forceinline__ int strip() { return 16 * (warp() / warps_across); }
    static __device__ __forceinline__ int first_column(int tile) {
        return 8 * (warp() % warps_across + warps_across * tile);
    }

    // Any order of `inner` will do, the same for both operands: where b's words lie across its rows, that in which
    // lanes meet different banks.
    static constexpr bool neighbours = Transposed && per == 1;

  public:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sums[tile][i] = 0;
    }

    __device__ __forceinline__ void add(const Element* a, int a_leading, const Element* b, int b_leading, int columns,
                                        int inner) {
        const Element* const mine = a + (strip() + group()) * a_leading;
        for (int k = 0; k < inner; k += Arithmetic::step) {
            const int low = k + (neighbours ? 2 : per) * place(), high = low + (neighbours ? 1 : 4 * per);
            const uint32_t left[4] = {load_as<uint32_t>(mine + low), load_as<uint32_t>(mine + 8 * a_leading + low),
                                      load_as<uint32_t>(mine + high), load_as<uint32_t>(mine + 8 * a_leading + high)};
#pragma unroll
            for (int tile = 0; tile < tiles; ++tile) {
                const int column = first_column(tile) + group();
                if (first_column(tile) >= columns) break;
                uint32_t right[2];
                if constexpr (!Transposed) {
                    right[0] = load_as<uint32_t>(b + column * b_leading + low);
                    right[1] = load_as<uint32_t>(b + column * b_leading + high);
                } else if constexpr (per == 1) {
                    right[0] = load_as<uint32_t>(b + low * b_leading + column);
                    right[1] = load_as<uint32_t>(b + high * b_leading + column);
                } else {
                    const Element* const from = b + low * b_leading + column;
                    right[0] = from[0].bits | uint32_t(from[b_leading].bits) << 16;
                    right[1] = from[8 * b_leading].bits | uint32_t(from[9 * b_leading].bits) << 16;
                }
                Arithmetic::multiply(sums[tile], left, right);
            }
        }
    }

    // Calls use(row, column, sum) for each of this thread's sums.
    template <class Use>
    __device__ __forceinline__ void each(int columns, Use use) const {
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile)
            if (first_column(tile) < columns)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    use(strip() + group() + 8 * (i / 2), first_column(tile) + 2 * place() + i % 2, sums[tile][i]);
    }
};

// CUDA cores.
template <class N, int rows, bool Transposed>
class Accumulator<Exact<N>, rows, Transposed> {
    static constexpr int down = rows / 4, across = threads / down, own = chunk / across;
    static constexpr int step = Exact<N>::step;
    N sums[4][own];

    static __device__ __forceinline__ int row(int i) { return threadIdx.x / across + down * i; }
    // Neighbouring threads have neighbouring columns, or pairs of them where b's rows run along the columns.
    static __device__ __forceinline__ int column(int j) {
        const int x = threadIdx.x % across;
        return Transposed ? 2 * (x + across * (j / 2)) + j % 2 : x + across * j;
    }

  public:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < own; ++j)
                sums[i][j] = 0;
    }

    __device__ __forceinline__ void add(const N* a, int a_leading, const N* b, int b_leading, int columns, int inner) {
        for (int k = 0; k < inner; k += step) {
            Pack<N, step> left[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                left[i] = load_as<Pack<N, step>>(a + row(i) * a_leading + k);
            if constexpr (Transposed) {
#pragma unroll
                for (int s = 0; s < step; ++s)
#pragma unroll
                    for (int j = 0; j < own; j += 2) {
                        if (column(j) >= columns) break;
                        const auto right = load_as<Pack<N, 2>>(b + (k + s) * b_leading + column(j));
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            sums[i][j] += left[i].of[s] * right.of[0];
                            sums[i][j + 1] += left[i].of[s] * right.of[1];
                        }
                    }
            } else {
#pragma unroll
                for (int j = 0; j < own; ++j) {
                    if (column(j) >= columns) break;
                    const auto right = load_as<Pack<N, step>>(b + column(j) * b_leading + k);
#pragma unroll
                    for (int s = 0; s < step; ++s)
#pragma unroll
                        for (int i = 0; i < 4; ++i)
                            sums[i][j] += left[i].of[s] * right.of[s];
                }
            }
        }
    }

    template <class Use>
    __device__ __forceinline__ void each(int columns, Use use) const {
#pragma unroll
        for (int j = 0; j < own; ++j)
            if (column(j) < columns)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    use(row(i), column(j), sums[i][j]);
    }
};

// c [rows, columns] = a b, in shared memory.
template <class Arithmetic, int rows, bool Transposed, class Element, class T>
__device__ __forceinline__ void multiply(const Element* a, int a_leading, const Element* b, int b_leading, int columns,
                                         int inner, T* c, int c_leading) {
    for (int first = 0; first < columns; first += chunk) {
        Accumulator<Arithmetic, rows, Transposed> sums;
        sums.clear();
        const int width = columns - first < chunk ? columns - first : chunk;
        sums.add(a, a_leading, b + first * (Transposed ? 1 : b_leading), b_leading, width, inner);
        sums.each(width, [&](int row, int column, T sum) { c[row * c_leading + first + column] = sum; });
    }
}

}  // namespace gradreg_fast::cuda
