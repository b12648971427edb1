// What kernels need of the device, in CUDA's own words or, compiled by a C++ compiler, in those of the header that runs
// them on the CPU for tests (tests/csrc/cuda_on_cpu.h).

#pragma once

#include "cuda/numbers.h"

#if defined(__CUDACC__)
#define GRADREG_FAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define GRADREG_FAST_STATIC_SHARED(type, name) __shared__ std::remove_cv_t<type> name
#else
#include "cuda_on_cpu.h"
#endif

namespace gradreg_fast::cuda {

// `narrow<S>(value)`: a wide number as it is stored. `to_tf32`: rounded to what such products read. `mma_...`: d += a b
// over a warp, in PTX's layouts.
template <class S>
__device__ __forceinline__ S narrow(Wide<S> value) {
    return value;
}

#if defined(__CUDACC__)

template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
template <>
__device__ __forceinline__ Float16 narrow<Float16>(float value) {
    Float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
GRADREG_FAST_INLINE BFloat16::operator float() const {
    union {
        uint32_t word;
        float value;
    } result{uint32_t(bits) << 16};
    return result.value;
}
GRADREG_FAST_INLINE Float16::operator float() const {
    float value = 0;
#if defined(__CUDA_ARCH__)
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
#endif
    return value;
}

__device__ __forceinline__ float to_tf32(float value) {
    uint32_t word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
    return __uint_as_float(word);
}

#define GRADREG_FAST_MMA(name, instruction)                                                                    \
    __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {      \
        asm("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                   \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
    }
GRADREG_FAST_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
GRADREG_FAST_MMA(mma_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
GRADREG_FAST_MMA(mma_float16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef GRADREG_FAST_MMA

#else

template <>
inline BFloat16 narrow<BFloat16>(float value) {
    return {cuda_on_cpu::to_bfloat16(value)};
}
template <>
inline Float16 narrow<Float16>(float value) {
    return {cuda_on_cpu::to_float16(value)};
}
GRADREG_FAST_INLINE BFloat16::operator float() const {
    return cuda_on_cpu::from_bfloat16(bits);
}
GRADREG_FAST_INLINE Float16::operator float() const {
    return cuda_on_cpu::from_float16(bits);
}

inline float to_tf32(float value) {
    return cuda_on_cpu::bits<float>(cuda_on_cpu::to_tf32(value));
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cuda_on_cpu::mma_tf32(d, a, b, d);
}
inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cuda_on_cpu::mma_bfloat16(d, a, b, d);
}
inline void mma_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cuda_on_cpu::mma_float16(d, a, b, d);
}

#endif

// The sum over a warp, in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_xor_sync(~0u, value, step);
    return value;
}

}  // namespace gradreg_fast::cuda
