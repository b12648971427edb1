#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_forward_pull<Exact<double>, double>(const ForwardPull<double>&, const Plan&, void*);
template void launch_push_adjoint<Exact<double>, double>(const PushAdjoint<double>&, const Plan&, void*);

}  // namespace gradreg_fast::cuda
