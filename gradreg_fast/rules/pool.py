"""Pooling: linear once the winners are known, so maxima keep their indices and averages keep nothing."""

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, map_rows

aten = torch.ops.aten


class MaxPool(Rule):
    """Maximum over windows; the derivative goes to the winner that PyTorch names (the first of equals).

    Args:
        windows: aten's function returning ``(y, indices)``, with its settings bound: ``x [B, C, H, W]``.
    """

    def __init__(self, windows) -> None:
        self.windows = windows

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y, indices = self.windows(x)  # indices into the flattened H * W
        return y, (indices, x.shape)

    def pull(self, saved, parameters, u):
        indices, shape = saved
        K = len(u)
        flat = u.new_zeros(K, *shape[:2], shape[2] * shape[3])  # [K, B, C, H * W]
        index = indices.flatten(2).expand(K, *shape[:2], -1)
        return (flat.scatter_add_(3, index, u.flatten(3)).view(K, *shape),)

    def push(self, saved, parameters, xdots):
        indices, _ = saved
        xdot = xdots[0].flatten(3)
        return xdot.gather(3, indices.flatten(2).expand(*xdot.shape[:3], -1)).view(len(xdot), *indices.shape)


class AveragePool(Rule):
    """An average over windows: linear.

    Args:
        windows: aten's pooling function with its settings bound, of ``[rows, C, H, W]``.
        backward: aten's function of ``(u, x)``, which uses no more than the shape of x.
    """

    def __init__(self, windows, backward) -> None:
        self.windows = windows
        self.backward = backward

    def forward(self, inputs, parameters, extras):
        return self.windows(inputs[0]), (inputs[0].shape,)

    def pull(self, saved, parameters, u):
        (shape,) = saved
        return (map_rows(lambda rows: self.backward(rows, like(rows, (len(rows), *shape[1:]))), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(self.windows, xdots[0])


def like(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape whose values nobody reads."""
    return rows.new_empty(1).expand(shape)
