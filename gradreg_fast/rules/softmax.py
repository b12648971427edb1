"""Softmax, its logarithm, and softmin, over any dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, function, module
from gradreg_fast.rules.merge import Affine

aten = torch.ops.aten


class Softmax(Rule):
    """``p = softmax(y)`` over a dimension: ``J = diag(p) - p p^T``, symmetric."""

    curvature_free = False

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim
        self.couples_samples = dim <= 0

    def couples(self, dims):
        return dims > 0 and self.dim % dims == 0

    def forward(self, inputs, parameters, extras):
        (y,) = inputs
        p = torch.softmax(y, self.dim)
        return p, (p, self.dim % y.dim())

    def pull(self, saved, parameters, u):
        p, dim = saved
        return (aten._softmax_backward_data(u, p.expand_as(u), dim + 1, p.dtype),)

    def push(self, saved, parameters, xdots):
        return self.pull(saved, parameters, xdots[0])[0]

    def curvature(self, saved, parameters, u, xdots, gradients):
        p, dim = saved
        (v,) = xdots
        # <u, J v> is the covariance of u and v under p; its derivative is p times the centred product, centred again
        product = dot_stacks(self.pull(saved, parameters, u)[0], v - mean(p, v, dim + 1))  # [B, C, ...]
        return (product.addcmul_(p, product.sum(dim, keepdim=True), value=-1),)


class LogSoftmax(Softmax):
    """``z = y - log sum exp y`` over a dimension: ``J = 1 - 1 p^T``."""

    def forward(self, inputs, parameters, extras):
        (y,) = inputs
        z = torch.log_softmax(y, self.dim)
        return z, (z, self.dim % y.dim())

    def pull(self, saved, parameters, u):
        z, dim = saved
        return (aten._log_softmax_backward_data(u, z.expand_as(u), dim + 1, z.dtype),)

    def push(self, saved, parameters, xdots):
        z, dim = saved
        return xdots[0] - mean(z.exp(), xdots[0], dim + 1)

    def curvature(self, saved, parameters, u, xdots, gradients):
        z, dim = saved
        p, (v,) = z.exp(), xdots
        projected = aten._softmax_backward_data(v, p.expand_as(v), dim + 1, p.dtype)  # p (v - mean of v)
        return (dot_stacks(-u.sum(dim + 1, keepdim=True), projected),)


def mean(p: Tensor, v: Tensor, dim: int) -> Tensor:
    """The mean of v under p, with the dimension kept."""
    return (p * v).sum(dim, keepdim=True)


@function(functional.softmax, torch.softmax, "softmax")
def softmax(input, dim=None, _stacklevel=3, dtype=None):
    return over(Softmax, input, dim, dtype)


@function(functional.log_softmax, torch.log_softmax, "log_softmax")
def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return over(LogSoftmax, input, dim, dtype)


@function(functional.softmin)
def softmin(input, dim=None, _stacklevel=3, dtype=None):
    return over(Softmax, Call(Affine(-1), (input,)), dim, dtype)


def over(rule: type[Softmax], input, dim, dtype):
    if dim is None or dtype is not None:
        return "its dimension is left open, or its result has another dtype"
    return Call(rule(dim), (input,))


@module(nn.Softmax)
def softmax_module(layer, x, parameter):
    return softmax(x, layer.dim)


@module(nn.LogSoftmax)
def log_softmax_module(layer, x, parameter):
    return log_softmax(x, layer.dim)


@module(nn.Softmin)
def softmin_module(layer, x, parameter):
    return softmin(x, layer.dim)


@module(nn.Softmax2d)
def softmax2d_module(layer, x, parameter):
    return softmax(x, -3)
