"""Maxima over windows, and a piecewise linear activation of them, by compiled passes."""

import torch

from gradreg_fast.rules.base import Rule, dense, laid_out
from gradreg_fast.rules.pool import Windows

MOST_PLACES = 128  # of a window, as in csrc/common/max_pool.h


class MaxPoolPasses(Rule):
    """``y = phi(max z)``; keeps a byte for each window: its winner's place and the slope of phi.

    Args:
        windows: over images, the last two dimensions of z.
        kind: number of phi in csrc/common/activation.h; 0 for none.
        settings: of phi.
    """

    compiled = True
    fresh = True
    homogeneous = True

    def __init__(self, windows: Windows, kind: int, settings: tuple[float, float]) -> None:
        self.windows = windows
        self.phi = kind, settings

    def forward(self, inputs, parameters, extras):
        z = dense(inputs[0])
        options = self.windows.options(z)
        y, code = torch.ops.gradreg_fast.max_pool(z, options, *self.phi)
        return y, (code, options, z.shape, z.stride())

    def pull(self, saved, parameters, u):
        code, options, *_ = saved
        u = laid_out(u, code.shape, code.stride())
        return (torch.ops.gradreg_fast.max_pool_pull(code, u, options, *self.phi),)

    def push(self, saved, parameters, xdots):
        code, options, shape, strides = saved
        xdot = laid_out(xdots[0], shape, strides)
        return torch.ops.gradreg_fast.max_pool_push(code, xdot, options, *self.phi)
