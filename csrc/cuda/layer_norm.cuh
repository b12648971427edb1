// Normalisations over rows: a team of threads, a warp or a block, takes a row through its sums and then its results.
//
// A row is read twice, the second time from cache: the rows in flight of a block, 8 of up to 2 KB or one of up to about
// 16 KB an operand, fit into its share of an L1 of 256 KB; longer ones up to about 40 KB of all operands into that of
// an L2 of 50 MB; yet longer ones come from memory twice. Parameters' gradients are sums over rows: a thread has the
// same columns of every row of its team, so a team adds up its rows in shared memory (in the workspace where that is
// too small), in an order that nothing but the sizes decides, and a second launch adds up the blocks. At most 25
// operations an element, for which an H100 has 160 in the time that its 8 bytes take.
//
// Kernel project_rows: J v, or J^T v plus a second-order term; each block's sums for the parameters' gradients
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K + 1 numbers an element (one more with the term), writes K
//   registers  64
//   shared     128
//
// Kernel meet_rows: the second-order term and J v; each block's sums for the weight's gradient
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 K + 1 numbers an element, writes K + 1
//   registers  128
//   shared     320

#pragma once

#include "cuda/layer_norm.h"
#include "cuda/teams.cuh"
#include "cuda/vector.cuh"

namespace gradreg_fast::cuda {

constexpr int row_statistics = 4;  // of w = weight u and v: means of w, w xhat, v, v xhat

// The weights of columns [first, first + width<S>).
template <class S>
__device__ __forceinline__ void load_weights(const LayerNorm& norm, int64_t first, Wide<S> (&to)[width<S>]) {
    using T = Wide<S>;
    for (int i = 0; i < width<S>; ++i)
        to[i] = 1;
    if (!norm.weight) return;
    for (int i = 0; i < width<S>; i += width<T>) {
        T piece[width<T>];
        load(static_cast<const T*>(norm.weight), first + i, norm.columns, piece);
        for (int j = 0; j < width<T>; ++j)
            to[i + j] = piece[j];
    }
}

// Where this thread's team sums its columns [count]: in shared memory if that has room, else in the block's own part.
template <int team, class T>
__device__ __forceinline__ T* own_sums(T* shared, T* part, int64_t count, bool roomy) {
    T* const own = roomy ? shared + threadIdx.x / team * count : part;
    if (part)
        for (int64_t i = threadIdx.x % team; i < count; i += team)
            own[i] = 0;
    meet_team<team>();
    return own;
}

// The block's part from its teams' sums.
template <int team, class T>
__device__ __forceinline__ void add_teams(const T* shared, T* part, int64_t count, bool roomy) {
    if (!part || !roomy) return;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += row_threads) {
        T total = 0;
        for (int other = 0; other < row_threads / team; ++other)
            total += shared[other * count + i];
        part[i] = total;
    }
}

// parts [blocks, 2, columns], null: no gradients; `roomy`: shared memory has so much for each team.
template <class S, int team>
__global__ void __launch_bounds__(row_threads, 4)
    project_rows(const LayerNorm norm, const S* v, int64_t stack, bool push, const S* second, S* result, Wide<S>* parts,
                 bool roomy) {
    using T = Wide<S>;
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    GRADREG_FAST_STATIC_SHARED(T[row_warps][2], shared);
    T* const part = parts ? parts + blockIdx.x * 2 * norm.columns : nullptr;
    T* const own = own_sums<team>(reinterpret_cast<T*>(memory), part, 2 * norm.columns, roomy);
    const int64_t begin = threadIdx.x % team * width<S>, step = team * width<S>;
    for (int64_t row = own_team<team>(); row < norm.rows; row += teams<team>()) {
        const T mean = norm.mean ? static_cast<const T*>(norm.mean)[row] : T(0);
        const T inverse = static_cast<const T*>(norm.inverse)[row];
        const S* const x = static_cast<const S*>(norm.x) + row * norm.columns;
        for (int64_t k = 0; k < stack; ++k) {
            const int64_t offset = (k * norm.rows + row) * norm.columns;
            T sum[2] = {}, numbers[width<S>], stretched[width<S>], weight[width<S>], term[width<S>] = {};
            for (int64_t column = begin; column < norm.columns; column += step) {
                load(x, column, norm.columns, numbers);
                load(v + offset, column, norm.columns, stretched);
                if (!push) load_weights<S>(norm, column, weight);
                for (int i = 0; i < width<S>; ++i) {
                    const T tangent = push ? stretched[i] : stretched[i] * weight[i];
                    sum[0] += tangent;
                    sum[1] += tangent * ((numbers[i] - mean) * inverse);
                }
            }
            add_team<team>(sum, shared);
            const T shift = norm.mean ? sum[0] / T(norm.columns) : T(0), along = sum[1] / T(norm.columns);
            for (int64_t column = begin; column < norm.columns; column += step) {
                load(x, column, norm.columns, numbers);
                load(v + offset, column, norm.columns, stretched);
                load_weights<S>(norm, column, weight);
                if (second) load(second + offset, column, norm.columns, term);
                for (int i = 0; i < width<S>; ++i) {
                    const T xhat = (numbers[i] - mean) * inverse, before = push ? T(1) : weight[i];
                    if (part && column + i < norm.columns) {
                        own[column + i] += stretched[i] * xhat;
                        own[norm.columns + column + i] += stretched[i];
                    }
                    const T projected = inverse * (before * stretched[i] - shift - xhat * along);
                    stretched[i] = (push ? weight[i] : T(1)) * projected + term[i];
                }
                store(stretched, column, norm.columns, result + offset);
            }
        }
    }
    add_teams<team>(reinterpret_cast<const T*>(memory), part, 2 * norm.columns, roomy);
}

// statistics [teams, K, 4]; parts [blocks, columns], null: no gradient.
template <class S, int team>
__global__ void __launch_bounds__(row_threads, 2)
    meet_rows(const LayerNorm norm, const S* u, const S* v, int64_t stack, Wide<S>* statistics, S* second, S* ydot,
              Wide<S>* parts, bool roomy) {
    using T = Wide<S>;
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    GRADREG_FAST_STATIC_SHARED(T[row_warps][row_statistics + 1], shared);
    T* const part = parts ? parts + blockIdx.x * norm.columns : nullptr;
    T* const own = own_sums<team>(reinterpret_cast<T*>(memory), part, norm.columns, roomy);
    const int64_t begin = threadIdx.x % team * width<S>, step = team * width<S>;
    T* const means = statistics + own_team<team>() * stack * row_statistics;
    const T scale = T(1) / T(norm.columns);
    for (int64_t row = own_team<team>(); row < norm.rows; row += teams<team>()) {
        const T mean = norm.mean ? static_cast<const T*>(norm.mean)[row] : T(0);
        const T inverse = static_cast<const T*>(norm.inverse)[row];
        const S* const x = static_cast<const S*>(norm.x) + row * norm.columns;
        T along = 0;  // what xhat comes times
        T xhat[width<S>], weight[width<S>], cotangent[width<S>], tangent[width<S>];
        for (int64_t k = 0; k < stack; ++k) {
            const int64_t offset = (k * norm.rows + row) * norm.columns;
            T sum[row_statistics + 1] = {};
            for (int64_t column = begin; column < norm.columns; column += step) {
                load(x, column, norm.columns, xhat);
                load_weights<S>(norm, column, weight);
                load(u + offset, column, norm.columns, cotangent);
                load(v + offset, column, norm.columns, tangent);
                for (int i = 0; i < width<S>; ++i) {
                    const T place = (xhat[i] - mean) * inverse, weighted = weight[i] * cotangent[i];
                    sum[0] += weighted;
                    sum[1] += weighted * place;
                    sum[2] += tangent[i];
                    sum[3] += tangent[i] * place;
                    sum[4] += weighted * tangent[i];
                }
            }
            add_team<team>(sum, shared);
            if (!norm.mean) sum[0] = sum[2] = 0;
            along += scale * (sum[4] - scale * (sum[0] * sum[2] + 3 * sum[1] * sum[3]));
            if (threadIdx.x % team == 0)
                for (int f = 0; f < row_statistics; ++f)
                    means[k * row_statistics + f] = scale * sum[f];
        }
        meet_team<team>();
        for (int64_t column = begin; column < norm.columns; column += step) {
            load(x, column, norm.columns, xhat);
            load_weights<S>(norm, column, weight);
            T bend[width<S>], gradient[width<S>] = {};
            for (int i = 0; i < width<S>; ++i) {
                xhat[i] = (xhat[i] - mean) * inverse;
                bend[i] = xhat[i] * along;
            }
            for (int64_t k = 0; k < stack; ++k) {
                const int64_t offset = (k * norm.rows + row) * norm.columns;
                const T* const of = means + k * row_statistics;
                const T w_mean = of[0], w_xhat = of[1], v_mean = of[2], v_xhat = of[3];
                load(u + offset, column, norm.columns, cotangent);
                load(v + offset, column, norm.columns, tangent);
                for (int i = 0; i < width<S>; ++i) {
                    const T centred = tangent[i] - v_mean;
                    bend[i] += v_xhat * (weight[i] * cotangent[i] - w_mean) + w_xhat * centred;
                    const T projected = inverse * (centred - xhat[i] * v_xhat);
                    gradient[i] += cotangent[i] * projected;
                    tangent[i] = weight[i] * projected;
                }
                if (ydot) store(tangent, column, norm.columns, ydot + offset);
            }
            for (int i = 0; i < width<S>; ++i) {
                bend[i] *= -inverse * inverse;
                if (part && column + i < norm.columns) own[column + i] += gradient[i];
            }
            store(bend, column, norm.columns, second + row * norm.columns);
        }
        meet_team<team>();  // before the next row's means
    }
    add_teams<team>(reinterpret_cast<const T*>(memory), part, norm.columns, roomy);
}

}  // namespace gradreg_fast::cuda
