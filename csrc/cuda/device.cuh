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
// over a warp, in PTX's layouts. `load_matrices`: four fragments of 8 rows of 16 bytes, whose addresses lanes 8 i
// to 8 i + 7 give, each as it lies or, of 16-bit numbers, transposed. `copy_async`: bytes to shared memory that are on
// their way, zeros unless they are `there`: `from` is an address in the array either way; they have arrived when
// `wait_for_copies` has returned in the thread that copies, for all but the last so many groups that it closed.
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

__device__ __forceinline__ uint32_t to_tf32(uint32_t word) {
    return __float_as_uint(to_tf32(__uint_as_float(word)));
}

template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    const uint32_t from = uint32_t(__cvta_generic_to_shared(row));
    if constexpr (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
}

template <int bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    const uint32_t place = uint32_t(__cvta_generic_to_shared(to));
    const int count = there ? bytes : 0;
    if constexpr (bytes == 16)  // past the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(count) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(bytes), "r"(count)
                     : "memory");
}
__device__ __forceinline__ void close_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int still_open>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(still_open) : "memory");
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
inline uint32_t to_tf32(uint32_t word) {
    return cuda_on_cpu::to_tf32(cuda_on_cpu::bits<float>(word));
}
template <bool transposed>
inline void load_matrices(uint32_t (&to)[4], const void* row) {
    cuda_on_cpu::load_matrices<transposed>(to, row);
}
template <int bytes>
inline void copy_async(void* to, const void* from, bool there) {
    cuda_on_cpu::copy_async(to, from, bytes, there);
}
inline void close_copies() {
    cuda_on_cpu::close_copies();
}
template <int still_open>
inline void wait_for_copies() {
    cuda_on_cpu::wait_for_copies(still_open);
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
