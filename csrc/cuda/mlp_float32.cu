#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Exact<float>, float>(const ForwardPull<float>&, const Plan&, void*);
template void launch_push_adjoint<Exact<float>, float>(const PushAdjoint<float>&, const Plan&, void*);
template void launch_layerwise_forward_pull<Exact<float>, float>(const ForwardPull<float>&,
                                                                 const LayerwiseMemory<float>&, char*, const Device&,
                                                                 void*);
template void launch_layerwise_push_adjoint<Exact<float>, float>(const PushAdjoint<float>&,
                                                                 const LayerwiseMemory<float>&, char*, int,
                                                                 const Device&, void*);

}  // namespace gradreg_fast::cuda
