#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_image_forward<Exact<double>, double>(const Convolution&, const ImageForward<double>&,
                                                          const Device&, void*);
template void launch_image_push<Exact<double>, double>(const Convolution&, const ImagePush<double>&, const Device&,
                                                       void*);
template void launch_image_pull<Exact<double>, double>(const Convolution&, int64_t, const double*, const double*,
                                                       const Down<double>&, const Device&, void*);
template void launch_image_gradient<Exact<double>, double>(const Convolution&, int64_t, const double*, const double*,
                                                           const GradientPlan&, Wide<double>*, double*, const Device&,
                                                           void*);

}  // namespace gradreg_fast::cuda
