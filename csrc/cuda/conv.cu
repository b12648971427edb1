#include "cuda/conv_launch.cuh"

namespace gradreg_fast::cuda {

template <class S>
void launch_between(const Down<S>& down, void* stream) {
    const int64_t blocks = ceiling(down.lines * ceiling(down.columns, width<S>), threads);
    if (blocks) Launcher{stream}(between_layers<S>, int(blocks), 1, 0, down);
}

template <class S>
void launch_bias_gradient(const S* d, int64_t lines, int columns, int slices, Wide<S>* sums, S* gradient,
                          void* stream) {
    Gradients<S> g{};
    g.layers[0].bias_gradient = gradient, g.layers[0].bias_lines = d, g.layers[0].outputs = columns;
    g.rows = lines, g.slices = slices, g.slice_sums = sums, g.slice_size = columns;
    const Launcher launch{stream};
    launch(bias_gradients<S>, int(ceiling(columns, 32)), slices, 0, g);
    launch(sum_slices<S>, int(ceiling(columns, threads)), 1, 0, SliceSums<S>{columns, slices, 1, 1, sums, gradient});
}

template void launch_between<float>(const Down<float>&, void*);
template void launch_between<double>(const Down<double>&, void*);
template void launch_between<BFloat16>(const Down<BFloat16>&, void*);
template void launch_between<Float16>(const Down<Float16>&, void*);
template void launch_bias_gradient<float>(const float*, int64_t, int, int, float*, float*, void*);
template void launch_bias_gradient<double>(const double*, int64_t, int, int, double*, double*, void*);
template void launch_bias_gradient<BFloat16>(const BFloat16*, int64_t, int, int, float*, BFloat16*, void*);
template void launch_bias_gradient<Float16>(const Float16*, int64_t, int, int, float*, Float16*, void*);

}  // namespace gradreg_fast::cuda
