#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Halves<Float16>, Float16>(const ForwardPull<Float16>&, const Plan&, void*);
template void launch_push_adjoint<Halves<Float16>, Float16>(const PushAdjoint<Float16>&, const Plan&, void*);
template void launch_layerwise_forward_pull<Halves<Float16>, Float16>(const ForwardPull<Float16>&,
                                                                      const LayerwiseMemory<Float16>&, char*,
                                                                      const Device&, void*);
template void launch_layerwise_push_adjoint<Halves<Float16>, Float16>(const PushAdjoint<Float16>&,
                                                                      const LayerwiseMemory<Float16>&, char*, int,
                                                                      const Device&, void*);

}  // namespace gradreg_fast::cuda
