"""Batch normalisation in training by compiled passes: sums over each channel, then one pass, for every sweep."""

import torch
from torch import Tensor

from gradreg_fast.rules.activation_passes import laid_out
from gradreg_fast.rules.base import is_channels_last
from gradreg_fast.rules.norm import BatchNormTrain


class BatchNormPasses(BatchNormTrain):
    """As in PyTorch lines; tangents and second-order terms come from one pass, adjoints and gradients from one."""

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        x = x if x.is_contiguous() or is_channels_last(x) else x.contiguous()
        return super().forward((x,), parameters, extras)

    def push(self, saved, parameters, xdots):
        return self._project(saved, parameters[0], xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, push=False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        (v,), x = xdots, saved[0]
        stacks = (laid_out(stack, x.shape, x.stride()) for stack in (u, v))
        second, gradient, *ydot = torch.ops.gradreg_fast.norm_meet(*stacks, *_constants(saved, parameters[0]), push)
        gradients.add(0, lambda: gradient.to(x.dtype))
        return (second,), ydot[0] if push else None

    def descend(self, saved, parameters, d, second, gradients, below):
        if d is None or not below:
            return super().descend(saved, parameters, d, second, gradients, below)
        x = saved[0]
        d, term = (None if t is None else laid_out(t, x.shape, x.stride()) for t in (d, second and second[0]))
        constants = _constants(saved, parameters[0])
        result, sums = torch.ops.gradreg_fast.norm_project(d.unsqueeze(0), *constants, term)
        gradients.add(0, lambda: sums[0, 1].to(x.dtype))
        gradients.add(1, lambda: sums[0, 0].to(x.dtype))
        return (result.squeeze(0),)

    def _project(self, saved, weight, stack):
        x = saved[0]
        stack = laid_out(stack, x.shape, x.stride())
        return torch.ops.gradreg_fast.norm_project(stack, *_constants(saved, weight), None)[0]


def _constants(saved: tuple, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """x, and mean, inverse and weight in the precision that kernels compute in."""
    x, *statistics = saved
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x, *(None if tensor is None else tensor.to(wide) for tensor in (*statistics, weight))
