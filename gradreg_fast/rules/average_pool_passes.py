"""Averages over windows of an activation, by compiled passes."""

import torch

from gradreg_fast.rules.activation_passes import FROM_MASK
from gradreg_fast.rules.base import Rule, dense, laid_out
from gradreg_fast.rules.conv import channels_last
from gradreg_fast.rules.pool import AveragePool


class AveragePoolPasses(Rule):
    """``y = A phi(z)``; keeps one bit for each place of a window where phi is piecewise linear, else z.

    Args:
        pool: A, whose windows are the same wherever they lie.
        kind: number of phi in csrc/common/activation.h.
        settings: of phi.
    """

    compiled = True
    fresh = True

    def __init__(self, pool: AveragePool, kind: int, settings: tuple[float, float]) -> None:
        self.windows = pool.shape
        self.divisors = pool.counts_padding, pool.divisor
        self.phi = kind, settings
        self.curvature_free = self.homogeneous = kind in FROM_MASK

    def forward(self, inputs, parameters, extras):
        (z,) = inputs
        # the CPU's lanes run along the channels; copies cost no more than what PyTorch's lines move between
        z = channels_last(z) if z.device.type == "cpu" and z.dim() == 4 else dense(z)
        options = *self.windows.options(z), *self.divisors
        y, mask = torch.ops.gradreg_fast.average_pool(z, options, *self.phi)
        return y, (mask if self.curvature_free else z, options, (z.shape, z.stride()), (y.shape, y.stride()))

    def pull(self, saved, parameters, u):
        return (self._pull(saved, u, None),)

    def push(self, saved, parameters, xdots):
        kept, options, z, _ = saved
        return torch.ops.gradreg_fast.average_pool_push(kept, laid_out(xdots[0], *z), options, *self.phi)

    def curvature(self, saved, parameters, u, xdots, gradients):
        if self.curvature_free:
            return (None,)
        _, options, z, y = saved
        stacks = laid_out(u, *y), laid_out(xdots[0], *z)
        return (torch.ops.gradreg_fast.average_pool_meet(*stacks, options, *self.phi),)

    def adjoint(self, saved, parameters, d, second):
        _, _, z, (shape, _) = saved
        (term,) = (None,) if second is None else second
        d = torch.zeros(shape, dtype=term.dtype, device=term.device) if d is None else d
        return (self._pull(saved, d.unsqueeze(0), None if term is None else laid_out(term, *z)).squeeze(0),)

    def _pull(self, saved, u, second):
        """``phi' A^T u``, plus ``phi'' second`` if it is given."""
        kept, options, _, y = saved
        return torch.ops.gradreg_fast.average_pool_pull(kept, laid_out(u, *y), second, options, *self.phi)
