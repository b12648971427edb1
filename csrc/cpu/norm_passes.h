// The kernels of norm.h, a template over the register's size.
//
// Kernel sums: a channel's sums for the sweeps of batch normalisation
//   dtypes     float32 float64
//   bound      memory: reads K + 1 numbers an element, where tangents meet cotangents 2 K + 1
//
// Kernel pass: J v with a second-order term, or the second-order term and J v
//   dtypes     float32 float64
//   bound      memory: reads K + 1 (or 2) numbers an element and writes K; where they meet reads 2 K + 1, writes K + 1

#pragma once

#include "cpu/norm.h"
#include "cpu/vector_math.h"

namespace gradreg_fast {

template <class T, int Bytes>
struct NormPasses {
    using Wide = Vector<T, Bytes>;
    using One = Vector<T, int(sizeof(T))>;

    // Channels' numbers: a register's own, or the line's.
    template <bool Last, class V>
    static GRADREG_FAST_INLINE typename V::T of_channels(const T* numbers, int64_t i) {
        return Last ? V::load(numbers + i) : V::broadcast(*numbers);
    }

    template <class V, bool Meet>
    struct Sum {
        typename V::T total[Meet ? meeting_sums : projected_sums] = {};

        GRADREG_FAST_INLINE void add(const T* x, const T* u, const T* v, typename V::T mean) {
            const auto centred = V::load(x) - mean, tangent = V::load(v);
            total[0] += tangent;
            total[1] += tangent * centred;
            if constexpr (Meet) {
                const auto cotangent = V::load(u);
                total[2] += cotangent;
                total[3] += cotangent * centred;
                total[4] += cotangent * tangent;
            }
        }
    };

    template <bool Meet>
    static void sum(const NormLayout<T>& norm, const T* u, const T* v, int64_t begin, int64_t end, T* sums) {
        constexpr int count = Meet ? meeting_sums : projected_sums;
        const int64_t length = norm.length();
        if (norm.channels_last)
            return each_register<T, Bytes>(length, [&](auto registers, int64_t i) {
                using V = decltype(registers);
                const auto mean = V::load(norm.mean + i);
                Sum<V, Meet> sum;
                for (int64_t line = begin; line < end; ++line)
                    sum.add(norm.x + line * length + i, u + line * length + i, v + line * length + i, mean);
                for (int f = 0; f < count; ++f)
                    V::store(sums + f * norm.channels + i, V::load(sums + f * norm.channels + i) + sum.total[f]);
            });
        for (int64_t line = begin; line < end; ++line) {
            const int64_t channel = norm.first_channel(line);
            const T mean = norm.mean[channel];
            Sum<Wide, Meet> wide;
            Sum<One, Meet> rest;
            each_register<T, Bytes>(length, [&](auto registers, int64_t i) {
                using V = decltype(registers);
                const int64_t at = line * length + i;
                if constexpr (V::lanes > 1)
                    wide.add(norm.x + at, u + at, v + at, V::broadcast(mean));
                else
                    rest.add(norm.x + at, u + at, v + at, V::broadcast(mean));
            });
            for (int f = 0; f < count; ++f)
                sums[f * norm.channels + channel] += Wide::sum(wide.total[f]) + rest.total[f][0];
        }
    }

    static void sums(const NormLayout<T>& norm, const T* u, const T* v, int64_t stack, int64_t begin, int64_t end,
                     T* sums) {
        for (int64_t k = 0; k < stack; ++k) {
            const int64_t at = k * norm.numbers();
            if (u)
                sum<true>(norm, u + at, v + at, begin, end, sums + k * meeting_sums * norm.channels);
            else
                sum<false>(norm, v, v + at, begin, end, sums + k * projected_sums * norm.channels);
        }
    }

    template <bool Last, bool Meet, bool Result>
    static void line(const NormLayout<T>& norm, const NormPass<T>& pass, int64_t line) {
        const int64_t length = norm.length(), numbers = norm.numbers(), channels = norm.channels;
        const T* const coefficients = pass.coefficients + norm.first_channel(line);
        each_register<T, Bytes>(length, [&](auto registers, int64_t i) {
            using V = decltype(registers);
            const auto c = [&](int64_t j) { return of_channels<Last, V>(coefficients + j * channels, i); };
            const int64_t at = line * length + i;
            const auto centred = V::load(norm.x + at) - c(0);
            auto second = V::broadcast(0);
            if (Meet) second = c(2) * centred + c(3);
            for (int64_t k = 0; k < pass.stack; ++k) {
                const auto tangent = V::load(pass.v + k * numbers + at);
                if (Result) {
                    auto result = c(1) * tangent + c(4 + 4 * k) * centred + c(5 + 4 * k);
                    if (pass.added) result += V::load(pass.added + at);
                    V::store(pass.result + k * numbers + at, result);
                }
                if (Meet) second += c(6 + 4 * k) * V::load(pass.u + k * numbers + at) + c(7 + 4 * k) * tangent;
            }
            if (Meet) V::store(pass.second + at, second);
        });
    }

    template <bool Meet, bool Result>
    static void lines(const NormLayout<T>& norm, const NormPass<T>& pass, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            norm.channels_last ? line<true, Meet, Result>(norm, pass, i) : line<false, Meet, Result>(norm, pass, i);
    }

    static void pass(const NormLayout<T>& norm, const NormPass<T>& pass, int64_t begin, int64_t end) {
        if (!pass.second) return lines<false, true>(norm, pass, begin, end);
        pass.result ? lines<true, true>(norm, pass, begin, end) : lines<true, false>(norm, pass, begin, end);
    }

    static const NormKernels<T>& kernels() {
        static constexpr NormKernels<T> table{&sums, &pass};
        return table;
    }
};

}  // namespace gradreg_fast
