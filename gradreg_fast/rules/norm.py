r"""Normalisations: batch (training and evaluation), layer, group, instance and root mean square.

Per channel, with N elements, ``m`` the mean over them, ``i = (var + eps)^{-1/2}`` and ``xhat = (x - m(x)) i``:

    J = gamma i P,    P v = v - m(v) - xhat m(xhat v)           (P is symmetric, and dxhat/dx = i P)
    <u, J v> = gamma i N S,    S = m(u v) - m(u) m(v) - m(u xhat) m(v xhat)
    d<u, J v>/dx = -gamma i^2 (S xhat + m(v xhat) P u + m(u xhat) P v)
    d<u, J v>/dgamma = i N S
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, function, module


class BatchNormTrain(Rule):
    """``gamma xhat + beta`` with the batch's own statistics; updates the running ones once, in `forward`.

    Parameters are gamma and beta; running_mean, running_var and num_batches_tracked are updated; each possibly None.
    """

    curvature_free = False
    couples_samples = True

    def __init__(self, eps: float, momentum: float | None) -> None:
        self.eps = eps
        self.momentum = momentum

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta = parameters
        running_mean, running_var, batches = extras
        if x.numel() == x.shape[1]:
            raise ValueError(f"batch statistics need more than one value per channel, got an input of {tuple(x.shape)}")
        if batches is not None:
            batches.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative average
            momentum = 0.0 if batches is None else 1.0 / float(batches)
        y, mean, inverse = torch.native_batch_norm(x, gamma, beta, running_mean, running_var, True, momentum, self.eps)
        return y, (x, mean, inverse)

    def pull(self, saved, parameters, u):
        return (self._project(saved, parameters[0], u),)

    def push(self, saved, parameters, xdots):
        ydot = self._project(saved, None, xdots[0])
        return ydot if parameters[0] is None else ydot.mul_(channels(parameters[0], ydot.dim() - 3))

    def curvature(self, saved, parameters, u, xdots, gradients):
        gamma, (x, mean, inverse) = parameters[0], saved
        (v,) = xdots
        dims, spatial = [0, *range(2, x.dim())], x.dim() - 2
        size = x.numel() // x.shape[1]
        xhat = (x - channels(mean, spatial)).mul_(channels(inverse, spatial))
        stacked = [dim + 1 for dim in dims]
        u_mean, v_mean = u.mean(stacked), v.mean(stacked)  # [K, C]
        u_xhat, v_xhat = (u * xhat).mean(stacked), (v * xhat).mean(stacked)
        S = dot_stacks(u, v).mean(dims) - (u_mean * v_mean).sum(0) - (u_xhat * v_xhat).sum(0)  # [C]
        gradients.add(0, lambda: size * inverse * S)
        # sum_k of v_xhat^k P u^k + u_xhat^k P v^k, with P's three terms gathered
        second = dot_stacks(channels(v_xhat, spatial), u).add_(dot_stacks(channels(u_xhat, spatial), v))
        second -= channels((v_xhat * u_mean + u_xhat * v_mean).sum(0), spatial)
        second.addcmul_(xhat, channels(S - 2 * (u_xhat * v_xhat).sum(0), spatial))
        scale = -inverse.square() if gamma is None else -inverse.square() * gamma
        return (second.mul_(channels(scale, spatial)),)

    def gradient(self, saved, parameters, d, gradients):
        x, mean, inverse = saved
        dims = [0, *range(2, x.dim())]
        gradients.add(0, lambda: ((x - channels(mean, x.dim() - 2)).mul_(d)).sum(dims) * inverse)
        gradients.add(1, lambda: d.sum(dims))

    def _project(self, saved, weight: Tensor | None, stack: Tensor) -> Tensor:
        """``i P (weight v)`` for each member v of the stack."""
        x, mean, inverse = saved
        rows = [
            torch.ops.aten.native_batch_norm_backward(
                v, x, weight, None, None, mean, inverse, True, self.eps, [True, False, False]
            )[0]
            for v in stack
        ]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


class BatchNormEval(Rule):
    """``gamma (x - running_mean) / sqrt(running_var + eps) + beta``: linear in x.

    Parameters are gamma, beta (each possibly None), running_mean and running_var.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta, mean, var = parameters
        return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False, 0.0, self.eps), (x,)

    def pull(self, saved, parameters, u):
        return (u * channels(self._scale(parameters), u.dim() - 3),)

    def push(self, saved, parameters, xdots):
        return self.pull(saved, parameters, xdots[0])[0]

    def curvature(self, saved, parameters, u, xdots, gradients):
        dims = [0, *range(2, u.dim() - 1)]
        gradients.add(0, lambda: dot_stacks(u, xdots[0]).sum(dims) * self._inverse(parameters))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        (x,) = saved
        dims = [0, *range(2, d.dim())]
        gradients.add(
            0, lambda: ((x - channels(parameters[2], x.dim() - 2)).mul_(d)).sum(dims) * self._inverse(parameters)
        )
        gradients.add(1, lambda: d.sum(dims))

    def _inverse(self, parameters) -> Tensor:
        return torch.rsqrt(parameters[3] + self.eps)

    def _scale(self, parameters) -> Tensor:
        inverse = self._inverse(parameters)
        return inverse if parameters[0] is None else inverse * parameters[0]


class Standardise(Rule):
    """``gamma xhat + beta`` where each group of a sample's elements has its own statistics: ``xhat = (x - m(x)) i``.

    gamma is not the same within a group, so ``J = diag(gamma) i P``. Without centring ``xhat = x i``, ``i = (m(x^2) +
    eps)^{-1/2}`` and P has no term for the mean (Zhang and Sennrich 2019, arXiv:1910.07467).
    Parameters are gamma and beta, each possibly None.

    Args:
        groups: called as ``groups(x)``: the number of leading groups' rows, each with as many elements.
        affine: called as ``affine(parameter, dims)``: gamma or beta so that it broadcasts against x.
        eps: added to the variance; None: the precision of x.
        centred: whether the mean is subtracted.
    """

    curvature_free = False

    def __init__(self, groups: Callable, affine: Callable, eps: float | None, centred: bool = True) -> None:
        self.groups = groups
        self.affine = affine
        self.eps = eps
        self.centred = centred

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta = parameters
        rows = x.reshape(self.groups(x), -1)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        if self.centred:
            xhat, _, inverse = torch.native_layer_norm(rows, rows.shape[1:], None, None, eps)
        else:
            inverse = torch.rsqrt(rows.square().mean(1, keepdim=True).add_(eps))
            xhat = rows * inverse
        xhat = xhat.view(x.shape)
        y = xhat if gamma is None else xhat * self.affine(gamma, x.dim())
        return y if beta is None else y + self.affine(beta, x.dim()), (xhat, inverse)

    def pull(self, saved, parameters, u):
        return (self._project(saved, self._scaled(parameters[0], u)),)

    def push(self, saved, parameters, xdots):
        return self._scaled(parameters[0], self._project(saved, xdots[0]))

    def curvature(self, saved, parameters, u, xdots, gradients):
        xhat, inverse = saved
        gamma = parameters[0]
        gradients.add(0, lambda: self._reduced(dot_stacks(u, self._project(saved, xdots[0])), gamma))
        u, v = (self._rows(stack, len(inverse)) for stack in (self._scaled(gamma, u), xdots[0]))  # [K, R, n]
        h = xhat.view(len(inverse), -1)  # [R, n]
        mean = partial(torch.mean, dim=-1, keepdim=True)
        u_h, v_h = mean(u * h), mean(v * h)  # [K, R, 1]
        S = mean(dot_stacks(u, v))  # [R, 1]
        second = dot_stacks(v_h, u).add_(dot_stacks(u_h, v))  # of v_h P u + u_h P v, then the other terms of P
        if self.centred:
            u_mean, v_mean = mean(u), mean(v)
            S = S - dot_stacks(u_mean, v_mean)
            second -= dot_stacks(v_h, u_mean) + dot_stacks(u_h, v_mean)
        second.addcmul_(h, S - 3 * dot_stacks(u_h, v_h))
        return (second.mul_(-inverse.square()).view(xhat.shape),)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._reduced(d * saved[0], parameters[0]))
        gradients.add(1, lambda: self._reduced(d, parameters[1]))

    def _project(self, saved, stack: Tensor) -> Tensor:
        """``i P v`` for each member v of the stack."""
        xhat, inverse = saved
        v, h = self._rows(stack, len(inverse)), xhat.view(len(inverse), -1)
        projected = torch.addcmul(v, h, (v * h).mean(-1, keepdim=True), value=-1)
        if self.centred:
            projected -= v.mean(-1, keepdim=True)
        return projected.mul_(inverse).view(stack.shape)

    def _scaled(self, gamma: Tensor | None, stack: Tensor) -> Tensor:
        return stack if gamma is None else stack * self.affine(gamma, stack.dim() - 1)

    def _rows(self, stack: Tensor, rows: int) -> Tensor:
        return stack.reshape(len(stack), rows, -1)

    def _reduced(self, product: Tensor, parameter: Tensor) -> Tensor:
        return product.sum_to_size(self.affine(parameter, product.dim()).shape).view(parameter.shape)


def channels(statistic: Tensor, spatial: int) -> Tensor:
    """Shape ``[C]`` or ``[K, C]`` so that it broadcasts against values or stacks with that many spatial dimensions."""
    stacked = statistic.shape[:-1]
    return statistic.view(*stacked, *(1,) * len(stacked), -1, *(1,) * spatial)


@function(functional.batch_norm)
def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, batches=None
):
    if training:
        return Call(BatchNormTrain(eps, momentum), (input,), (weight, bias), (), (running_mean, running_var, batches))
    return Call(BatchNormEval(eps), (input,), (weight, bias, running_mean, running_var))


@module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm_module(layer, x, parameter):
    statistics = parameter("running_mean"), parameter("running_var")
    training = layer.training or statistics == (None, None)
    batches = parameter("num_batches_tracked") if layer.training and layer.track_running_stats else None
    if layer.training and not layer.track_running_stats:
        statistics = None, None
    affine = parameter("weight"), parameter("bias")
    return batch_norm(x, *statistics, *affine, training, layer.momentum, layer.eps, batches)


def last_dimensions(shape: Sequence[int], eps: float | None, centred: bool = True) -> Standardise:
    """Statistics over the last dimensions, of this shape."""
    shape = tuple(shape)

    def groups(x: Tensor) -> int:
        if tuple(x.shape[-len(shape) :]) != shape:
            raise ValueError(f"the last dimensions of a normalised input must be {shape}, got {tuple(x.shape)}")
        return math.prod(x.shape[: -len(shape)])

    return Standardise(groups, lambda parameter, dims: parameter, eps, centred)


def channel_groups(number: int | None, eps: float) -> Standardise:
    """Statistics over groups of channels and all positions, by default over each channel."""

    def groups(x: Tensor) -> int:
        channels = x.shape[1]
        if number is not None and channels % number:
            raise ValueError(f"a normalised input must have a multiple of {number} channels, got {channels}")
        return x.shape[0] * (channels if number is None else number)

    return Standardise(groups, lambda parameter, dims: channels(parameter, dims - 2), eps)


@function(functional.layer_norm, torch.layer_norm)
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return Call(last_dimensions(normalized_shape, eps), (input,), (weight, bias))


@function(functional.rms_norm, torch.rms_norm)
def rms_norm(input, normalized_shape, weight=None, eps=None):
    return Call(last_dimensions(normalized_shape, eps, centred=False), (input,), (weight, None))


@function(functional.group_norm, torch.group_norm)
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    return Call(channel_groups(num_groups, eps), (input,), (weight, bias))


@function(functional.instance_norm)
def instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    if running_mean is not None:
        return "it updates running statistics of instances"
    return Call(channel_groups(None, eps), (input,), (weight, bias))


@module(nn.LayerNorm)
def layer_norm_module(layer, x, parameter):
    return layer_norm(x, layer.normalized_shape, parameter("weight"), parameter("bias"), layer.eps)


@module(nn.RMSNorm)
def rms_norm_module(layer, x, parameter):
    return rms_norm(x, layer.normalized_shape, parameter("weight"), layer.eps)


@module(nn.GroupNorm)
def group_norm_module(layer, x, parameter):
    return group_norm(x, layer.num_groups, parameter("weight"), parameter("bias"), layer.eps)


@module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm_module(layer, x, parameter):
    tensors = (parameter(name) for name in ("running_mean", "running_var", "weight", "bias"))
    own = layer.training or not layer.track_running_stats
    return instance_norm(x, *tensors, own, layer.momentum, layer.eps)
