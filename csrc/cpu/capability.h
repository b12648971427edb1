// Which instruction set this processor has, among those that the kernels are compiled for.

#pragma once

namespace gradreg_fast {

enum class Capability : int { Baseline, AVX2, AVX512 };

// Asked once; GRADREG_FAST_CPU_CAPABILITY=baseline|avx2|avx512 in the environment may lower it, for tests and reports.
Capability cpu_capability();
const char* capability_name(Capability capability);

// Numbers of this size in a register.
constexpr int lanes(Capability capability, int element_size) {
    return (16 << int(capability)) / element_size;
}

// Of the tables of kernels, one for each instruction set, this processor's.
template <class Table>
const Table& best_of(const Table& (*avx512)(), const Table& (*avx2)(), const Table& (*baseline)()) {
    switch (cpu_capability()) {
        case Capability::AVX512:
            return avx512();
        case Capability::AVX2:
            return avx2();
        case Capability::Baseline:
            break;
    }
    return baseline();
}

}  // namespace gradreg_fast
