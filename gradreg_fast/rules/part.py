"""One of several inputs that lie side by side in one."""

import torch

from gradreg_fast.rules.base import Rule


class Part(Rule):
    """Columns of ``[B, elements of all inputs]`` as an input ``[B, *shape]``.

    Args:
        start: the first column.
        shape: of a sample.
    """

    def __init__(self, start: int, shape: torch.Size) -> None:
        self.start = start
        self.shape = shape

    def __call__(self, rows):
        """The part of ``[..., elements of all inputs]``: ``[..., *shape]``."""
        return rows.narrow(-1, self.start, self.shape.numel()).view(*rows.shape[:-1], *self.shape)

    def forward(self, inputs, parameters, extras):
        return self(inputs[0]), (inputs[0].shape[1],)

    def pull(self, saved, parameters, u):
        whole = u.new_zeros(*u.shape[:2], *saved)
        self(whole).copy_(u)
        return (whole,)

    def push(self, saved, parameters, xdots):
        return self(xdots[0])
