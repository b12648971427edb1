#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Exact<double>, double>(const ForwardPull<double>&, const Plan&, void*);
template void launch_push_adjoint<Exact<double>, double>(const PushAdjoint<double>&, const Plan&, void*);
template void launch_layerwise_forward_pull<Exact<double>, double>(const ForwardPull<double>&,
                                                                   const LayerwiseMemory<double>&, char*, const Device&,
                                                                   void*);
template void launch_layerwise_push_adjoint<Exact<double>, double>(const PushAdjoint<double>&,
                                                                   const LayerwiseMemory<double>&, char*, int,
                                                                   const Device&, void*);

}  // namespace gradreg_fast::cuda
