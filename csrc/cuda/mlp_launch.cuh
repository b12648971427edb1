// The MLP operations for one kind of products; each file that includes this instantiates them for another.

#pragma once

#include "cuda/layerwise.cuh"
#include "cuda/mlp.cuh"
#include "cuda/start.cuh"

namespace gradreg_fast::cuda {

template <class Arithmetic, class S>
void launch_forward_pull(const ForwardPull<S>& p, const Plan& plan, void* stream) {
    run_forward_pull<Arithmetic>(p, plan, Launcher{stream, threads});
}

template <class Arithmetic, class S>
void launch_push_adjoint(const PushAdjoint<S>& p, const Plan& plan, void* stream) {
    run_push_adjoint<Arithmetic>(p, plan, Launcher{stream, threads});
}

template <class Arithmetic, class S>
void launch_layerwise_forward_pull(const ForwardPull<S>& p, const LayerwiseMemory<S>& also, char* workspace,
                                   const Device& device, void* stream) {
    Layerwise<Arithmetic, Launcher>(device, {stream, threads}).forward_pull(p, also, workspace);
}

template <class Arithmetic, class S>
void launch_layerwise_push_adjoint(const PushAdjoint<S>& p, const LayerwiseMemory<S>& also, char* workspace, int size,
                                   const Device& device, void* stream) {
    Layerwise<Arithmetic, Launcher>(device, {stream, threads}).push_adjoint(p, also, workspace, size);
}

}  // namespace gradreg_fast::cuda
