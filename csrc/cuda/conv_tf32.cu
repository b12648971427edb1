#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_image_forward<TF32, float>(const Convolution&, const ImageForward<float>&, const Device&, void*);
template void launch_image_push<TF32, float>(const Convolution&, const ImagePush<float>&, const Device&, void*);
template void launch_image_pull<TF32, float>(const Convolution&, int64_t, const float*, const float*,
                                             const Down<float>&, const Device&, void*);
template void launch_image_gradient<TF32, float>(const Convolution&, int64_t, const float*, const float*,
                                                 const GradientPlan&, Wide<float>*, float*, const Device&, void*);

}  // namespace gradreg_fast::cuda
