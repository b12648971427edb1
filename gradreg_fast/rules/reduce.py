"""Sums, means, variances, norms and extrema over dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, Several, function
from gradreg_fast.rules.merge import add, maximum, minimum, sub
from gradreg_fast.rules.pointwise import absolute, clamp
from gradreg_fast.rules.product import div, mul
from gradreg_fast.rules.shape import reshaping


class Reduction(Rule):
    """What reduces some dimensions to one element; a subclass gives its calculus with these dimensions kept, as ones.

    Args:
        dims: which; None for all.
        keepdim: whether they stay, as ones.
    """

    def __init__(self, dims: int | Sequence[int] | None, keepdim: bool) -> None:
        self.dims = (dims,) if isinstance(dims, int) else tuple(dims) if dims is not None and len(dims) else None
        self.keepdim = keepdim
        self.couples_samples = self.dims is None or any(dim <= 0 for dim in self.dims)

    def couples(self, dims):
        return self.dims is None or any(dim % dims == 0 for dim in self.dims)

    def reduce(self, x: Tensor, dims: list[int]) -> tuple[Tensor, tuple]:
        """``y`` with ones for the dimensions, and what the others need."""
        raise NotImplementedError

    def pulled(self, state: tuple, u: Tensor, dims: list[int], shape: torch.Size) -> Tensor:
        """``J^T u`` for ``u [K, ...]`` with ones for the dimensions."""
        raise NotImplementedError

    def pushed(self, state: tuple, xdot: Tensor, dims: list[int]) -> Tensor:
        """``J xdot`` with ones for the dimensions."""
        raise NotImplementedError

    def curved(self, state: tuple, u: Tensor, xdot: Tensor, dims: list[int]) -> Tensor | None:
        """Gradient of ``sum_k <u^k, J xdot^k>``."""
        return None

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        dims = sorted(range(x.dim()) if self.dims is None else (dim % x.dim() for dim in self.dims))
        kept, state = self.reduce(x, dims)
        y = kept if self.keepdim else squeeze(kept, dims)
        return y, (x.shape, kept.shape, tuple(dims), state)

    def pull(self, saved, parameters, u):
        shape, kept, dims, state = saved
        return (self.pulled(state, u.reshape(len(u), *kept), [dim + 1 for dim in dims], shape),)

    def push(self, saved, parameters, xdots):
        _, _, dims, state = saved
        stacked = [dim + 1 for dim in dims]
        ydot = self.pushed(state, xdots[0], stacked)
        return ydot if self.keepdim else squeeze(ydot, stacked)

    def curvature(self, saved, parameters, u, xdots, gradients):
        _, kept, dims, state = saved
        return (self.curved(state, u.reshape(len(u), *kept), xdots[0], list(dims)),)


class Sum(Reduction):
    """``sum x``."""

    homogeneous = True

    def reduce(self, x, dims):
        return x.sum(dims, keepdim=True), ()

    def pulled(self, state, u, dims, shape):
        return u.expand(len(u), *shape)

    def pushed(self, state, xdot, dims):
        return xdot.sum(dims, keepdim=True)


class Mean(Reduction):
    """``sum x / n``."""

    homogeneous = True

    def reduce(self, x, dims):
        return x.mean(dims, keepdim=True), (count(x.shape, dims),)

    def pulled(self, state, u, dims, shape):
        return (u / state[0]).expand(len(u), *shape)

    def pushed(self, state, xdot, dims):
        return xdot.mean(dims, keepdim=True)


class Variance(Reduction):
    """``sum (x - mean)^2 / (n - correction)``: with ``c = x - mean``, ``J xdot = 2 sum c xdot / (n - correction)``."""

    curvature_free = False

    def __init__(self, dims, keepdim: bool, correction: float) -> None:
        super().__init__(dims, keepdim)
        self.correction = correction

    def reduce(self, x, dims):
        centred = x - x.mean(dims, keepdim=True)
        weight = 2 / max(0, count(x.shape, dims) - self.correction) if x.numel() else math.nan
        return x.var(dims, correction=self.correction, keepdim=True), (centred, weight)

    def pulled(self, state, u, dims, shape):
        centred, weight = state
        return (u * weight) * centred

    def pushed(self, state, xdot, dims):
        centred, weight = state
        return (centred * xdot).sum(dims, keepdim=True).mul_(weight)

    def curved(self, state, u, xdot, dims):
        weighted = dot_stacks(u, xdot)
        return weighted.sub_(weighted.mean(dims, keepdim=True)).mul_(state[1])


class Norm(Reduction):
    """``y = ||x||_2``, slope 0 at zero: with ``n = x / y``, ``J xdot = <n, xdot>``."""

    curvature_free = False

    def reduce(self, x, dims):
        y = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
        inverse = torch.where(y == 0, 0, y.reciprocal())
        return y, (x * inverse, inverse)

    def pulled(self, state, u, dims, shape):
        return u * state[0]

    def pushed(self, state, xdot, dims):
        return (state[0] * xdot).sum(dims, keepdim=True)

    def curved(self, state, u, xdot, dims):
        normal, inverse = state
        weighted = dot_stacks(u, xdot)
        along = (normal * weighted).sum(dims, keepdim=True)
        return weighted.addcmul_(normal, along, value=-1).mul_(inverse)


class Deviation(Norm):
    """The square root of `Variance`, slope 0 at zero: the norm of ``x - mean``, divided by a constant."""

    def __init__(self, dims, keepdim: bool, correction: float) -> None:
        super().__init__(dims, keepdim)
        self.correction = correction

    def reduce(self, x, dims):
        root = math.sqrt(max(0, count(x.shape, dims) - self.correction)) or math.nan
        y, (normal, inverse) = super().reduce(x - x.mean(dims, keepdim=True), dims)
        return y / root, (normal, inverse, root)

    def pulled(self, state, u, dims, shape):
        return (u / state[2]) * state[0]

    def pushed(self, state, xdot, dims):
        return super().pushed(state, xdot, dims).div_(state[2])

    def curved(self, state, u, xdot, dims):
        normal, inverse, root = state
        second = super().curved((normal, inverse), u / root, xdot, dims)
        return second.sub_(second.mean(dims, keepdim=True))


class LogSumExp(Reduction):
    """``log sum exp x``: with ``p = softmax(x)``, ``J xdot = <p, xdot>``."""

    curvature_free = False

    def reduce(self, x, dims):
        y = torch.logsumexp(x, dims, keepdim=True)
        return y, (torch.exp(x - y),)

    def pulled(self, state, u, dims, shape):
        return u * state[0]

    def pushed(self, state, xdot, dims):
        return (state[0] * xdot).sum(dims, keepdim=True)

    def curved(self, state, u, xdot, dims):
        (p,) = state
        weighted = p * dot_stacks(u, xdot)
        return weighted.addcmul_(p, weighted.sum(dims, keepdim=True), value=-1)


class Extremum(Reduction):
    """The largest or smallest element; equal ones share the derivative."""

    def __init__(self, dims, keepdim: bool, function: Callable) -> None:
        super().__init__(dims, keepdim)
        self.function = function

    def reduce(self, x, dims):
        y = self.function(x, dims, keepdim=True)
        share = (x == y).to(x.dtype)
        return y, (share / share.sum(dims, keepdim=True),)

    def pulled(self, state, u, dims, shape):
        return u * state[0]

    def pushed(self, state, xdot, dims):
        return (state[0] * xdot).sum(dims, keepdim=True)


class Winner(Reduction):
    """The largest or smallest element along one dimension; the derivative goes to the winner that PyTorch names."""

    def __init__(self, dim: int, keepdim: bool, function: Callable) -> None:
        super().__init__(dim, keepdim)
        self.function = function

    def reduce(self, x, dims):
        y, winners = self.function(x, dims[0], keepdim=True)
        return y, (winners,)

    def pulled(self, state, u, dims, shape):
        winners = state[0].expand(len(u), *state[0].shape)
        return u.new_zeros(len(u), *shape).scatter_(dims[0], winners, u)

    def pushed(self, state, xdot, dims):
        return xdot.gather(dims[0], state[0].expand(len(xdot), *state[0].shape))


def squeeze(y: Tensor, dims: Sequence[int]) -> Tensor:
    """The tensor without these dimensions of size one."""
    return y.squeeze(tuple(dims))


def count(shape: torch.Size, dims: Sequence[int]) -> int:
    """Elements that are reduced to one."""
    return math.prod(shape[dim] for dim in dims)


@function(torch.sum, "sum")
def sum_(input, dim=None, keepdim=False):
    return Call(Sum(dim, keepdim), (input,))


@function(torch.mean, "mean")
def mean(input, dim=None, keepdim=False):
    return Call(Mean(dim, keepdim), (input,))


@function(torch.var, "var")
def var(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return spread(Variance, input, dim, unbiased, keepdim, correction)


@function(torch.std, "std")
def std(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return spread(Deviation, input, dim, unbiased, keepdim, correction)


def spread(rule: type[Reduction], input, dim, unbiased, keepdim, correction):
    if isinstance(dim, bool):  # var(input, unbiased)
        dim, unbiased = None, dim
    return Call(rule(dim, keepdim, int(unbiased) if correction is None else correction), (input,))


@function(torch.var_mean)
def var_mean(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return with_mean(var, input, dim, unbiased, keepdim, correction)


@function(torch.std_mean)
def std_mean(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return with_mean(std, input, dim, unbiased, keepdim, correction)


def with_mean(spread: Callable, input, dim, unbiased, keepdim, correction):
    average = mean(input, None if isinstance(dim, bool) else dim, keepdim)
    calls = spread(input, dim, unbiased, keepdim, correction=correction), average
    return Several(lambda number: calls[number], calls[0])


@function(torch.norm, "norm")
def norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if out is None and dtype is None and p in (1, math.inf):
        rule = Sum(dim, keepdim) if p == 1 else Extremum(dim, keepdim, torch.amax)
        return Call(rule, (absolute(input),))
    if p not in (2, "fro") or out is not None or dtype is not None:
        return f"a norm of order {p}, or with another dtype, has no rule"
    return Call(Norm(dim, keepdim), (input,))


@function(torch.linalg.vector_norm)
def vector_norm(x, ord=2, dim=None, keepdim=False):
    return norm(x, ord, dim, keepdim)


@function(torch.linalg.norm)
def linalg_norm(input, ord=None, dim=None, keepdim=False):
    if ord is not None and not isinstance(dim, int):
        return "a norm of matrices has no rule"
    return norm(input, 2 if ord is None else ord, dim, keepdim)


@function(functional.normalize)
def normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
    length = norm(input, p, dim, True, out)
    return length if isinstance(length, str) else div(input, clamp(length, eps))


@function(functional.cosine_similarity, torch.cosine_similarity)
def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    return sum_(mul(normalize(x1, 2, dim, eps), normalize(x2, 2, dim, eps)), dim)


@function(functional.pairwise_distance, torch.pairwise_distance)
def pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    return norm(add(sub(x1, x2), eps), p, -1, keepdim)


@function(torch.cdist)
def cdist(x1, x2, p=2.0, compute_mode=None):
    return norm(sub(reshaping(torch.unsqueeze, x1, -2), reshaping(torch.unsqueeze, x2, -3)), p, -1)


@function(torch.logsumexp, "logsumexp")
def logsumexp(input, dim, keepdim=False):
    return Call(LogSumExp(dim, keepdim), (input,))


@function(torch.amax, "amax")
def amax(input, dim=None, keepdim=False):
    return Call(Extremum(dim, keepdim, torch.amax), (input,))


@function(torch.amin, "amin")
def amin(input, dim=None, keepdim=False):
    return Call(Extremum(dim, keepdim, torch.amin), (input,))


def extremum(name: str, whole: Callable, pair: Callable, input, dim=None, keepdim=False):
    if dim is None:
        return whole(input)
    if not isinstance(dim, int):
        return pair(input, dim)

    def member(which: int | str) -> Call | str:
        if which in (0, "values"):
            return Call(Winner(dim, keepdim, getattr(torch, name)), (input,))
        return "its indices are used"

    return Several(member, member(0))


for name, whole, pair in (("max", amax, maximum), ("min", amin, minimum)):
    function(getattr(torch, name), name)(partial(extremum, name, whole, pair))
