// What is not a tensor operation: facts about this build and this machine.

#include <pybind11/pybind11.h>

#include "cpu/capability.h"
#include "cpu/mlp.h"

#if defined(GRADREG_FAST_CUDA)
#include "cuda/runtime.h"
#endif

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of gradreg_fast; the operations are in torch.ops.gradreg_fast.";
    module.def("cpu_capability", [] { return gradreg_fast::capability_name(gradreg_fast::cpu_capability()); });
    module.def(
        "lanes", [](int element_size) { return gradreg_fast::lanes(gradreg_fast::cpu_capability(), element_size); },
        "Numbers in a register of this processor.");
    module.def("serves_plain", &gradreg_fast::serves_plain,
               "Whether products read a weight with so many inputs as it is.");
    module.attr("compiler") = __VERSION__;
#if defined(GRADREG_FAST_CUDA)
    module.def("cuda_problem", &gradreg_fast::cuda::problem, "Why CUDA kernels cannot run here; empty if they can.");
#endif
}
