// What is not a tensor operation: facts about this build and this machine.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"
#include "cpu/places.h"

#if defined(GRADREG_FAST_CUDA)
#include "cuda/runtime.h"
#endif

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of gradreg_fast; the operations are in torch.ops.gradreg_fast.";
    module.def("cpu_capability", [] { return gradreg_fast::capability_name(gradreg_fast::cpu_capability()); });
    module.def(
        "lanes", [](int element_size) { return gradreg_fast::lanes(gradreg_fast::cpu_capability(), element_size); },
        "Numbers in a register of this processor.");
    module.def(
        "mlp_kept_size",
        [](const std::vector<int64_t>& widths, int64_t element_size, int64_t rows, int64_t stack, bool keep) {
            const int64_t lanes = gradreg_fast::lanes(gradreg_fast::cpu_capability(), int(element_size));
            return gradreg_fast::Places(widths, element_size, lanes, rows, stack, keep).total;
        },
        "How many numbers mlp_forward_pull keeps for a network with these widths, the input's first.");
    module.attr("compiler") = __VERSION__;
#if defined(GRADREG_FAST_CUDA)
    module.def("cuda_problem", &gradreg_fast::cuda::problem, "Why CUDA kernels cannot run here; empty if they can.");
#endif
}
