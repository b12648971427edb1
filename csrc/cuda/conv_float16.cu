#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_image_forward<Halves<Float16>, Float16>(const Convolution&, const ImageForward<Float16>&,
                                                             const Device&, void*);
template void launch_image_push<Halves<Float16>, Float16>(const Convolution&, const ImagePush<Float16>&, const Device&,
                                                          void*);
template void launch_image_pull<Halves<Float16>, Float16>(const Convolution&, int64_t, const Float16*, const Float16*,
                                                          const Down<Float16>&, const Device&, void*);
template void launch_image_gradient<Halves<Float16>, Float16>(const Convolution&, int64_t, const Float16*,
                                                              const Float16*, const GradientPlan&, Wide<Float16>*,
                                                              Float16*, const Device&, void*);

}  // namespace gradreg_fast::cuda
