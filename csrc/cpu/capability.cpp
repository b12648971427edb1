#include "cpu/capability.h"

#include <cstdlib>
#include <cstring>

namespace gradreg_fast {

#if defined(GRADREG_FAST_CAPABILITY)

Capability cpu_capability() {
    return Capability(GRADREG_FAST_CAPABILITY);
}

#else

static Capability best() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return Capability::AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::AVX2;
#endif
    return Capability::Baseline;
}

static Capability chosen() {
    const Capability available = best();
    const char* wish = std::getenv("GRADREG_FAST_CPU_CAPABILITY");
    for (int lower = 0; wish && lower < int(available); ++lower)
        if (std::strcmp(wish, capability_name(Capability(lower))) == 0) return Capability(lower);
    return available;
}

Capability cpu_capability() {
    static const Capability capability = chosen();
    return capability;
}

#endif

const char* capability_name(Capability capability) {
    switch (capability) {
        case Capability::AVX512:
            return "avx512";
        case Capability::AVX2:
            return "avx2";
        case Capability::Baseline:
            break;
    }
    return "baseline";
}

}  // namespace gradreg_fast
