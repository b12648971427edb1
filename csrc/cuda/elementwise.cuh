// The passes of an activation over arrays: one read of every operand and one write of every result, whatever the stack.
//
// A thread takes as many numbers as one access to memory moves (16 bytes), of each member of a stack: derivatives are
// computed once for all K. Sums and functions are in float32, of float64 in itself. Memory bounds all of them: while an
// H100 moves the 8 bytes of the smallest pass over float32 (3.35 TB/s), it has time for 160 operations (67 TFLOP/s; 16
// bytes and 160 in float64), and the heaviest activation's two derivatives take about 60. With sixteen bits it is 80.
//
// Kernel activate_kernel: y = phi(z), and a bit of the slope for each number where that is enough
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 1 and writes 1 number an element, and a byte of mask per 16 bytes
//   registers  64
//
// Kernel slope_kernel: phi' v for a stack
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads K + 1 numbers an element (K and a byte per 16 with a mask), writes K
//   registers  64
//
// Kernel meet_kernel: sum_k u xdot and phi' xdot
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 2 K + 1 numbers an element, writes K + 1
//   registers  64
//
// Kernel bend_kernel: phi' d + phi'' w
//   dtypes     float32 float64 bfloat16 float16
//   bound      memory: reads 3 numbers an element, writes 1
//   registers  64

#pragma once

#include "common/dispatch.h"
#include "cuda/elementwise.h"
#include "cuda/vector.cuh"

namespace gradreg_fast::cuda {

constexpr int elementwise_threads = 256;

// The first of this thread's numbers.
template <class S>
__device__ __forceinline__ int64_t first_number() {
    return (int64_t(blockIdx.x) * elementwise_threads + threadIdx.x) * width<S>;
}

// phi' of this thread's numbers.
template <class S>
__device__ __forceinline__ void slopes(const Elementwise& pass, int64_t first, Wide<S> (&slope)[width<S>]) {
    using C = Wide<S>;
    if (pass.mask) {
        const int bits = pass.mask[first / width<S>];
        const C other = pass.kind == Kind::LeakyReLU ? C(pass.settings.first) : C(0);
        for (int i = 0; i < width<S>; ++i)
            slope[i] = bits >> i & 1 ? C(1) : other;
        return;
    }
    load(static_cast<const S*>(pass.kept), first, pass.count, slope);
    with_kind<ScalarMath<C>>(pass.kind, pass.settings, [&](const auto& phi) {
        for (int i = 0; i < width<S>; ++i)
            slope[i] = phi.derivatives(slope[i]).slope;
    });
}

template <class S>
__global__ void __launch_bounds__(elementwise_threads, 4)
    activate_kernel(const Elementwise pass, const S* z, S* y, uint8_t* mask) {
    using C = Wide<S>;
    const int64_t first = first_number<S>();
    if (first >= pass.count) return;
    C numbers[width<S>];
    load(z, first, pass.count, numbers);
    int bits = 0;
    with_kind<ScalarMath<C>>(pass.kind, pass.settings, [&](const auto& phi) {
        using Phi = std::decay_t<decltype(phi)>;
        for (int i = 0; i < width<S>; ++i) {
            const C value = phi.value(numbers[i]);
            if constexpr (Phi::curvature_free)
                bits |= int(phi.derivatives(Phi::from_output ? value : numbers[i]).slope == C(1)) << i;
            numbers[i] = value;
        }
    });
    store(numbers, first, pass.count, y);
    if (mask) mask[first / width<S>] = uint8_t(bits);
}

template <class S>
__global__ void __launch_bounds__(elementwise_threads, 4)
    slope_kernel(const Elementwise pass, const S* v, int64_t stack, S* result) {
    using C = Wide<S>;
    const int64_t first = first_number<S>();
    if (first >= pass.count) return;
    C slope[width<S>], numbers[width<S>];
    slopes<S>(pass, first, slope);
    for (int64_t k = 0; k < stack; ++k) {
        load(v + k * pass.count, first, pass.count, numbers);
        for (int i = 0; i < width<S>; ++i)
            numbers[i] *= slope[i];
        store(numbers, first, pass.count, result + k * pass.count);
    }
}

template <class S>
__global__ void __launch_bounds__(elementwise_threads, 4)
    meet_kernel(const Elementwise pass, const S* u, const S* xdot, int64_t stack, S* w, S* ydot) {
    using C = Wide<S>;
    const int64_t first = first_number<S>();
    if (first >= pass.count) return;
    C slope[width<S>], sum[width<S>] = {}, cotangent[width<S>], tangent[width<S>];
    if (ydot) slopes<S>(pass, first, slope);
    for (int64_t k = 0; k < stack; ++k) {
        load(u + k * pass.count, first, pass.count, cotangent);
        load(xdot + k * pass.count, first, pass.count, tangent);
        for (int i = 0; i < width<S>; ++i)
            sum[i] += cotangent[i] * tangent[i];
        if (!ydot) continue;
        for (int i = 0; i < width<S>; ++i)
            tangent[i] *= slope[i];
        store(tangent, first, pass.count, ydot + k * pass.count);
    }
    store(sum, first, pass.count, w);
}

template <class S>
__global__ void __launch_bounds__(elementwise_threads, 4)
    bend_kernel(const Elementwise pass, const S* d, const S* w, bool below, S* result) {
    using C = Wide<S>;
    const int64_t first = first_number<S>();
    if (first >= pass.count) return;
    C numbers[width<S>], adjoint[width<S>] = {}, term[width<S>];
    load(static_cast<const S*>(pass.kept), first, pass.count, numbers);
    if (d) load(d, first, pass.count, adjoint);
    load(w, first, pass.count, term);
    with_kind<ScalarMath<C>>(pass.kind, pass.settings, [&](const auto& phi) {
        for (int i = 0; i < width<S>; ++i) {
            const auto derivatives = phi.derivatives(numbers[i]);
            // where the slope has vanished, so has the cotangent below it
            const C divisor = !below ? C(1) : derivatives.slope == C(0) ? C(INFINITY) : derivatives.slope;
            numbers[i] = derivatives.slope * adjoint[i] + derivatives.bend / divisor * term[i];
        }
    });
    store(numbers, first, pass.count, result);
}

}  // namespace gradreg_fast::cuda
