#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template <class S>
void launch_between(const Down<S>& down, void* stream) {
    launch_between_layers(down, Launcher{stream, threads});
}

template void launch_between<float>(const Down<float>&, void*);
template void launch_between<double>(const Down<double>&, void*);
template void launch_between<BFloat16>(const Down<BFloat16>&, void*);
template void launch_between<Float16>(const Down<Float16>&, void*);

}  // namespace gradreg_fast::cuda
