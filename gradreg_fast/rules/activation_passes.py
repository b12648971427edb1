"""Activations by compiled passes: a sweep reads each operand and writes each result once, in place where it may."""

from copy import copy
from functools import cached_property

import torch

from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.base import dense, laid_out

FROM_MASK = (1, 2)  # kinds whose slope is one bit
FROM_RESULT = (4, 5)  # kinds with `from_output` in csrc/common/activation.h, and curvature


class ActivationPasses(Activation):
    """``y = phi(z)``; keeps one bit a number where phi is piecewise linear, else y or z alone.

    Args:
        activation: the rule in PyTorch lines.
        kind: number of phi in csrc/common/activation.h.
        settings: of phi.
    """

    compiled = True
    fresh = True
    overwrites = False

    def __init__(self, activation: Activation, kind: int, settings: tuple[float, float]) -> None:
        self.curvature_free = activation.curvature_free
        self.homogeneous = activation.homogeneous
        self.meets_below = activation.meets_below
        self.phi = kind, settings
        self.in_place = activation.in_place

    @cached_property
    def overwriting(self):
        rule = copy(self)
        rule.overwrites = self.curvature_free
        return rule

    def evaluate(self, z):
        z, masked = dense(z), self.phi[0] in FROM_MASK
        if self.in_place:
            y, mask = z, torch.ops.gradreg_fast.activate_(z, *self.phi, masked)
        else:
            y, mask = torch.ops.gradreg_fast.activate(z, *self.phi, masked)
        kept = mask if masked else y if self.phi[0] in FROM_RESULT else z
        return y, (kept, z.shape, z.stride())

    def slope(self, saved, v):
        kept, shape, strides = saved
        v = laid_out(v, shape, strides)
        stack = v if v.dim() > len(shape) else v.unsqueeze(0)
        if self.overwrites:
            torch.ops.gradreg_fast.activation_slope_(kept, stack, *self.phi)
            return v
        return torch.ops.gradreg_fast.activation_slope(kept, stack, *self.phi).view_as(v)

    def bend(self, saved, w):
        return self._bend(saved, None, w)

    def slope_and_bend(self, saved, d, w):
        return self._bend(saved, d, w)

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, push=False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        if self.curvature_free:
            return (None,), self.slope(saved, xdots[0]) if push else None
        kept, shape, strides = saved
        stacks = [laid_out(stack, shape, strides) for stack in (u[0] if self.meets_below else u, xdots[0])]
        w, *ydot = torch.ops.gradreg_fast.activation_meet(kept, *stacks, *self.phi, push)
        return (w,), ydot[0] if push else None

    def _bend(self, saved, d, w):
        kept, shape, strides = saved
        d, w = (None if term is None else laid_out(term, shape, strides) for term in (d, w))
        return torch.ops.gradreg_fast.activation_bend(kept, d, w, *self.phi, self.meets_below)
