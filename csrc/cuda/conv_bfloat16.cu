#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template void launch_image_forward<Halves<BFloat16>, BFloat16>(const Convolution&, const ImageForward<BFloat16>&,
                                                               const Device&, void*);
template void launch_image_push<Halves<BFloat16>, BFloat16>(const Convolution&, const ImagePush<BFloat16>&,
                                                            const Device&, void*);
template void launch_image_pull<Halves<BFloat16>, BFloat16>(const Convolution&, int64_t, const BFloat16*,
                                                            const BFloat16*, const Down<BFloat16>&, const Device&,
                                                            void*);
template void launch_image_gradient<Halves<BFloat16>, BFloat16>(const Convolution&, int64_t, const BFloat16*,
                                                                const BFloat16*, const GradientPlan&, Wide<BFloat16>*,
                                                                BFloat16*, const Device&, void*);

}  // namespace gradreg_fast::cuda
