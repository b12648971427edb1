"""Normalisations by compiled passes: sums over each mean, then one pass over the elements, for every sweep."""

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, dense, laid_out
from gradreg_fast.rules.norm import BatchNormTrain, GroupNorm, LayerNorm, RootMeanSquareNorm


class Passes(Rule):
    """A normalisation whose saved tensors are x, mean (None: none) and inverse.

    Tangents and second-order terms come from one pass, adjoints and parameters' gradients from another.

    Attributes:
        operations: names of the operations behind `project` and `meet`.
    """

    compiled = True
    fresh = True
    operations = "norm_project", "norm_meet"

    def pull(self, saved, parameters, u):
        return (self._project(saved, parameters[0], u),)

    def push(self, saved, parameters, xdots):
        return self._project(saved, parameters[0], xdots[0], push=True)

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, push=False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        x, weight = saved[0], parameters[0]
        if not x.numel():
            gradients.add(0, lambda: torch.zeros_like(weight))
            return (torch.zeros_like(x),), torch.empty_like(xdots[0]) if push else None
        operation = getattr(torch.ops.gradreg_fast, self.operations[1])
        stacks = (laid_out(stack, x.shape, x.stride()) for stack in (u, xdots[0]))
        second, gradient, *ydot = operation(*stacks, *_constants(saved, weight), push)
        gradients.add(0, lambda: gradient.to(weight.dtype).view(weight.shape))
        return (second,), ydot[0] if push else None

    def descend(self, saved, parameters, d, second, gradients, below):
        x = saved[0]
        if d is None or not below or not x.numel():
            return super().descend(saved, parameters, d, second, gradients, below)
        d, term = (None if t is None else laid_out(t, x.shape, x.stride()) for t in (d, second and second[0]))
        wanted = any(gradients.wants(i) for i in range(len(parameters)))
        operation = getattr(torch.ops.gradreg_fast, self.operations[0])
        result, *sums = operation(d.unsqueeze(0), *_constants(saved, parameters[0]), term, False, wanted)
        for i, parameter in enumerate(parameters):
            gradients.add(i, lambda i=i, like=parameter: sums[0][i].to(like.dtype).view(like.shape))
        return (result.squeeze(0),)

    def _project(self, saved, weight, stack, push=False):
        x = saved[0]
        if not x.numel():
            return torch.empty_like(stack)
        operation = getattr(torch.ops.gradreg_fast, self.operations[0])
        return operation(laid_out(stack, x.shape, x.stride()), *_constants(saved, weight), None, push, False)[0]


class BatchNormPasses(Passes, BatchNormTrain):
    """Batch normalisation with batch statistics."""

    def forward(self, inputs, parameters, extras):
        return super().forward((dense(inputs[0]),), parameters, extras)


class GroupNormPasses(Passes, GroupNorm):
    """Group and instance normalisation."""


class LayerNormPasses(Passes, LayerNorm):
    """Layer normalisation."""

    operations = "layer_norm_project", "layer_norm_meet"

    def forward(self, inputs, parameters, extras):
        return super().forward((inputs[0].contiguous(),), parameters, extras)


class RootMeanSquarePasses(Passes, RootMeanSquareNorm):
    """Root mean square normalisation."""

    operations = LayerNormPasses.operations

    def forward(self, inputs, parameters, extras):
        x = inputs[0].contiguous()
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        y, inverse = torch.ops.aten._fused_rms_norm(x, self.shape, parameters[0], eps)
        return y, (x, None, inverse)


def _constants(saved: tuple, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """x, and mean, inverse and weight in the precision that kernels compute in."""
    x, *statistics = saved
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x, *[_as(wide, tensor) for tensor in (*statistics, weight)]


def _as(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    """The tensor in a dtype, contiguous; most are."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()
