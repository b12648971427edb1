#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Halves<Float16>, Float16>(const ForwardPull<Float16>&, const Plan&, void*);
template void launch_push_adjoint<Halves<Float16>, Float16>(const PushAdjoint<Float16>&, const Plan&, void*);

}  // namespace gradreg_fast::cuda
