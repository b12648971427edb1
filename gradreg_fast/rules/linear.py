"""Fully connected layers: ``y = x W^T + b``, linear in x."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, add_values, map_rows, per_sample, shared_rows
from gradreg_fast.rules.call import Call, function, module


class Linear(Rule):
    """``y = x W^T + b`` over the last dimension; parameters ``W [n, d]`` and ``b [n]`` or None."""

    fresh = True
    homogeneous = True

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        weight, bias = parameters
        return functional.linear(x, weight, bias), (x,)

    def pull(self, saved, parameters, u):
        return (by_rows(torch.matmul, u, parameters[0]),)

    def push(self, saved, parameters, xdots):
        return by_rows(functional.linear, xdots[0], parameters[0])

    def adjoint(self, saved, parameters, d, second):
        return (None if d is None else d.matmul(parameters[0]),)

    def curvature(self, saved, parameters, u, xdots, gradients):
        add_stacked_product(gradients, u, xdots[0])
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        (x,) = saved
        rows = d.flatten(0, -2)
        gradients.add_product(0, rows, x.flatten(0, -2))
        gradients.add(1, lambda: rows.sum(0))

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        self.affine_gradient(saved, parameters, u, (add_values(xdots[0], scale, saved[0]),), scale, gradients)

    def affine_gradient(self, saved, parameters, u, xdots, scale, gradients):
        self.curvature(saved, parameters, u, xdots, gradients)
        gradients.add(1, lambda: (per_sample(scale, u[0]) * u[0]).flatten(0, -2).sum(0))

    def push_affine(self, saved, parameters, xdots, scale):
        ydot, (_, bias) = self.push(saved, parameters, xdots), parameters
        if bias is not None:
            ydot[0].addcmul_(per_sample(scale, ydot[0]), bias)
        return ydot

    def flops(self, parameters, shape, inputs):
        return 2 * shape.numel() * parameters[0].shape[1]


def by_rows(function: Callable[[Tensor, Tensor], Tensor], stack: Tensor, weight: Tensor) -> Tensor:
    """`map_rows` of a function of rows, in any shape, and a weight."""
    return map_rows(lambda rows: function(rows, weight), stack) if shared_rows(stack) else function(stack, weight)


def add_stacked_product(gradients, u: Tensor, xdot: Tensor) -> None:
    """Add ``sum_k u^k (x) xdot^k`` to the weight's gradient; rows that samples share are multiplied once."""
    if not gradients.wants(0):
        return
    if shared_rows(u) and u.dim() == 3:
        u, xdot = u[:, :1], xdot.sum(1, keepdim=True)
    gradients.add_product(0, u.flatten(0, -2), xdot.flatten(0, -2))


@function(functional.linear)
def linear(input, weight, bias=None):
    return Call(Linear(), (input,), (weight, bias))


@module(nn.Linear)
def linear_module(layer, x, parameter):
    return linear(x, parameter("weight"), parameter("bias"))
