"""Choices by masks, and rows and elements taken from given places or added there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.call import Call, Parameter, function, is_real
from gradreg_fast.rules.constant import as_value
from gradreg_fast.rules.index import Index
from gradreg_fast.rules.merge import broadcastable, unbroadcast


class Where(Rule):
    """One of two where a mask holds, the other elsewhere, shapes broadcast. The only parameter is the mask.

    Args:
        numbers: for each of the two, the number that it is, or None for a value.
    """

    def __init__(self, numbers: Sequence[float | None]) -> None:
        self.numbers = tuple(numbers)

    def forward(self, inputs, parameters, extras):
        y = torch.where(parameters[0], *self._both(inputs, self.numbers))
        return y, (y.dim(), [x.shape for x in inputs])

    def pull(self, saved, parameters, u):
        sides = [torch.where(parameters[0], u, 0), torch.where(parameters[0], 0, u)]
        own = [side for side, number in zip(sides, self.numbers, strict=True) if number is None]
        return tuple(unbroadcast(side, shape) for side, shape in zip(own, saved[1], strict=True))

    def push(self, saved, parameters, xdots):
        return torch.where(parameters[0], *self._both([broadcastable(xdot, saved[0]) for xdot in xdots], (0, 0)))

    def _both(self, values: Sequence[Tensor], numbers: Sequence) -> list:
        values = iter(values)
        return [next(values) if own is None else number for own, number in zip(self.numbers, numbers, strict=True)]


class Gather(Rule):
    """``x.gather(dim, index)``; the only parameter is the index."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.couples_samples = dim <= 0

    def couples(self, dims):
        return self.dim % max(1, dims) == 0

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        dim = self.dim % x.dim()
        return x.gather(dim, parameters[0]), (x.shape, dim + 1)

    def pull(self, saved, parameters, u):
        shape, dim = saved
        return (u.new_zeros(len(u), *shape).scatter_add_(dim, repeated(parameters[0], len(u)), u),)

    def push(self, saved, parameters, xdots):
        return xdots[0].gather(saved[1], repeated(parameters[0], len(xdots[0])))


class Scatter(Rule):
    """``a.scatter_add(dim, index, source)``, or ``index_add`` of whole rows; the only parameter is the index.

    Args:
        dim: along which.
        rows: whether the index is that of rows.
        factor: times the source.
    """

    def __init__(self, dim: int, rows: bool, factor: float = 1) -> None:
        self.dim = dim
        self.rows = rows
        self.factor = factor
        self.couples_samples = dim <= 0

    def couples(self, dims):
        return self.dim % max(1, dims) == 0

    def forward(self, inputs, parameters, extras):
        a, source = inputs
        dim = self.dim % a.dim()
        return self._add(a, dim, parameters[0], source), (dim + 1,)

    def pull(self, saved, parameters, u):
        (dim,), (index,) = saved, parameters
        taken = u.index_select(dim, index) if self.rows else u.gather(dim, repeated(index, len(u)))
        return u, taken if self.factor == 1 else taken * self.factor

    def push(self, saved, parameters, xdots):
        a, source = xdots
        index = parameters[0] if self.rows else repeated(parameters[0], len(a))
        return self._add(a, saved[0], index, source)

    def _add(self, a: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        if self.rows:
            return a.index_add(dim, index, source, alpha=self.factor)
        return a.scatter_add(dim, index, source)


class Copies(Rule):
    """Elements of x in new places, known by what a function of this kind does to their numbers.

    Args:
        function: called with x and the parameters; it moves and repeats elements and does no more.
        dims: along which it moves them; None for anywhere.
    """

    aliases = True

    def __init__(self, function: Callable[..., Tensor], dims: Sequence[int] | None = None) -> None:
        self.function = function
        self.dims = dims
        self.couples_samples = dims is None or any(dim <= 0 for dim in dims)

    def couples(self, dims):
        return self.dims is None or any(dim % max(1, dims) == 0 for dim in self.dims)

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *parameters)
        places = self.function(torch.arange(x.numel(), device=x.device).view(x.shape), *parameters).flatten()
        return y, (x.shape, y.shape, places)

    def pull(self, saved, parameters, u):
        shape, _, places = saved
        pulled = u.new_zeros(len(u), shape.numel()).index_add_(1, places, u.reshape(len(u), -1))
        return (pulled.view(len(u), *shape),)

    def push(self, saved, parameters, xdots):
        _, shape, places = saved
        return xdots[0].reshape(len(xdots[0]), -1).index_select(1, places).view(len(xdots[0]), *shape)


def repeated(index: Tensor, members: int) -> Tensor:
    """An index for each member of a stack."""
    return index.expand(members, *index.shape)


@function(torch.where)
def where(condition, input, other):
    if not isinstance(condition, Parameter):
        return "its condition is no constant"
    numbers = [operand if is_real(operand) else None for operand in (input, other)]
    values = [as_value(operand) for operand in (input, other) if not is_real(operand)]
    return Call(Where(numbers), values, (condition,))


@function("where")
def where_method(input, condition, other):
    return where(condition, input, other)


@function(torch.masked_fill, "masked_fill", "masked_fill_")
def masked_fill(input, mask, value):
    return where(mask, value, input)


@function(torch.gather, "gather")
def gather(input, dim, index):
    return Call(Gather(dim), (input,), (index,))


@function(torch.take_along_dim, "take_along_dim")
def take_along_dim(input, indices, dim=None):
    def take(x, indices):
        return torch.take_along_dim(x, indices, dim)

    return Call(Copies(take, None if dim is None else (dim,)), (input,), (indices,))


@function(torch.index_select, "index_select")
def index_select(input, dim, index):
    def whole(x, index):
        return (slice(None),) * (dim % x.dim()) + (index,)

    return Call(Index(whole, lambda dims: dim % dims == 0 if dims else dim <= 0), (input,), (index,))


@function(torch.index_add, "index_add", "index_add_")
def index_add(input, dim, index, source, *, alpha=1):
    return Call(Scatter(dim, True, alpha), (as_value(input), as_value(source)), (index,))


@function(torch.scatter_add, "scatter_add", "scatter_add_")
def scatter_add(input, dim, index, src):
    return Call(Scatter(dim, False), (as_value(input), as_value(src)), (index,))


@function(torch.diagonal, "diagonal")
def diagonal(input, offset=0, dim1=0, dim2=1):
    return Call(Copies(lambda x: x.diagonal(offset, dim1, dim2), (dim1, dim2)), (input,))
