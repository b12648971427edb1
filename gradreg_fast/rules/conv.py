"""Convolutions: linear in x; the three products of a layer are one aten call each."""

import math

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, is_channels_last, map_rows, per_sample, shared_rows

aten = torch.ops.aten


class Conv(Rule):
    """``y = W * x + b`` with zero padding, for any number of spatial dimensions.

    Parameters are ``W [out, in / groups, *kernel]`` and ``b [out]`` or None.
    """

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        weight, bias = parameters
        if x.dim() != weight.dim():
            raise ValueError(f"a convolution's input must be a batch with {weight.dim()} dimensions, got {x.dim()}")
        if x.device.type == "cpu" and x.dim() == 4 and x.dtype != torch.float64:  # float64 does not run on oneDNN
            x, weight = channels_last(x), channels_last(weight)
        return self._convolve(x, weight, bias), (x, weight)

    def pull(self, saved, parameters, u):
        return (map_rows(lambda rows: self._data_gradient(rows, *saved), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(lambda rows: self._convolve(rows, saved[1], None), xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        gradients.add(0, lambda: self._stacked_weight_gradient(u, xdots[0], saved[1]))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._weight_gradient(d, *saved))
        gradients.add(1, lambda: d.flatten(2).sum((0, 2)))

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        x, weight = saved
        tangent = xdots[0][0].addcmul(per_sample(scale, x), x)
        gradients.add(0, lambda: self._stacked_weight_gradient(u, tangent.unsqueeze(0), weight))
        gradients.add(1, lambda: scale @ u[0].flatten(2).sum(2))

    def flops(self, parameters, shape):
        return 2 * shape.numel() * math.prod(parameters[0].shape[1:])

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        zeros = [0] * len(self.stride)
        return aten.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def _data_gradient(self, u: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if len(u) != len(x):  # only the shape and the layout of x matter
            layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
            x = torch.empty((len(u), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
        return self._backward(u, x, weight, 0)

    def _weight_gradient(self, u: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(u, x, weight, 1)

    def _backward(self, u: Tensor, x: Tensor, weight: Tensor, position: int) -> Tensor:
        mask = [position == 0, position == 1, False]
        zeros = [0] * len(self.stride)
        return aten.convolution_backward(
            u, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )[position]

    def _stacked_weight_gradient(self, u: Tensor, xdot: Tensor, weight: Tensor) -> Tensor:
        if shared_rows(u):
            return self._weight_gradient(u[:, 0], xdot.sum(1), weight)
        return self._weight_gradient(u.flatten(0, 1), xdot.flatten(0, 1), weight)


def channels_last(x: Tensor) -> Tensor:
    """The tensor with its channels next to each other, which oneDNN and PyTorch's pooling prefer, by up to 5x."""
    x = x.contiguous(memory_format=torch.channels_last)
    _, C, H, W = x.shape
    if C == 1:  # both layouts at once: say which
        return x.as_strided(x.shape, (H * W, 1, W, 1))
    return x
