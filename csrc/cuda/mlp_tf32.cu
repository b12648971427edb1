#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<TF32, float>(const ForwardPull<float>&, const Plan&, void*);
template void launch_push_adjoint<TF32, float>(const PushAdjoint<float>&, const Plan&, void*);

}  // namespace gradreg_fast::cuda
