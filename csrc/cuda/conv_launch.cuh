// The convolutions' products for one kind of arithmetic; each file that includes this instantiates them for another.

#pragma once

#include "cuda/conv.cuh"
#include "cuda/mlp_launch.cuh"

namespace gradreg_fast::cuda {

template <class Arithmetic, class S>
void launch_image_forward(const Convolution& c, const ImageForward<S>& p, const Device& device, void* stream) {
    Convolve<Arithmetic, Launcher>(c, device, {stream, threads}).forward(p);
}

template <class Arithmetic, class S>
void launch_image_push(const Convolution& c, const ImagePush<S>& p, const Device& device, void* stream) {
    Convolve<Arithmetic, Launcher>(c, device, {stream, threads}).push(p);
}

template <class Arithmetic, class S>
void launch_image_pull(const Convolution& c, int64_t stack, const S* u, const S* weight, const Down<S>& below,
                       const Device& device, void* stream) {
    Convolve<Arithmetic, Launcher>(c, device, {stream, threads}).pull(stack, u, weight, below);
}

template <class Arithmetic, class S>
void launch_image_gradient(const Convolution& c, int64_t stack, const S* u, const S* x, const GradientPlan& plan,
                           Wide<S>* sums, S* gradient, const Device& device, void* stream) {
    Convolve<Arithmetic, Launcher>(c, device, {stream, threads}).gradient(stack, u, x, plan, sums, gradient);
}

}  // namespace gradreg_fast::cuda
