// Which instruction set the kernels use, among those that they are compiled for.

#pragma once

#include <type_traits>

namespace gradreg_fast {

enum class Capability : int { Baseline, AVX2, AVX512 };

// A library that is built ahead of time has the kernels for all, and asks the processor once;
// GRADREG_FAST_CPU_CAPABILITY=baseline|avx2|avx512 in the environment may lower it, for tests and reports. One that is
// built at first use has them for GRADREG_FAST_CAPABILITY alone, which was found the same way.
Capability cpu_capability();
const char* capability_name(Capability capability);

// Numbers of this size in a register.
constexpr int lanes(Capability capability, int element_size) {
    return (16 << int(capability)) / element_size;
}

template <Capability capability>
using CapabilityConstant = std::integral_constant<Capability, capability>;

// Of tables of kernels, one for each instruction set, this processor's: tables(capability), a constant.
template <class Tables>
auto& best_of(Tables&& tables) {
#if defined(GRADREG_FAST_CAPABILITY)
    return tables(CapabilityConstant<Capability(GRADREG_FAST_CAPABILITY)>{});
#else
    switch (cpu_capability()) {
        case Capability::AVX512:
            return tables(CapabilityConstant<Capability::AVX512>{});
        case Capability::AVX2:
            return tables(CapabilityConstant<Capability::AVX2>{});
        case Capability::Baseline:
            break;
    }
    return tables(CapabilityConstant<Capability::Baseline>{});
#endif
}

}  // namespace gradreg_fast
