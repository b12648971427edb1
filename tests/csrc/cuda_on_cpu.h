// Runs CUDA kernels on the CPU, for tests: the very source that nvcc compiles, with a fiber for each thread of a block.
//
//   cuda_on_cpu::launch({grid, block, shared_bytes, order}, [&] { kernel<...>(arguments...); });
//
// runs the blocks one after another, and the threads of each in turns, from barrier to barrier, in the order asked for:
// a warp after another, each as far as it gets, from the first or from the last; or all threads, shuffled, some warps
// slower than others. What a missing barrier lets through in one order shows in another. Shared memory is made anew for
// each block, filled with bytes that are NaN in every format; bytes written around it are noticed, and AddressSanitizer
// sees its exact size. `launch` throws std::runtime_error where threads wait for each other in vain, leave while others
// wait at a barrier, or write beyond shared memory. A launch can be told to pass over one of the kernel's barriers: a
// test that does not see the difference proves nothing, or that the barrier is not needed.
//
// There are: threadIdx, blockIdx, blockDim, gridDim; dynamic and static shared memory (two macros, below);
// __syncthreads, __syncwarp, shuffles of whole warps, atomicAdd; mma.sync of tf32, bfloat16 and float16, the rounding
// to these, and ldmatrix; cp.async, which copies at once if threads run forward, else when the thread waits for it.
// wgmma and TMA are out of reach. x86-64 and GCC.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

// In CUDA: `extern __shared__ __align__(16) unsigned char name[]` and `__shared__ type name`.
#define GRADREG_FAST_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::block().dynamic.data()
#define GRADREG_FAST_STATIC_SHARED(type, name)               \
    static char name##_identity;                             \
    auto& name = *reinterpret_cast<std::remove_cv_t<type>*>( \
        cuda_on_cpu::block().fixed(&name##_identity, sizeof(std::remove_cv_t<type>)))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // set whenever a fiber goes on

namespace cuda_on_cpu {

enum class Order { Forward, Reversed, Shuffled };

constexpr int warp_size = 32;
constexpr size_t most_shared_bytes = 227 * 1024;    // of sm_90 and sm_100
constexpr size_t unasked_shared_bytes = 48 * 1024;  // of a kernel that has not asked for more

struct Launch {
    dim3 grid, block;
    size_t shared_bytes = 0;
    Order order = Order::Forward;
    int skipped_barrier = -1;  // number of the __syncthreads that has no effect, counted from 0 in each block
    size_t most_shared_bytes = cuda_on_cpu::most_shared_bytes;  // static arrays included
};

// Memory with known bytes on either side.
class Guarded {
  public:
    explicit Guarded(size_t bytes) : bytes(bytes), memory(static_cast<unsigned char*>(::operator new(total(), align))) {
        std::memset(memory.get(), 0xFF, total());
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(memory.get(), margin);
        ASAN_POISON_MEMORY_REGION(memory.get() + margin + bytes, margin);
#endif
    }
    Guarded(Guarded&&) = default;
    ~Guarded() {
#if defined(__SANITIZE_ADDRESS__)
        if (memory) ASAN_UNPOISON_MEMORY_REGION(memory.get(), total());
#endif
    }
    unsigned char* data() const { return memory.get() + margin; }
    size_t size() const { return bytes; }
    bool intact() const {
#if defined(__SANITIZE_ADDRESS__)
        return true;  // or it would have been told
#else
        const auto untouched = [](const unsigned char* from) {
            return std::all_of(from, from + margin, [](unsigned char byte) { return byte == 0xFF; });
        };
        return untouched(memory.get()) && untouched(data() + bytes);
#endif
    }

  private:
    static constexpr size_t margin = 4096;
    static constexpr std::align_val_t align{128};
    struct Free {
        void operator()(unsigned char* pointer) const { ::operator delete(pointer, align); }
    };
    size_t total() const { return bytes + 2 * margin; }
    size_t bytes;
    std::unique_ptr<unsigned char, Free> memory;
};

enum class State { Ready, AtWarpBarrier, AtBlockBarrier, Done };

// An asynchronous copy that is under way; null: zeros.
struct Copy {
    void* to;
    const void* from;
    int bytes;
    void land() const {
        if (from)
            std::memcpy(to, from, bytes);
        else
            std::memset(to, 0, bytes);
    }
};

struct Fiber {
    void* stack_pointer;
    char* stack;
    dim3 thread;
    int linear;
    State state;
    int barriers;                           // met so far
    std::vector<std::vector<Copy>> copies;  // groups, the last one open
};

struct Warp {
    int waiting = 0;
    uint32_t words[warp_size][8];  // what lanes show each other
};

struct Block {
    Guarded dynamic;
    std::map<const char*, Guarded> statics;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    int waiting = 0, done = 0;
    int skipped_barrier;
    Order order;
    const char* fault = nullptr;
    const std::function<void()>* kernel;

    unsigned char* fixed(const char* identity, size_t bytes) {
        return statics.try_emplace(identity, bytes).first->second.data();
    }
};

inline Block* the_block;
inline Fiber* the_fiber;
inline void* the_scheduler;  // its stack pointer while a fiber runs

inline Block& block() {
    return *the_block;
}

// Stacks, once for all launches.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_bytes = 1 << 18;
#else
constexpr size_t stack_bytes = 1 << 16;
#endif

inline char* stack_of(int index) {
    static std::vector<char*> stacks;
    while (int(stacks.size()) <= index) {
        void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("no memory for stacks");
        stacks.push_back(static_cast<char*>(memory));
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stacks[index], stack_bytes);  // of frames that were left, not returned from
#endif
    return stacks[index];
}

// Stores the stack pointer and goes on from another.
__attribute__((naked, noipa)) static void switch_stacks(void** /*store: rdi*/, void* /*load: rsi*/) {
    asm volatile(
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

#if defined(__SANITIZE_ADDRESS__)
inline void* scheduler_fake_stack;
inline const void* scheduler_stack;
inline size_t scheduler_stack_bytes;
#endif

// From a fiber back to the scheduler.
inline void leave(State state) {
    Fiber& fiber = *the_fiber;
    fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(state == State::Done ? nullptr : &fake, scheduler_stack, scheduler_stack_bytes);
#endif
    switch_stacks(&fiber.stack_pointer, the_scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

// Ends the launch.
inline void fail(const char* message) {
    the_block->fault = message;
    leave(State::Done);
}

// From the scheduler to a fiber, until that waits or is done.
inline void resume(Fiber& fiber) {
    the_fiber = &fiber;
    threadIdx = fiber.thread;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, stack_bytes);
#endif
    switch_stacks(&the_scheduler, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    (*the_block->kernel)();
    ++the_block->done;
    leave(State::Done);
    __builtin_unreachable();
}

inline Fiber new_fiber(int linear, dim3 thread) {
    char* stack = stack_of(linear);
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 1;  // as a call leaves it: 8 below a multiple of 16
    *--top = reinterpret_cast<void*>(&enter);
    for (int saved = 0; saved < 6; ++saved)
        *--top = nullptr;
    return {top, stack, thread, linear, State::Ready, 0, {{}}};
}

inline void release(Block& block, State from, int first, int count) {
    for (int i = first; i < first + count; ++i)
        if (block.fibers[i].state == from) block.fibers[i].state = State::Ready;
}

inline void run_block(Block& block, Order order, std::mt19937& random) {
    const int threads = int(block.fibers.size());
    std::vector<int> turns(threads);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == Order::Reversed) std::reverse(turns.begin(), turns.end());
    const bool shuffled = order == Order::Shuffled;
    const int group = shuffled ? threads : warp_size;  // that go as far as they can before the next do
    // of warps, eighths: else they would keep step, as far as they meet
    std::vector<unsigned> pace(block.warps.size());
    for (unsigned& eighths : pace)
        eighths = 1 + random() % 8;
    std::vector<char> rests(pace.size());
    while (block.done < threads) {
        if (shuffled) {
            std::shuffle(turns.begin(), turns.end(), random);
            for (size_t w = 0; w < pace.size(); ++w)
                rests[w] = random() % 8 >= pace[w];
        }
        bool progress = false;
        for (int first = 0; first < threads; first += group)
            for (bool again = true; again;) {
                again = false;
                for (int turn = first; turn < std::min(first + group, threads); ++turn) {
                    const int i = turns[turn];
                    if (block.fibers[i].state != State::Ready) continue;
                    progress = true;
                    if (rests[i / warp_size]) continue;
                    resume(block.fibers[i]);
                    if (block.fault) throw std::runtime_error(block.fault);
                    again = !shuffled;
                }
            }
        if (!progress)
            throw std::runtime_error(block.done ? "a thread left while others wait at a barrier"
                                                : "threads wait at different barriers");
    }
}

// Runs a kernel: `kernel` is called once by each thread.
inline void launch(const Launch& launch, const std::function<void()>& kernel) {
    const int threads = int(launch.block.x * launch.block.y * launch.block.z);
    if (threads < 1 || threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
    std::mt19937 random(1);
    gridDim = launch.grid;
    blockDim = launch.block;
    for (unsigned index = 0; index < launch.grid.x * launch.grid.y * launch.grid.z; ++index) {
        blockIdx = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                    index / launch.grid.x / launch.grid.y};
        Block block{Guarded(launch.shared_bytes), {}, {}, std::vector<Warp>((threads + warp_size - 1) / warp_size)};
        block.skipped_barrier = launch.skipped_barrier;
        block.order = launch.order;
        block.kernel = &kernel;
        for (int i = 0; i < threads; ++i) {
            const unsigned t = unsigned(i), width = launch.block.x, height = launch.block.y;
            block.fibers.push_back(new_fiber(i, {t % width, t / width % height, t / width / height}));
        }
        the_block = &block;
        run_block(block, launch.order, random);
        size_t bytes = launch.shared_bytes;
        bool intact = block.dynamic.intact();
        for (const auto& [identity, memory] : block.statics) {
            bytes += memory.size();
            intact = intact && memory.intact();
        }
        if (!intact) throw std::runtime_error("written beyond shared memory");
        if (bytes > launch.most_shared_bytes) throw std::runtime_error("more shared memory than there is");
    }
}

inline int lane() {
    return the_fiber->linear % warp_size;
}

inline Warp& warp() {
    return the_block->warps[the_fiber->linear / warp_size];
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
    cuda_on_cpu::Block& block = cuda_on_cpu::block();
    const int threads = int(block.fibers.size());
    if (cuda_on_cpu::the_fiber->barriers++ == block.skipped_barrier) return;
    if (++block.waiting < threads) return cuda_on_cpu::leave(cuda_on_cpu::State::AtBlockBarrier);
    block.waiting = 0;
    cuda_on_cpu::release(block, cuda_on_cpu::State::AtBlockBarrier, 0, threads);
}

inline void __syncwarp(unsigned mask = ~0u) {
    using namespace cuda_on_cpu;
    Block& block = cuda_on_cpu::block();
    if (mask != ~0u) fail("only whole warps can meet here");
    const int first = the_fiber->linear / warp_size * warp_size;
    const int lanes = std::min(warp_size, int(block.fibers.size()) - first);
    if (++warp().waiting < lanes) return leave(State::AtWarpBarrier);
    warp().waiting = 0;
    release(block, State::AtWarpBarrier, first, lanes);
}

namespace cuda_on_cpu {

// What the lane with this number holds.
template <class T>
T exchange(T value, int from) {
    static_assert(sizeof(T) <= 8);
    std::memcpy(warp().words[lane()], &value, sizeof(T));
    __syncwarp();
    std::memcpy(&value, warp().words[from], sizeof(T));
    __syncwarp();
    return value;
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return cuda_on_cpu::exchange(value, from % cuda_on_cpu::warp_size);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_cpu::exchange(value, cuda_on_cpu::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int step) {
    const int from = cuda_on_cpu::lane() + step;
    return cuda_on_cpu::exchange(value, from < cuda_on_cpu::warp_size ? from : cuda_on_cpu::lane());
}
template <class T>
T __shfl_up_sync(unsigned, T value, int step) {
    const int from = cuda_on_cpu::lane() - step;
    return cuda_on_cpu::exchange(value, from >= 0 ? from : cuda_on_cpu::lane());
}

template <class T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}
inline void __threadfence() {}

namespace cuda_on_cpu {

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float from_bfloat16(uint16_t value) {
    return bits<float>(uint32_t(value) << 16);
}
// To nearest, ties to even.
inline uint16_t to_bfloat16(float value) {
    const uint32_t word = bits<uint32_t>(value);
    if (std::isnan(value)) return 0x7FFF;
    return uint16_t((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

inline float from_float16(uint16_t value) {
    const int exponent = value >> 10 & 31, fraction = value & 1023;
    const float sign = value >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24));
}
inline uint16_t to_float16(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return 0x7FFF;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7C00;
    int exponent = size > 0 ? std::max(std::ilogb(size), -14) : -14;
    const int steps = int(std::nearbyint(std::ldexp(size, 10 - exponent)));  // may round up to the next exponent
    return uint16_t(sign | (steps < 1024 ? steps : ((exponent + 15) << 10) + steps - 1024));
}

// To 10 bits of fraction, ties away from zero.
inline uint32_t to_tf32(float value) {
    const uint32_t word = bits<uint32_t>(value);
    return std::isfinite(value) ? (word + 0x1000) & ~0x1FFFu : word;
}

// d = a b + c over a warp. Element(words, i): number i of what a lane holds of a [16, k] or b [k, 8], which has `per`
// numbers a word; PTX's layouts, with group = lane / 4 and place = lane % 4.
template <int per, class Element>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], Element&& element) {
    uint32_t* shown = warp().words[lane()];
    std::copy_n(a, 4, shown);
    std::copy_n(b, 2, shown + 4);
    __syncwarp();
    const int group = lane() / 4, place = lane() % 4;
    float result[4];
    for (int i = 0; i < 4; ++i) {
        const int row = group + 8 * (i / 2), column = 2 * place + i % 2;
        double sum = c[i];
        for (int k = 0; k < 8 * per; ++k) {
            const int holder = k % (4 * per) / per, half = k / (4 * per), within = k % per;
            const uint32_t left = warp().words[4 * (row % 8) + holder][row / 8 + 2 * half];
            const uint32_t right = warp().words[4 * column + holder][4 + half];
            sum += double(element(left, within)) * double(element(right, within));
        }
        result[i] = float(sum);
    }
    __syncwarp();
    std::copy_n(result, 4, d);
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, with .trans if `transposed`: lane 8 i + r gives row r of matrix i, and gets
// numbers 2 place and 2 place + 1 of its row `group` or, transposed, of its column.
template <bool transposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
    const uint64_t mine = reinterpret_cast<uintptr_t>(row);
    if (mine % 16) fail("ldmatrix wants addresses that are multiples of 16");
    std::memcpy(warp().words[lane()], &mine, 8);
    __syncwarp();
    const int group = lane() / 4, place = lane() % 4;
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half) {
            const int line = transposed ? 2 * place + half : group, number = transposed ? group : 2 * place + half;
            uint64_t from;
            std::memcpy(&from, warp().words[8 * i + line], 8);
            uint16_t found;
            std::memcpy(&found, reinterpret_cast<const char*>(from) + 2 * number, 2);
            to[i] = half ? to[i] | uint32_t(found) << 16 : found;
        }
    __syncwarp();
}

inline void copy_async(void* to, const void* from, int bytes, bool there) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || (there && reinterpret_cast<uintptr_t>(from) % bytes))
        fail("asynchronous copies want addresses that are multiples of their size");
    if (!from) fail("asynchronous copies want an address in memory, also of nothing");
    const Copy copy{to, there ? from : nullptr, bytes};
    if (the_block->order == Order::Forward)
        copy.land();
    else
        the_fiber->copies.back().push_back(copy);
}
inline void close_copies() {
    the_fiber->copies.emplace_back();
}
inline void wait_for_copies(int still_open) {
    auto& groups = the_fiber->copies;
    while (int(groups.size()) > still_open + 1) {
        for (const Copy& copy : groups.front())
            copy.land();
        groups.erase(groups.begin());
    }
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32, which reads the upper 19 bits.
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    mma<1>(d, a, b, c, [](uint32_t word, int) { return bits<float>(word & ~0x1FFFu); });
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    mma<2>(d, a, b, c, [](uint32_t word, int i) { return from_bfloat16(uint16_t(word >> 16 * i)); });
}
// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
inline void mma_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    mma<2>(d, a, b, c, [](uint32_t word, int i) { return from_float16(uint16_t(word >> 16 * i)); });
}

}  // namespace cuda_on_cpu
