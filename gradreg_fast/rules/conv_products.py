"""Runs of convolutions, each with its activation, as one node on CUDA devices: products over gathered pixels.

Each product has in its epilogue what lies between it and the next one: phi going up, phi' going down. So cotangents and
adjoints between layers are those of z, and only the topmost activation takes a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, add_values
from gradreg_fast.rules.conv import Conv, channels_last

BEND_WHERE_FLAT = (6, 7, 8, 9)  # kinds of which phi'' u does not follow from phi' u: u itself is kept, too


@dataclass(frozen=True)
class Layer:
    """A convolution and the activation behind it.

    Attributes:
        conv: the convolution.
        kind: number of phi in csrc/common/activation.h; 0 for none.
        settings: of phi.
        straight: whether phi is piecewise linear.
    """

    conv: Conv
    kind: int
    settings: tuple[float, float]
    straight: bool


class ConvProducts(Rule):
    """``y = phi_n(W_n * ... phi_1(W_1 * x + b_1) ... + b_n)``, channels last; parameters are ``W_1, b_1, W_2, ...``.

    What `curvature` meets is each layer's cotangent of z, and of y where that is needed.
    """

    compiled = True
    fresh = True

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.curvature_free = all(layer.straight for layer in layers)

    def forward(self, inputs, parameters, extras):
        x, xs, states, weights = channels_last(inputs[0]), [], [], []
        for layer, weight, bias in zip(self.layers, parameters[::2], parameters[1::2], strict=True):
            xs.append(x)
            weights.append(channels_last(weight))
            x, state = torch.ops.gradreg_fast.image_forward(x, weights[-1], bias, *_settings(layer, layer.conv, x))
            states.append(None if not layer.kind else state if state.numel() else x)  # else the slope follows from y
        return x, (xs, states, weights)

    def pull(self, saved, parameters, u):
        return self.pull_keeping(saved, parameters, u)[0]

    def pull_keeping(self, saved, parameters, u):
        above, cotangents = _images(u), []
        u_z = self._slope(saved, -1, above, None)
        for i in reversed(range(len(self.layers))):
            cotangents.append((u_z, above if self.layers[i].kind in BEND_WHERE_FLAT else None))
            u_z, above = self._pull(saved, i, u_z, None, keep=True)
        return (u_z,), cotangents[::-1]

    def push(self, saved, parameters, xdots):
        tangent = _images(xdots[0])
        for i in range(len(self.layers)):
            (tangent,) = self._push(saved, i, tangent, None, True)
        return tangent

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, push=False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        tangent, second = _images(xdots[0]), [None] * len(self.layers)
        for i, (layer, (u_z, above)) in enumerate(zip(self.layers, u, strict=True)):
            gradients.add(2 * i, lambda i=i, u_z=u_z, tangent=tangent: self._gradient(saved, i, u_z, tangent))
            curved, further = not layer.straight, push or i < len(self.layers) - 1
            if not (curved or further):
                break
            results = self._push(saved, i, tangent, (u_z if above is None else above) if curved else None, further)
            second[i] = results.pop() if curved else None
            tangent = results[0] if further else None
        return tuple(second), tangent if push else None

    def meet_proportional(self, saved, parameters, u, xdots, scale, gradients, push):
        tangent, (xs, *_) = _images(xdots[0]), saved
        for i, (u_z, _) in enumerate(u):
            both = add_values(tangent, scale, xs[i])
            gradients.add(2 * i, lambda i=i, u_z=u_z, both=both: self._gradient(saved, i, u_z, both))
            gradients.add(2 * i + 1, lambda u_z=u_z: scale @ u_z[0].flatten(2).sum(2))
            if push or i < len(self.layers) - 1:
                (tangent,) = self._push(saved, i, tangent, None, True)
        return tangent if push else None

    def descend(self, saved, parameters, d, second, gradients, below):
        second = second or (None,) * len(self.layers)
        d_z = self._slope(saved, -1, None if d is None else _images(d.unsqueeze(0)), second[-1])
        for i in reversed(range(len(self.layers))):
            if d_z is not None:
                gradients.add(2 * i, lambda i=i, d_z=d_z: self._gradient(saved, i, d_z, saved[0][i].unsqueeze(0)))
                gradients.add(2 * i + 1, lambda d_z=d_z: d_z.sum((0, 1, 3, 4)))
            if not below and not any(map(gradients.wants, range(2 * i))):
                return None
            term = second[i - 1] if i else None
            d_z = self._slope(saved, i - 1, None, term) if d_z is None else self._pull(saved, i, d_z, term)[0]
        return (d_z.squeeze(0),)

    def flops(self, parameters, shape, inputs):
        shape, total = inputs[0], 0
        for layer, weight in zip(self.layers, parameters[::2], strict=True):
            shape = layer.conv.output_shape(shape, weight)
            total += layer.conv.flops((weight,), shape, None)
        return total

    def _slope(self, saved, i: int, v: Tensor | None, second: Tensor | None) -> Tensor | None:
        """``phi_i' v + second``, of which one may be None; None if both are."""
        layer = self.layers[i]
        if not layer.kind or (v is None and second is None):
            return v
        return torch.ops.gradreg_fast.image_slope(v, saved[1][i], second, layer.kind, layer.settings)

    def _pull(self, saved, i: int, u: Tensor, second: Tensor | None, keep: bool = False) -> tuple:
        """``v = W_i^T * u``, with the activation below: ``phi' v + second``, and v where that is needed."""
        (xs, states, weights), layer = saved, self.layers[i]
        below = self.layers[i - 1] if i else Layer(layer.conv, 0, (0.0, 0.0), True)
        above = keep and below.kind in BEND_WHERE_FLAT
        given = states[i - 1] if i else None, second, xs[i].shape[2:], *_settings(below, layer.conv, u), above
        results = torch.ops.gradreg_fast.image_pull(u, weights[i], *given)
        return results if above else (*results, None)

    def _push(self, saved, i: int, tangent: Tensor, u: Tensor | None, push: bool) -> list[Tensor]:
        _, states, weights = saved
        layer = self.layers[i]
        given = u, states[i], weights[i], *_settings(layer, layer.conv, tangent), push
        return list(torch.ops.gradreg_fast.image_push(tangent, *given))

    def _gradient(self, saved, i: int, u: Tensor, x: Tensor) -> Tensor:
        layer = self.layers[i]
        return torch.ops.gradreg_fast.image_gradient(u, x, saved[2][i], *_settings(layer, layer.conv, x))


def _settings(phi: Layer, conv: Conv, x: Tensor) -> tuple[list[int], tuple[float, ...]]:
    """The operations' options and settings, with PyTorch's own word on whether float32 convolutions may be TF32's."""
    options = [*conv.stride, *conv.padding, *conv.dilation, 0, 1, 1, 1, 1, 0, 0, phi.kind, 1]
    if x.dtype != torch.float32:
        return options, phi.settings
    return options, (*phi.settings, float(torch.backends.cudnn.conv.fp32_precision == "tf32"))


def _images(stack: Tensor) -> Tensor:
    """A stack ``[K, B, C, H, W]`` of images that lie channels last, without gaps."""
    return channels_last(stack.flatten(0, 1)).unflatten(0, stack.shape[:2])
