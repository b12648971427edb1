"""Operations that join branches, and arithmetic with constants."""

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule


class Add(Rule):
    """``a + factor b``, shapes broadcast."""

    def __init__(self, factor: float = 1) -> None:
        self.factor = factor

    def forward(self, inputs, parameters, extras):
        a, b = inputs
        return torch.add(a, b, alpha=self.factor), (a.shape, b.shape)

    def pull(self, saved, parameters, u):
        a, b = (unbroadcast(u, shape) for shape in saved)
        return a, b if self.factor == 1 else b * self.factor

    def push(self, saved, parameters, xdots):
        a, b = (broadcastable(xdot, max(map(len, saved))) for xdot in xdots)
        return torch.add(a, b, alpha=self.factor)


class Cat(Rule):
    """Concatenation along a dimension other than the batch's."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.couples_samples = dim == 0

    def forward(self, inputs, parameters, extras):
        dim = self.dim % inputs[0].dim()
        return torch.cat(list(inputs), dim), (dim + 1, [x.shape[dim] for x in inputs])

    def pull(self, saved, parameters, u):
        dim, sizes = saved
        return u.split(sizes, dim)

    def push(self, saved, parameters, xdots):
        return torch.cat(list(xdots), saved[0])


class Affine(Rule):
    """``factor x + offset`` with numbers for both."""

    def __init__(self, factor: float = 1, offset: float = 0) -> None:
        self.factor = factor
        self.offset = offset

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = x if self.factor == 1 else x * self.factor
        return y + self.offset if self.offset else y, ()

    def pull(self, saved, parameters, u):
        return (u if self.factor == 1 else u * self.factor,)

    def push(self, saved, parameters, xdots):
        return self.pull(saved, parameters, xdots[0])[0]


class Dropout(Rule):
    """Multiplication by one random mask ``[B, ...]``, scaled by ``1 / (1 - probability)``, the same in all sweeps."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        # drawn in the order of the shape, as torch.dropout does, even where the layers here keep their channels last
        mask = torch.dropout(torch.ones(x.shape, dtype=x.dtype, device=x.device), self.probability, True)
        mask = torch.empty_like(x).copy_(mask)
        return x * mask, (mask,)

    def pull(self, saved, parameters, u):
        return (u * saved[0],)

    def push(self, saved, parameters, xdots):
        return xdots[0] * saved[0]


def unbroadcast(stack: Tensor, shape: torch.Size) -> Tensor:
    """Sum a stack ``[K, *broadcast shape]`` to ``[K, *shape]``."""
    if stack.shape[1:] == shape:
        return stack
    surplus = stack.dim() - 1 - len(shape)
    if surplus:
        stack = stack.sum(list(range(1, 1 + surplus)))
    return stack.sum_to_size(len(stack), *shape)


def broadcastable(stack: Tensor, dims: int) -> Tensor:
    """A stack ``[K, *shape]`` with ones after K, so that it broadcasts as ``shape`` does in `dims` dimensions."""
    return stack.reshape(len(stack), *(1,) * (dims - stack.dim() + 1), *stack.shape[1:])
