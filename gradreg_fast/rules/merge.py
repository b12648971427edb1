"""Sums and concatenations of branches, and arithmetic with numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.call import Call, Parameter, function, is_real, module
from gradreg_fast.rules.constant import as_value
from gradreg_fast.rules.shape import reshaping


class Add(Rule):
    """``a + factor b``, shapes broadcast."""

    homogeneous = True

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


class AddParameter(Rule):
    """``factor x + share p`` with a parameter p, shapes broadcast."""

    def __init__(self, factor: float = 1, share: float = 1) -> None:
        self.factor = factor
        self.share = share

    def forward(self, inputs, parameters, extras):
        (x,), (p,) = inputs, parameters
        y = torch.add(x if self.factor == 1 else x * self.factor, p, alpha=self.share)
        return y, (x.shape, y.shape)

    def pull(self, saved, parameters, u):
        u = unbroadcast(u, saved[0])
        return (u if self.factor == 1 else u * self.factor,)

    def push(self, saved, parameters, xdots):
        xdot = xdots[0] if self.factor == 1 else xdots[0] * self.factor
        return broadcastable(xdot, len(saved[1])).expand(xdot.shape[0], *saved[1])

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: unbroadcast(d.unsqueeze(0), parameters[0].shape)[0] * self.share)


class Cat(Rule):
    """Concatenation along a dimension; along the batch's it puts samples behind each other."""

    homogeneous = True

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.couples_samples = dim <= 0

    def couples(self, dims):
        return self.dim % dims == 0

    def forward(self, inputs, parameters, extras):
        dim = self.dim % inputs[0].dim()
        return torch.cat(list(inputs), dim), (dim + 1, [x.shape[dim] for x in inputs])

    def pull(self, saved, parameters, u):
        dim, sizes = saved
        return u.split(sizes, dim)

    def push(self, saved, parameters, xdots):
        return torch.cat(list(xdots), saved[0])


class Maximum(Rule):
    """The larger (or smaller) of two, shapes broadcast; equal ones share the derivative."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        a, b = inputs
        y = self.function(a, b)
        share = (y == a).to(y.dtype).add_(y != b).div_(2)  # 1, 1/2 or 0
        return y, (a.shape, b.shape, share)

    def pull(self, saved, parameters, u):
        *shapes, share = saved
        own = u * share
        return unbroadcast(own, shapes[0]), unbroadcast(u - own, shapes[1])

    def push(self, saved, parameters, xdots):
        share = saved[2]
        a, b = (broadcastable(xdot, share.dim()) for xdot in xdots)
        return torch.lerp(b, a, share)


class Affine(Rule):
    """``factor x + offset`` with numbers for both."""

    def __init__(self, factor: float = 1, offset: float = 0) -> None:
        self.factor = factor
        self.offset = offset
        self.aliases = factor == 1 and offset == 0
        self.homogeneous = offset == 0

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

    homogeneous = True
    function = staticmethod(torch.dropout)

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        # drawn in the order of the shape, as torch.dropout does, even where the layers here keep their channels last
        mask = self.function(torch.ones(x.shape, dtype=x.dtype, device=x.device), self.probability, True)
        mask = torch.empty_like(x).copy_(mask)
        return x * mask, (mask,)

    def pull(self, saved, parameters, u):
        return (u * saved[0],)

    def push(self, saved, parameters, xdots):
        return xdots[0] * saved[0]


class ChannelDropout(Dropout):
    """Each sample's channels are kept or dropped whole (Tompson et al. 2015, arXiv:1411.4280).

    Args:
        probability: as `Dropout` has it.
        function: of `torch.nn.functional`, which tells channels from positions.
    """

    def __init__(self, probability: float, function: Callable) -> None:
        super().__init__(probability)
        self.function = function


class StochasticDepth(Dropout):
    """Multiplication by a mask with one element a sample, or one for all; drawn as the libraries below draw it.

    Huang et al. 2016 (arXiv:1603.09382).

    Args:
        probability: that a sample (or the batch) is dropped.
        rows: whether each sample has its own element.
        scaled: whether what is kept is divided by its probability.
    """

    def __init__(self, probability: float, rows: bool = True, scaled: bool = True) -> None:
        super().__init__(probability)
        self.rows = rows
        self.scaled = scaled

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        kept = 1 - self.probability
        mask = x.new_empty(len(x) if self.rows else 1, *(1,) * (x.dim() - 1)).bernoulli_(kept)
        if self.scaled and kept > 0:
            mask.div_(kept)
        return x * mask, (mask,)


def unbroadcast(stack: Tensor, shape: torch.Size) -> Tensor:
    """Sum a stack ``[K, *broadcast shape]`` to ``[K, *shape]``."""
    if stack.shape[1:] == shape:
        return stack
    surplus = stack.dim() - 1 - len(shape)
    if surplus:
        stack = stack.sum(list(range(1, 1 + surplus)))
    return stack.sum_to_size(stack.shape[0], *shape)


def broadcastable(stack: Tensor, dims: int) -> Tensor:
    """A stack ``[K, *shape]`` with ones after K, so that it broadcasts as ``shape`` does in `dims` dimensions."""
    missing = dims - stack.dim() + 1
    return stack.reshape(stack.shape[0], *(1,) * missing, *stack.shape[1:]) if missing else stack


@function("contiguous", "clone", torch.clone)
def identity(input, memory_format=None):
    return Call(Affine(), (input,))


@function(torch.add, operator.add, operator.iadd, "add", "add_")
def add(input, other, *, alpha=1):
    return combine(input, 1, other, alpha)


@function(torch.sub, torch.subtract, operator.sub, operator.isub, "sub", "sub_", "subtract")
def sub(input, other, *, alpha=1):
    return combine(input, 1, other, -alpha)


@function(torch.rsub)
def rsub(input, other, *, alpha=1):
    return combine(other, 1, input, -alpha)


def combine(a, a_factor, b, b_factor):
    """``a_factor a + b_factor b`` of values, parameters and numbers."""
    if is_real(b):
        return Call(Affine(a_factor, b_factor * b), (a,))
    if is_real(a):
        return Call(Affine(b_factor, a_factor * a), (b,))
    if isinstance(b, Parameter):
        return Call(AddParameter(a_factor, b_factor), (a,), (b,))
    if isinstance(a, Parameter):
        return Call(AddParameter(b_factor, a_factor), (b,), (a,))
    return Call(Add(b_factor), (a if a_factor == 1 else Call(Affine(a_factor), (a,)), b))


@function(torch.neg, operator.neg, "neg")
def neg(input):
    return Call(Affine(-1), (input,))


@function(torch.maximum, "maximum")
def maximum(input, other):
    return Call(Maximum(torch.maximum), (as_value(input), as_value(other)))


@function(torch.minimum, "minimum")
def minimum(input, other):
    return Call(Maximum(torch.minimum), (as_value(input), as_value(other)))


@function(torch.cat, torch.concat, torch.concatenate)
def cat(tensors, dim=0):
    return Call(Cat(dim), [as_value(tensor) for tensor in tensors])


@function(torch.stack)
def stack(tensors, dim=0):
    return Call(Cat(dim), [reshaping(torch.unsqueeze, as_value(tensor), dim) for tensor in tensors])


@function(functional.dropout, torch.dropout)
def dropout(input, p=0.5, training=True, inplace=False):
    if not training or p == 0:
        return Call(Affine(), (input,))
    return Call(Dropout(p), (input,))


def channel_dropout(function_, input, p=0.5, training=True, inplace=False):
    if not training or p == 0:
        return Call(Affine(), (input,))
    return Call(ChannelDropout(p, function_), (input,))


for name in ("dropout1d", "dropout2d", "dropout3d"):
    function(getattr(functional, name))(partial(channel_dropout, getattr(functional, name)))


@module(nn.Identity)
def identity_module(layer, x, parameter):
    return identity(x)


@module(nn.Dropout)
def dropout_module(layer, x, parameter):
    return dropout(x, layer.p, layer.training)


@module(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def channel_dropout_module(layer, x, parameter):
    return channel_dropout(getattr(functional, type(layer).__name__.lower()), x, layer.p, layer.training)


@module("timm.layers.drop.DropPath")
def drop_path_module(layer, x, parameter):
    if not layer.training or not layer.drop_prob:
        return identity(x)
    return Call(StochasticDepth(layer.drop_prob, scaled=layer.scale_by_keep), (x,))


@module("torchvision.ops.stochastic_depth.StochasticDepth")
def stochastic_depth_module(layer, x, parameter):
    if not layer.training or not layer.p:
        return identity(x)
    return Call(StochasticDepth(layer.p, rows=layer.mode == "row"), (x,))
