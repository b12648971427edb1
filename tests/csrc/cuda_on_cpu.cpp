// Small kernels, right and with planted bugs, for the tests of cuda_on_cpu.h. Built by pytest (test_cuda_on_cpu.py)
// and, as a program with -DPROGRAM, for AddressSanitizer.

#include "cuda_on_cpu.h"

namespace {

enum class Bug : int { None, NoBarrierBefore, NoBarrierAfter, OffByOne, ShortBuffer, DivergentBarrier, EarlyExit };

constexpr int tile = 16;

// c [m, n] = a [m, k] b [k, n] by tiles in shared memory.
template <Bug bug>
__global__ void multiply(const float* a, const float* b, float* c, int m, int n, int k) {
    GRADREG_FAST_DYNAMIC_SHARED(memory);
    GRADREG_FAST_STATIC_SHARED(float[tile][tile + 1], right);
    float* left = reinterpret_cast<float*>(memory);
    const int row = blockIdx.y * tile + threadIdx.y, column = blockIdx.x * tile + threadIdx.x;
    if (bug == Bug::EarlyExit && row >= m) return;
    float sum = 0;
    for (int start = 0; start < k; start += tile) {
        const int x = start + threadIdx.x, y = start + threadIdx.y;
        const int last = bug == Bug::OffByOne ? k - 1 : k;
        left[threadIdx.y * tile + threadIdx.x] = row < m && x < last ? a[row * k + x] : 0;
        right[threadIdx.y][threadIdx.x] = y < k && column < n ? b[y * n + column] : 0;
        if (bug != Bug::NoBarrierBefore && !(bug == Bug::DivergentBarrier && threadIdx.x == 0)) __syncthreads();
        for (int i = 0; i < tile; ++i)
            sum += left[threadIdx.y * tile + i] * right[i][threadIdx.x];
        if (bug != Bug::NoBarrierAfter) __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

// sums[row] = sum of a row of a [rows, n], a warp each.
__global__ void add_up(const double* a, double* sums, int n) {
    const int row = threadIdx.x / 32, lane = threadIdx.x % 32;
    double sum = 0;
    for (int i = lane; i < n; i += 32)
        sum += a[row * n + i];
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) sums[row] = sum;
}

enum class Product : int { TF32, BFloat16, Float16 };

// c [16, 8] = a [16, k] b [k, 8] by a warp; `wrong`: with lanes of b exchanged.
template <Product product>
__global__ void multiply_by_warp(const float* a, const float* b, float* c, int k, bool wrong) {
    constexpr int per = product == Product::TF32 ? 1 : 2;
    const int lane = threadIdx.x, group = lane / 4, place = lane % 4, other = wrong ? lane % 8 : group;
    const auto word = [](float low, float high) -> uint32_t {
        using namespace cuda_on_cpu;
        if (product == Product::TF32) return to_tf32(low);
        if (product == Product::BFloat16) return to_bfloat16(low) | uint32_t(to_bfloat16(high)) << 16;
        return to_float16(low) | uint32_t(to_float16(high)) << 16;
    };
    float sum[4] = {};
    for (int start = 0; start < k; start += 8 * per) {
        uint32_t left[4], right[2];
        for (int i = 0; i < 4; ++i) {
            const float* from = a + (group + 8 * (i % 2)) * k + start + per * (place + 4 * (i / 2));
            left[i] = word(from[0], from[per - 1]);
        }
        for (int i = 0; i < 2; ++i) {
            const float* from = b + (start + per * (place + 4 * i)) * 8 + other;
            right[i] = word(from[0], from[8 * (per - 1)]);
        }
        if (product == Product::TF32) cuda_on_cpu::mma_tf32(sum, left, right, sum);
        if (product == Product::BFloat16) cuda_on_cpu::mma_bfloat16(sum, left, right, sum);
        if (product == Product::Float16) cuda_on_cpu::mma_float16(sum, left, right, sum);
    }
    for (int i = 0; i < 4; ++i)
        c[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2] = sum[i];
}

template <Bug bug>
void run_multiply(const float* a, const float* b, float* c, int m, int n, int k, cuda_on_cpu::Launch launch) {
    launch.grid = {unsigned(n + tile - 1) / tile, unsigned(m + tile - 1) / tile, 1};
    launch.block = {tile, tile, 1};
    launch.shared_bytes = tile * tile * sizeof(float) - (bug == Bug::ShortBuffer ? sizeof(float) : 0);
    cuda_on_cpu::launch(launch, [=] { multiply<bug>(a, b, c, m, n, k); });
}

void multiply_with(Bug bug, const float* a, const float* b, float* c, int m, int n, int k, cuda_on_cpu::Launch launch) {
    switch (bug) {
        case Bug::None:
            return run_multiply<Bug::None>(a, b, c, m, n, k, launch);
        case Bug::NoBarrierBefore:
            return run_multiply<Bug::NoBarrierBefore>(a, b, c, m, n, k, launch);
        case Bug::NoBarrierAfter:
            return run_multiply<Bug::NoBarrierAfter>(a, b, c, m, n, k, launch);
        case Bug::OffByOne:
            return run_multiply<Bug::OffByOne>(a, b, c, m, n, k, launch);
        case Bug::ShortBuffer:
            return run_multiply<Bug::ShortBuffer>(a, b, c, m, n, k, launch);
        case Bug::DivergentBarrier:
            return run_multiply<Bug::DivergentBarrier>(a, b, c, m, n, k, launch);
        case Bug::EarlyExit:
            return run_multiply<Bug::EarlyExit>(a, b, c, m, n, k, launch);
    }
}

}  // namespace

#if defined(PROGRAM)

#include <cstdio>
#include <cstdlib>

// The product with the bug of this number; AddressSanitizer ends it where memory is violated.
int main(int count, char** arguments) {
    const Bug bug = Bug(count > 1 ? std::atoi(arguments[1]) : 0);
    const int m = 19, n = 33, k = 21;
    const std::vector<float> a(m * k, 1.0f), b(k * n, 1.0f);
    std::vector<float> c(m * n);
    for (const auto order : {cuda_on_cpu::Order::Forward, cuda_on_cpu::Order::Reversed, cuda_on_cpu::Order::Shuffled})
        multiply_with(bug, a.data(), b.data(), c.data(), m, n, k, {{}, {}, 0, order});
    const bool right = std::all_of(c.begin(), c.end(), [](float value) { return value == k; });
    std::puts(right ? "right" : "wrong");
}

#else

#include <pybind11/pybind11.h>

PYBIND11_MODULE(cuda_on_cpu, module) {
    module.def("multiply", [](int bug, uintptr_t a, uintptr_t b, uintptr_t c, int m, int n, int k, int order,
                              int skipped_barrier) {
        multiply_with(Bug(bug), reinterpret_cast<float*>(a), reinterpret_cast<float*>(b), reinterpret_cast<float*>(c),
                      m, n, k, {{}, {}, 0, cuda_on_cpu::Order(order), skipped_barrier});
    });
    module.def("add_up", [](uintptr_t a, uintptr_t sums, int rows, int n, int order) {
        cuda_on_cpu::launch({{}, {unsigned(32 * rows), 1, 1}, 0, cuda_on_cpu::Order(order)},
                            [=] { add_up(reinterpret_cast<double*>(a), reinterpret_cast<double*>(sums), n); });
    });
    module.def("multiply_by_warp", [](int product, uintptr_t a, uintptr_t b, uintptr_t c, int k, bool wrong) {
        const auto kernel = product == 0   ? multiply_by_warp<Product::TF32>
                            : product == 1 ? multiply_by_warp<Product::BFloat16>
                                           : multiply_by_warp<Product::Float16>;
        cuda_on_cpu::launch({{}, {32, 1, 1}}, [=] {
            kernel(reinterpret_cast<float*>(a), reinterpret_cast<float*>(b), reinterpret_cast<float*>(c), k, wrong);
        });
    });
    module.def("to_float16", &cuda_on_cpu::to_float16);
    module.def("from_float16", &cuda_on_cpu::from_float16);
    module.def("to_bfloat16", &cuda_on_cpu::to_bfloat16);
}

#endif
