"""Slices, pieces, copies and rearrangements along a dimension."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, has_numbers
from gradreg_fast.rules.call import Call, Parameter, Plain, Several, collect, filling, function, settle
from gradreg_fast.rules.merge import broadcastable, unbroadcast
from gradreg_fast.rules.shape import LinearMap, behind_first, inverse_of


class Index(Rule):
    """``x[index]``. Where numbers in tensors or lists are the index, each element that they name may be named again.

    Args:
        index: called as ``index(x, *parameters, *extras)``, returns a tuple.
        couples: called with the number of dimensions, says whether it touches the batch's; 0: it is not known yet.
    """

    aliases = True
    makes_pieces = True

    def __init__(self, index: Callable, couples: Callable[[int], bool]) -> None:
        self.index = index
        self.couples = couples
        self.couples_samples = couples(0)

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        index = self.index(x, *parameters, *extras)
        y = x[index]
        if any(isinstance(item, (Tensor, list)) for item in index):
            return y, (x.shape, y.shape, *rows_of(x, index))
        return y, (x.shape, (slice(None), *index), dense_order(x))

    def pull(self, saved, parameters, u):
        shape, index, *rows = saved
        if len(rows) > 1:
            return (add_rows(u, shape, *rows),)
        pulled = u.new_zeros(u.shape[0], *[shape[dim] for dim in rows[0]])  # in the order of x in memory
        pulled = pulled.permute(behind_first(inverse_of(rows[0])))
        pulled[index] = u
        return (pulled,)

    def pull_into(self, saved, u, total):
        _, index, *rows = saved
        if len(rows) > 1:
            return False
        total[index].add_(u)
        return True

    def push(self, saved, parameters, xdots):
        _, index, *rows = saved
        return take_rows(xdots[0], index, *rows) if len(rows) > 1 else xdots[0][index]


class Expand(Rule):
    """Copies along dimensions of size one, or along new ones in front.

    Args:
        function: called as ``function(x, *extras)``.
    """

    aliases = True

    def __init__(self, function: Callable) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *extras)
        return y, (x.shape, y.shape)

    def pull(self, saved, parameters, u):
        return (unbroadcast(u, saved[0]),)

    def push(self, saved, parameters, xdots):
        shape = saved[1]
        return broadcastable(xdots[0], len(shape)).expand(len(xdots[0]), *shape)


class Repeat(Rule):
    """``x.tile(sizes)``: copies of the whole behind each other, along each dimension.

    Args:
        sizes: called as ``sizes(*extras)``.
    """

    couples_samples = True  # unless the first is one

    def __init__(self, sizes: Callable) -> None:
        self.sizes = sizes

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        sizes = self.sizes(*extras)
        sizes = (1,) * (x.dim() - len(sizes)) + tuple(sizes)
        return x.repeat(sizes), (x.shape, sizes)

    def pull(self, saved, parameters, u):
        shape, sizes = saved
        whole = (1,) * (len(sizes) - len(shape)) + tuple(shape)
        u = u.reshape(len(u), *(size for pair in zip(sizes, whole, strict=True) for size in pair))
        return (u.sum(list(range(1, u.dim(), 2))).reshape(len(u), *shape),)

    def push(self, saved, parameters, xdots):
        _, sizes = saved
        return broadcastable(xdots[0], len(sizes)).repeat(1, *sizes)


def dense_order(x: Tensor) -> list[int]:
    """The dimensions of x, those whose elements lie farthest apart first."""
    if not has_numbers(x):
        return list(range(x.dim()))
    return sorted(range(x.dim()), key=lambda dim: -x.stride(dim))


def rows_of(x: Tensor, index: Sequence) -> tuple[torch.Size, int, Tensor]:
    """What an index with tensors or lists takes, as rows of x in another shape: that shape, the dimension, the rows."""
    items = [torch.as_tensor(item, device=x.device) if isinstance(item, list) else item for item in index]
    (dim, rows), *others = ((i, item) for i, item in enumerate(items) if isinstance(item, Tensor))
    whole = all(isinstance(item, slice) and item == slice(None) for i, item in enumerate(items) if i != dim)
    if others or not whole or rows.dtype in (torch.bool, torch.uint8):
        places = torch.arange(x.numel(), device=x.device).view(x.shape)[tuple(items)]
        return torch.Size([x.numel()]), 0, places.flatten()
    rows = rows.flatten().long()
    return x.shape, dim, torch.where(rows < 0, rows + x.shape[dim], rows)


def take_rows(stack: Tensor, shape: torch.Size, viewed: torch.Size, dim: int, rows: Tensor) -> Tensor:
    """Rows of each member of a stack, in the result's shape."""
    return stack.reshape(len(stack), *viewed).index_select(dim + 1, rows).view(len(stack), *shape)


def add_rows(stack: Tensor, shape: torch.Size, viewed: torch.Size, dim: int, rows: Tensor) -> Tensor:
    """The transpose of `take_rows`: `shape` is that of x."""
    stack = stack.reshape(len(stack), *viewed[:dim], len(rows), *viewed[dim + 1 :])
    return stack.new_zeros(len(stack), *viewed).index_add_(dim + 1, rows, stack).view(len(stack), *shape)


@function(operator.getitem)
def getitem(input, index):
    if isinstance(input, Several):
        return input.member(index)
    items = index if isinstance(index, tuple) else (index,)
    allowed = (int, slice, list, Plain, Parameter, type(None), type(Ellipsis))
    if any(isinstance(item, bool) or not isinstance(item, allowed) for item in items):
        return "its index has no rule"
    parameters, plains = (list(dict.fromkeys(collect(kind, items))) for kind in (Parameter, Plain))
    fill = filling(items, [*parameters, *plains])

    def settled(x, *given):
        return fill(given) if given else items

    return Call(Index(settled, lambda dims: touches_batch(items, dims)), (input,), parameters, plains)


def touches_batch(items: Sequence, dims: int) -> bool:
    """Whether an index into this many dimensions takes apart, moves or may move the first one."""
    if Ellipsis in items and any(isinstance(item, Parameter) for item in items):  # a mask takes several dimensions
        return True
    for item in items:
        if item is not Ellipsis:
            return not (isinstance(item, slice) and item == slice(None))
        if dims > sum(other is not None and other is not Ellipsis for other in items):
            return False
    return bool(items) and not dims


def along(dim: int, index: Callable, input, plains=()) -> Call:
    """``index(x, dim, *extras)`` along a dimension."""

    def whole(x, *extras):
        at = dim % x.dim()
        return (slice(None),) * at + (index(x, at, *extras),)

    return Call(Index(whole, lambda dims: dim % dims == 0 if dims else dim <= 0), (input,), (), plains)


@function(torch.select, "select")
def select(input, dim, index):
    if isinstance(index, Plain):
        return along(dim, lambda x, at, index: index, input, (index,))
    return along(dim, lambda x, at: index, input)


@function(torch.narrow, "narrow")
def narrow(input, dim, start, length):
    plains = [item for item in (start, length) if isinstance(item, Plain)]
    fill = filling((start, length), plains)

    def settled(x, at, *extras):
        first, count = fill(extras)
        first = first if first >= 0 else first + x.shape[at]
        return slice(first, first + count)

    return along(dim, settled, input, plains)


def pieces(split: Callable, input, plains: Sequence[Plain], dim: int) -> Several:
    """The results of a function that cuts a tensor along a dimension."""

    def member(number: int) -> Call | str:
        if not isinstance(number, int):
            return "its pieces are taken in a way that has no rule"

        def index(x, at, *extras):
            sizes = [len(piece) for piece in split(torch.empty(x.shape[at], 0), *extras)]
            start = sum(sizes[: number % len(sizes)])
            return slice(start, start + sizes[number])

        return along(dim, index, input, plains)

    return Several(member, member(0))


def cutting(target: Callable, input, *arguments, dim=0, **keywords):
    *arguments, dim = (*arguments, dim) if len(arguments) < 2 else arguments
    split, plains = settle(target, (*arguments, 0), keywords)
    return pieces(split, input, plains, dim)


for name in ("chunk", "split", "tensor_split", "split_with_sizes"):
    function(getattr(torch, name), name)(partial(cutting, getattr(torch, name)))


@function(torch.unbind, "unbind")
def unbind(input, dim=0):
    def member(number: int) -> Call | str:
        return select(input, dim, number) if isinstance(number, int) else "it is taken apart in a way that has no rule"

    return Several(member, member(0))


@function(torch.broadcast_to, "expand", "broadcast_to")
def expand(input, *sizes):
    return expanding(Tensor.expand, input, *sizes)


@function("expand_as")
def expand_as(input, other):
    return expanding(Tensor.expand_as, input, other)


def expanding(target: Callable, input, *arguments):
    settled, read = settle(target, arguments, {})
    return Call(Expand(settled), (input,), (), read)


@function("unfold")
def windows(input, dimension, size, step):
    def add_windows(u, shape):
        return torch.ops.aten.unfold_backward(u, shape, dimension % len(shape), size, step)

    return Call(LinearMap(lambda x: x.unfold(dimension, size, step), add_windows, (dimension,)), (input,))


@function(torch.tril, "tril")
def tril(input, diagonal=0):
    return triangle(torch.tril, input, diagonal)


@function(torch.triu, "triu")
def triu(input, diagonal=0):
    return triangle(torch.triu, input, diagonal)


def triangle(part: Callable, input, diagonal):
    return Call(LinearMap(lambda x: part(x, diagonal), lambda u, shape: part(u, diagonal), (-1, -2)), (input,))


@function("repeat", "tile", torch.tile)
def repeat(input, *sizes):
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    plains = list(dict.fromkeys(collect(Plain, (sizes,))))
    fill = filling(tuple(sizes), plains)
    return Call(Repeat(lambda *extras: fill(extras)), (input,), (), plains)


@function(torch.repeat_interleave, "repeat_interleave")
def repeat_interleave(input, repeats, dim=None):
    if not isinstance(repeats, (int, Plain)) or dim is None:
        return "its repeats have no rule"
    settled, plains = settle(Tensor.repeat_interleave, (repeats, dim), {})

    def add_copies(u, shape, *extras):
        at = dim % len(shape)
        return u.unflatten(at, (shape[at], -1)).sum(at + 1)

    return Call(LinearMap(settled, add_copies, (dim,)), (input,), (), plains)


@function(torch.flip, "flip")
def flip(input, *dims):
    dims = dims[0] if isinstance(dims[0], (tuple, list)) else dims
    return Call(LinearMap(lambda x: x.flip(dims), lambda u, shape: u.flip(dims), dims), (input,))


@function(torch.roll, "roll")
def roll(input, shifts, dims=None):
    if dims is None or any(True for _ in collect(Plain, (shifts, dims))):
        return "it rolls everything, or by sizes"
    back = [-shift for shift in shifts] if isinstance(shifts, (tuple, list)) else -shifts
    mixed = dims if isinstance(dims, (tuple, list)) else (dims,)
    return Call(LinearMap(lambda x: x.roll(shifts, dims), lambda u, shape: u.roll(back, dims), mixed), (input,))


@function(torch.cumsum, "cumsum")
def cumsum(input, dim):
    return Call(
        LinearMap(lambda x: x.cumsum(dim), lambda u, shape: u.flip(dim).cumsum(dim).flip(dim), (dim,)), (input,)
    )
