"""Convolutions with what follows them as one node, by compiled operations: one for each sweep."""

import torch

from gradreg_fast.rules.base import Rule, add_values, per_sample
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.pool import Windows

NONE, MAX, MAX_FIRST, AVERAGE = range(4)  # as in csrc/cpu/conv.h


class ConvBlock(Rule):
    """``y = pool(phi(W * x + b))``, or ``phi(pool(W * x + b))`` for maxima; parameters as `Conv`'s.

    Args:
        conv: the convolution.
        kind: number of phi in csrc/common/activation.h.
        settings: of phi.
        curvature_free: whether phi is piecewise linear.
        pooling: `NONE`, `MAX` of phi's values, `MAX_FIRST` of those below, or `AVERAGE` of phi's.
        windows: of the pooling.
        channels_last: layout of resulting images.
    """

    compiled = True
    fresh = True

    def __init__(
        self,
        conv: Conv,
        kind: int,
        settings: tuple[float, float],
        curvature_free: bool,
        pooling: int,
        windows: Windows,
        channels_last: bool,
    ) -> None:
        sizes = (*conv.stride, *conv.padding, *conv.dilation, pooling, *windows.size, *windows.stride, *windows.padding)
        self.options = [*sizes, kind, channels_last]
        self.settings = settings
        self.curvature_free = curvature_free
        self.conv = conv
        self.reduction = windows.stride[0] * windows.stride[1]

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y, kept = torch.ops.gradreg_fast.conv_forward(x, *parameters, self.options, self.settings)
        return y, (x, kept)

    def pull(self, saved, parameters, u):
        return tuple(self._pull(saved, parameters, u, None, False, True, False))

    def push(self, saved, parameters, xdots):
        return self._push(saved, parameters, None, xdots[0], True, False, False)[0]

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, push=False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        curved, wanted = not self.curvature_free, gradients.wants(0)
        results = iter(self._push(saved, parameters, u, xdots[0], push, curved, wanted))
        ydot = next(results) if push else None
        second = next(results) if curved else None
        gradients.add(0, lambda: next(results))
        return (second,), ydot

    def descend(self, saved, parameters, d, second, gradients, below):
        u = None if d is None else d.unsqueeze(0)
        term = None if second is None else second[0]
        results = iter(self._pull(saved, parameters, u, term, gradients.wants(0), below, gradients.wants(1)))
        pulled = next(results) if below else None
        gradients.add(0, lambda: next(results))
        gradients.add(1, lambda: next(results))
        return None if pulled is None else (pulled.squeeze(0),)

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        tangent = add_values(xdots[0], scale, saved[0])
        gradients.add(0, lambda: self._push(saved, parameters, u, tangent, False, False, True)[0])
        d = per_sample(scale, u[0]) * u
        gradients.add(1, lambda: self._pull(saved, parameters, d, None, False, False, True)[0])

    def flops(self, parameters, shape, inputs):
        return self.conv.flops(parameters, shape, inputs) * self.reduction

    def _push(self, saved, parameters, u, xdot, push, curvature, gradient):
        return torch.ops.gradreg_fast.conv_push(
            xdot, u, saved[1], parameters[0], self.options, self.settings, push, curvature, gradient
        )

    def _pull(self, saved, parameters, u, second, gradient, pull, bias):
        x, kept = saved
        return torch.ops.gradreg_fast.conv_pull(
            u, second, x if gradient else None, kept, parameters[0], x.shape, self.options, self.settings, pull, bias
        )
