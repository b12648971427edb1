// The kernels of layer_norm.h, a template over the register's size. A row's operands are read twice, from cache.
//
// Kernel project: J v, or J^T v with a second-order term, and the parameters' gradients
//   dtypes     float32 float64
//   bound      memory: reads K + 1 numbers an element (one more with the term), writes K
//
// Kernel meet: the second-order term, J v and the weight's gradient
//   dtypes     float32 float64
//   bound      memory: reads 2 K + 1 numbers an element, writes K + 1

#pragma once

#include "cpu/layer_norm.h"
#include "cpu/vector_math.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct RowNormPasses {
    using Wide = Vector<T, Bytes>;
    using One = Vector<T, int(sizeof(T))>;

    // Sums over a row, of whole registers and of the rest.
    template <int Count>
    struct Sums {
        typename Wide::T wide[Count] = {};
        typename One::T rest[Count] = {};

        template <class V>
        GRADREG_FAST_INLINE auto& of(V) {
            if constexpr (V::lanes > 1)
                return wide;
            else
                return rest;
        }
        GRADREG_FAST_INLINE T total(int i) const { return Wide::sum(wide[i]) + rest[i][0]; }
    };

    // One row of a normalisation.
    struct Row {
        const RowNorm<T>& norm;
        const int64_t start;
        const T mean, inverse, scale;

        Row(const RowNorm<T>& norm, int64_t row)
            : norm(norm),
              start(row * norm.columns),
              mean(norm.mean ? norm.mean[row] : T(0)),
              inverse(norm.inverse[row]),
              scale(T(1) / T(norm.columns)) {}

        template <class V>
        GRADREG_FAST_INLINE typename V::T xhat(int64_t i) const {
            return (V::load(norm.x + start + i) - V::broadcast(mean)) * V::broadcast(inverse);
        }
        template <class V>
        GRADREG_FAST_INLINE typename V::T weight(int64_t i) const {
            return norm.weight ? V::load(norm.weight + i) : V::broadcast(1);
        }
        // A mean over the row from its sum, and that which P takes away.
        GRADREG_FAST_INLINE T shift(T sum) const { return norm.mean ? sum * scale : T(0); }
    };

    template <class V>
    static GRADREG_FAST_INLINE void add(T* to, typename V::T numbers) {
        V::store(to, V::load(to) + numbers);
    }

    template <bool Push>
    static void project_row(const Row& row, const T* v, const T* added, T* result, T* gradients) {
        const int64_t columns = row.norm.columns;
        Sums<2> sums;
        each_register<T, Bytes>(columns, [&](auto registers, int64_t i) {
            using V = decltype(registers);
            auto tangent = V::load(v + i);
            if (!Push) tangent *= row.template weight<V>(i);
            auto& of = sums.of(registers);
            of[0] += tangent;
            of[1] += tangent * row.template xhat<V>(i);
        });
        const T shift = row.shift(sums.total(0)), along = sums.total(1) * row.scale;
        each_register<T, Bytes>(columns, [&](auto registers, int64_t i) {
            using V = decltype(registers);
            const auto xhat = row.template xhat<V>(i), weight = row.template weight<V>(i), given = V::load(v + i);
            const auto tangent = Push ? given : given * weight;
            auto numbers = (tangent - V::broadcast(shift) - xhat * V::broadcast(along)) * V::broadcast(row.inverse);
            if (Push) numbers *= weight;
            if (added) numbers += V::load(added + i);
            V::store(result + i, numbers);
            if (!gradients) return;
            add<V>(gradients + i, given * xhat);
            add<V>(gradients + columns + i, given);
        });
    }

    static void project(const RowNorm<T>& norm, const T* v, int64_t stack, bool push, const T* added, T* result,
                        T* gradients, int64_t begin, int64_t end) {
        for (int64_t k = 0; k < stack; ++k)
            for (int64_t i = begin; i < end; ++i) {
                const Row row(norm, i);
                const int64_t at = k * norm.rows * norm.columns + row.start;
                (push ? project_row<true> : project_row<false>)(row, v + at, added ? added + at : nullptr, result + at,
                                                                gradients);
            }
    }

    // What member u, v of the stacks adds to `second` [columns of the row], but for the factor -inverse^2.
    static void meet_row(const Row& row, const T* u, const T* v, bool first, T* second, T* gradient, T* ydot) {
        Sums<5> sums;
        each_register<T, Bytes>(row.norm.columns, [&](auto registers, int64_t i) {
            using V = decltype(registers);
            const auto xhat = row.template xhat<V>(i), tangent = V::load(v + i);
            const auto cotangent = V::load(u + i) * row.template weight<V>(i);
            auto& of = sums.of(registers);
            of[0] += tangent;
            of[1] += tangent * xhat;
            of[2] += cotangent;
            of[3] += cotangent * xhat;
            of[4] += cotangent * tangent;
        });
        const T v_mean = row.shift(sums.total(0)), v_xhat = sums.total(1) * row.scale;
        const T u_mean = row.shift(sums.total(2)), u_xhat = sums.total(3) * row.scale;
        const T along = sums.total(4) * row.scale - u_mean * v_mean - 3 * u_xhat * v_xhat;
        const T shift = -(v_xhat * u_mean + u_xhat * v_mean), outer = -row.inverse * row.inverse;
        each_register<T, Bytes>(row.norm.columns, [&](auto registers, int64_t i) {
            using V = decltype(registers);
            const auto xhat = row.template xhat<V>(i), weight = row.template weight<V>(i);
            const auto cotangent = V::load(u + i), tangent = V::load(v + i);
            auto term = V::broadcast(along) * xhat + V::broadcast(shift);
            term += V::broadcast(v_xhat) * (cotangent * weight) + V::broadcast(u_xhat) * tangent;
            term *= V::broadcast(outer);
            if (!first) term += V::load(second + i);
            V::store(second + i, term);
            const auto projected =
                (tangent - V::broadcast(v_mean) - xhat * V::broadcast(v_xhat)) * V::broadcast(row.inverse);
            if (gradient) add<V>(gradient + i, cotangent * projected);
            if (ydot) V::store(ydot + i, weight * projected);
        });
    }

    static void meet(const RowNorm<T>& norm, const T* u, const T* v, int64_t stack, T* second, T* gradient, T* ydot,
                     int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Row row(norm, i);
            for (int64_t k = 0; k < stack; ++k) {
                const int64_t at = k * norm.rows * norm.columns + row.start;
                meet_row(row, u + at, v + at, k == 0, second + row.start, gradient, ydot ? ydot + at : nullptr);
            }
        }
    }

    static const RowNormKernels<T>& kernels() {
        static constexpr RowNormKernels<T> table{&project, &meet};
        return table;
    }
};

}  // namespace gradreg_fast
