"""Reshapes, permutations and other maps that move values: no more than another view wherever PyTorch has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gradreg_fast.rules.base import Rule, is_channels_last, map_members, shared_rows
from gradreg_fast.rules.call import Call, Constant, Parameter, Several, function, module, settle


class Reshape(Rule):
    """Any of view, reshape, flatten, unflatten, squeeze, unsqueeze: the order of the elements stays.

    Args:
        function: called as ``function(x, *extras)``.
    """

    homogeneous = True
    aliases = True

    def __init__(self, function: Callable) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *extras)
        return y, (x.shape, y.shape, is_channels_last(x))

    def pull(self, saved, parameters, u):
        pulled = reshape_stack(u, saved[0])
        if saved[2] and not shared_rows(pulled):
            K, B = pulled.shape[:2]  # the layout of the layers below
            pulled = pulled.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (K, B))
        return (pulled,)

    def push(self, saved, parameters, xdots):
        return reshape_stack(xdots[0], saved[1])


class Permute(Rule):
    """Permutation of the dimensions.

    Args:
        function: returns a permuted view of its argument.
    """

    homogeneous = True
    aliases = True
    couples_samples = True  # unless dimension 0 stays first

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self._orders: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def couples(self, dims):
        return dims > 0 and self._stack_orders(dims)[0][1] != 1

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        return self.function(x), ()

    def pull(self, saved, parameters, u):
        return (u.permute(self._stack_orders(u.dim() - 1)[1]),)

    def push(self, saved, parameters, xdots):
        return xdots[0].permute(self._stack_orders(xdots[0].dim() - 1)[0])

    def _stack_orders(self, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A stack's permutation and its inverse."""
        if dims not in self._orders:
            named = torch.empty(1).as_strided([1] * dims, list(range(dims)))  # each dimension's stride is its number
            order = self.function(named).stride()
            self._orders[dims] = behind_first(order), behind_first(inverse_of(order))
        return self._orders[dims]


class LinearMap(Rule):
    """A linear function without parameters whose transpose is known.

    Args:
        function: called as ``function(x, *extras)``.
        transpose: called as ``transpose(u, shape, *extras)`` with the shape of x.
        dims: the dimensions of x along which elements are mixed or moved; all others are rows of equal work.
    """

    homogeneous = True
    aliases = True

    def __init__(self, function: Callable, transpose: Callable, dims: Sequence[int]) -> None:
        self.function = function
        self.transpose = transpose
        self.dims = tuple(dims)
        self.couples_samples = any(dim <= 0 for dim in self.dims)

    def couples(self, dims):
        return any(dim % dims == 0 for dim in self.dims)

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        return self.function(x, *extras), self.kept(x, extras)

    def kept(self, x: Tensor, extras: Sequence) -> tuple:
        """What the other sweeps need: shape, extras, and whether each sample is a row."""
        return x.shape, tuple(extras), not self.couples(x.dim())

    def pull(self, saved, parameters, u):
        shape, extras, rows = saved

        def transpose(u):
            return self.transpose(u, (u.shape[0], *shape[1:]) if rows else shape, *extras)

        return (map_members(transpose, u, rows),)

    def push(self, saved, parameters, xdots):
        _, extras, rows = saved
        return map_members(lambda x: self.function(x, *extras), xdots[0], rows)


class To(Rule):
    """Another dtype or device.

    Args:
        function: called as ``function(x, *parameters, *extras)``.
    """

    aliases = True

    def __init__(self, function: Callable) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *parameters, *extras)
        if not y.is_floating_point():
            raise TypeError(f"a network's values must stay floating-point numbers, got {y.dtype}")
        return y, (x.dtype, x.device, y.dtype, y.device)

    def pull(self, saved, parameters, u):
        return (u.to(saved[1], saved[0]),)

    def push(self, saved, parameters, xdots):
        return xdots[0].to(saved[3], saved[2])


def reshape_stack(stack: Tensor, shape: torch.Size) -> Tensor:
    """A stack ``[K, *any]`` as ``[K, *shape]``; rows that samples share stay shared where the batch stays first."""
    if stack.shape[1] == shape[0] and shared_rows(stack):
        return stack[:, :1].reshape(stack.shape[0], 1, *shape[1:]).expand(stack.shape[0], *shape)
    return stack.reshape(stack.shape[0], *shape)


def inverse_of(order: Sequence[int]) -> list[int]:
    """The permutation that undoes another."""
    inverse = [0] * len(order)
    for to, source in enumerate(order):
        inverse[source] = to
    return inverse


def behind_first(order: Sequence[int]) -> tuple[int, ...]:
    """A permutation of the dimensions behind the first: for stacks."""
    return 0, *(dim + 1 for dim in order)


def reshaping(target: Callable, input, *arguments, **keywords):
    reshape, plains = settle(target, arguments, keywords)
    return Call(Reshape(reshape), (input,), (), plains)


def permuting(target: Callable, input, *arguments, **keywords):
    return Call(Permute(lambda x: target(x, *arguments, **keywords)), (input,))


for name in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"):
    function(name)(partial(reshaping, getattr(Tensor, "reshape" if name == "view" else name)))
    if name != "view":
        function(getattr(torch, name))(partial(reshaping, getattr(torch, name)))
for target in (Tensor.reshape_as, Tensor.view_as):
    function(target.__name__)(partial(reshaping, Tensor.reshape_as))
function(torch.ravel, "ravel")(partial(reshaping, torch.ravel))
for name in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"):
    for target in (getattr(torch, name), getattr(Tensor, name)):
        function(name if target is getattr(Tensor, name) else target)(partial(permuting, target))


for name in ("float", "double", "half", "bfloat16"):
    function(name)(partial(lambda name, input: Call(To(getattr(Tensor, name)), (input,)), name))


@function("to")
def to(input, *arguments, **keywords):
    kinds = [kind for kind in (*arguments, *keywords.values()) if isinstance(kind, torch.dtype)]
    if any(not kind.is_floating_point for kind in kinds):
        return "its result is not differentiable" if any(kind.is_complex for kind in kinds) else Constant()
    others = [other for other in (*arguments, *keywords.values()) if isinstance(other, Parameter)]
    if others:
        return Call(To(lambda x, other: x.to(other)), (input,), others)
    settled, read = settle(Tensor.to, arguments, keywords)
    return Call(To(settled), (input,), (), read)


@function("type_as")
def type_as(input, other):
    return to(input, other)


@function(getattr)
def attribute(input, name):
    if isinstance(input, Several):
        return input.member(name)
    if name in ("T", "mT", "H", "mH"):
        return permuting(getattr(Tensor, name).__get__, input)
    return f"its attribute {name} has no rule"


@module(nn.Flatten)
def flatten_module(layer, x, parameter):
    return reshaping(torch.flatten, x, layer.start_dim, layer.end_dim)


@module(nn.Unflatten)
def unflatten_module(layer, x, parameter):
    return reshaping(torch.unflatten, x, layer.dim, layer.unflattened_size)
