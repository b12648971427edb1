#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Halves<BFloat16>, BFloat16>(const ForwardPull<BFloat16>&, const Plan&, void*);
template void launch_push_adjoint<Halves<BFloat16>, BFloat16>(const PushAdjoint<BFloat16>&, const Plan&, void*);
template void launch_layerwise_forward_pull<Halves<BFloat16>, BFloat16>(const ForwardPull<BFloat16>&,
                                                                        const LayerwiseMemory<BFloat16>&, char*,
                                                                        const Device&, void*);
template void launch_layerwise_push_adjoint<Halves<BFloat16>, BFloat16>(const PushAdjoint<BFloat16>&,
                                                                        const LayerwiseMemory<BFloat16>&, char*, int,
                                                                        const Device&, void*);

}  // namespace gradreg_fast::cuda
