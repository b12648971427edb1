#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_image_forward<Exact<float>, float>(const Convolution&, const ImageForward<float>&, const Device&,
                                                        void*);
template void launch_image_push<Exact<float>, float>(const Convolution&, const ImagePush<float>&, const Device&, void*);
template void launch_image_pull<Exact<float>, float>(const Convolution&, int64_t, const float*, const float*,
                                                     const Down<float>&, const Device&, void*);
template void launch_image_gradient<Exact<float>, float>(const Convolution&, int64_t, const float*, const float*,
                                                         const GradientPlan&, Wide<float>*, float*, const Device&,
                                                         void*);

}  // namespace gradreg_fast::cuda
