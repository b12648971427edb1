"""Convolutions: linear in x; the three products of a layer are one aten call each."""

import math

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, map_rows, per_sample, shared_rows

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
        return self._convolve(x, weight, bias), (x,)

    def pull(self, saved, parameters, u):
        shape = saved[0].shape
        return (map_rows(lambda rows: self._backward(rows, (len(rows), *shape[1:]), saved[0], parameters, 0), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(lambda rows: self._convolve(rows, parameters[0], None), xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        gradients.add(0, lambda: self._stacked_weight_gradient(u, xdots[0], parameters))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._weight_gradient(d, saved[0], parameters))
        gradients.add(1, lambda: d.flatten(2).sum((0, 2)))

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        (x,) = saved
        tangent = xdots[0][0].addcmul(per_sample(scale, x), x)
        gradients.add(0, lambda: self._stacked_weight_gradient(u, tangent.unsqueeze(0), parameters))
        gradients.add(1, lambda: scale @ u[0].flatten(2).sum(2))

    def flops(self, parameters, shape):
        return 2 * shape.numel() * math.prod(parameters[0].shape[1:])

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        zeros = [0] * len(self.stride)
        return aten.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def _backward(self, u, shape, x, parameters, position) -> Tensor:
        """The data gradient (position 0, which needs only the shape of x) or the weight gradient (position 1)."""
        x = x if x.shape == shape else u.new_empty(1).expand(shape)
        mask = [position == 0, position == 1, False]
        zeros = [0] * len(self.stride)
        return aten.convolution_backward(
            u, x, parameters[0], None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )[position]

    def _weight_gradient(self, u: Tensor, x: Tensor, parameters) -> Tensor:
        return self._backward(u, x.shape, x, parameters, 1)

    def _stacked_weight_gradient(self, u: Tensor, xdot: Tensor, parameters) -> Tensor:
        if shared_rows(u):
            return self._weight_gradient(u[:, 0], xdot.sum(1), parameters)
        return self._weight_gradient(u.flatten(0, 1), xdot.flatten(0, 1), parameters)


