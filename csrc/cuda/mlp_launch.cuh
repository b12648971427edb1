// The MLP operations for one kind of products; each file that includes this instantiates them for another.

#pragma once

#include "cuda/launch.cuh"
#include "cuda/mlp.cuh"

namespace gradreg_fast::cuda {

template <class Arithmetic, class S>
void launch_forward_pull(const ForwardPull<S>& p, const Plan& plan, void* stream) {
    run_forward_pull<Arithmetic>(p, plan, Launcher{static_cast<cudaStream_t>(stream)});
}

template <class Arithmetic, class S>
void launch_push_adjoint(const PushAdjoint<S>& p, const Plan& plan, void* stream) {
    run_push_adjoint<Arithmetic>(p, plan, Launcher{static_cast<cudaStream_t>(stream)});
}

}  // namespace gradreg_fast::cuda
