r"""Normalisations: batch (training and evaluation), layer, group, instance and root mean square.

Per channel, with N elements, ``m`` the mean over them, ``i = (var + eps)^{-1/2}`` and ``xhat = (x - m(x)) i``:

    J = gamma i P,    P v = v - m(v) - xhat m(xhat v)           (P is symmetric, and dxhat/dx = i P)
    <u, J v> = gamma i N S,    S = m(u v) - m(u) m(v) - m(u xhat) m(v xhat)
    d<u, J v>/dx = -gamma i^2 (S xhat + m(v xhat) P u + m(u xhat) P v)
    d<u, J v>/dgamma = i N S
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks, is_channels_last, shaped, stacked
from gradreg_fast.rules.call import Call, function, module, submodule

aten = torch.ops.aten


class AtOnce(Rule):
    """A normalisation whose ordinary backward pass, for x, gamma and beta, is one call."""

    def backward(self, saved: tuple, weight: Tensor | None, v: Tensor, mask: list[bool]) -> tuple:
        """What ``v`` gives x, where gamma is `weight`, and gamma and beta: where asked for."""
        raise NotImplementedError

    def descend(self, saved, parameters, d, second, gradients, below):
        if d is None:
            return super().descend(saved, parameters, d, second, gradients, below)
        pulled, *own = self.backward(saved, parameters[0], d, [below, gradients.wants(0), gradients.wants(1)])
        for position, gradient in enumerate(own):
            gradients.add(position, lambda gradient=gradient: gradient)
        if not below:
            return None
        return (pulled,) if second is None or second[0] is None else (second[0].add_(pulled),)


def loses_digits(x: Tensor) -> bool:
    """Whether PyTorch's batch norm adds up x's numbers one after another in single precision: up to three are lost."""
    return is_channels_last(x) and x.device.type == "cpu" and x.dtype == torch.float32


def scaled(centred: Tensor, inverse: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """``gamma inverse centred + beta``, in place of `centred`; the others are channels' numbers ``[C]``."""
    spatial = centred.dim() - 2
    centred.mul_(channels(inverse if gamma is None else inverse * gamma, spatial))
    return centred if beta is None else centred.add_(channels(beta, spatial))


class BatchNormTrain(AtOnce):
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
        momentum = self._counted(batches)
        if not loses_digits(x):
            statistics = running_mean, running_var, True, momentum, self.eps
            y, mean, inverse = torch.native_batch_norm(x, gamma, beta, *statistics)
            return y, (x, mean, inverse)
        mean = x.mean((0, 2, 3))
        centred = x - channels(mean, 2)
        var = centred.square().mean((0, 2, 3))
        self._average(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
        inverse = torch.rsqrt(var + self.eps)
        return scaled(centred, inverse, gamma, beta), (x, mean, inverse)

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

    def _counted(self, batches: Tensor | None) -> float:
        """Count this batch; the weight of its statistics in the running ones."""
        if batches is not None:
            batches.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 0.0 if batches is None else 1.0 / float(batches)  # cumulative average

    def _average(
        self,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        mean: Tensor,
        var: Tensor,
        size: int | Tensor,
        momentum: float,
    ) -> None:
        """Average these statistics, of so many numbers a channel, into the running ones."""
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (size / (size - 1))).to(running_var.dtype), momentum)

    def _project(self, saved, weight: Tensor | None, stack: Tensor) -> Tensor:
        """``i P (weight v)`` for each member v of the stack."""
        return stacked([self.backward(saved, weight, v, [True, False, False])[0] for v in stack])

    def backward(self, saved, weight, v, mask):
        x, mean, inverse = saved
        if not loses_digits(x):
            return aten.native_batch_norm_backward(v, x, weight, None, None, mean, inverse, True, self.eps, mask)
        dims, size = (0, 2, 3), x.numel() // x.shape[1]
        centred = x - channels(mean, 2)
        v_mean, along = v.mean(dims), (v * centred).mean(dims)
        factor = inverse if weight is None else inverse * weight
        pulled = torch.addcmul(channels(-factor * v_mean, 2), v, channels(factor, 2))
        pulled.addcmul_(centred, channels(-factor * inverse.square() * along, 2))
        return pulled, size * inverse * along, size * v_mean


class SynchronisedBatchNorm(BatchNormTrain):
    """`BatchNormTrain` with the statistics of all processes' batches: every mean is theirs together.

    PyTorch's own has no second derivative, and on a CPU no forward. Parameters' gradients are this process's share:
    they add up to those of the joint batch. All processes must take the same sweeps.

    Args:
        eps: as `BatchNormTrain` has it.
        momentum: likewise.
        group: of the processes; None for all.
    """

    def __init__(self, eps: float, momentum: float | None, group: object) -> None:
        super().__init__(eps, momentum)
        self.group = group

    descend = Rule.descend

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta = parameters
        running_mean, running_var, batches = extras
        if x.numel() == x.shape[1] and not self._several():
            raise ValueError(f"batch statistics need more than one value per channel, got an input of {tuple(x.shape)}")
        dims, spatial = [0, *range(2, x.dim())], x.dim() - 2
        sums = x.sum(dims, dtype=torch.promote_types(x.dtype, torch.float32))
        sums = self._joint(torch.cat([sums, sums.new_full((1,), x.numel() / x.shape[1])]))
        size, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - channels(mean, spatial)
        var = self._joint(centred.square().sum(dims)) / size
        inverse = torch.rsqrt(var + self.eps)
        self._average(running_mean, running_var, mean, var, size, self._counted(batches))
        return scaled(centred, inverse, gamma, beta).to(x.dtype), (x, mean, inverse, size)

    def curvature(self, saved, parameters, u, xdots, gradients):
        gamma, (_, _, inverse, size) = parameters[0], saved
        xhat, spatial = self._standardised(saved), u.dim() - 3
        u, v = u.to(xhat.dtype), xdots[0].to(xhat.dtype)
        dims = [0, *range(2, xhat.dim())]
        products = dot_stacks(u, v).sum(dims)  # [C], of this process
        own = self._sums(xhat, u), self._sums(xhat, v)
        joint = self._joint(torch.cat([torch.stack(own).flatten(0, 2), products.unsqueeze(0)])) / size
        means = joint[:-1].view(2, 2, len(u), -1)
        (u_mean, u_xhat), (v_mean, v_xhat) = means  # [K, C]
        S = joint[-1] - (u_mean * v_mean).sum(0) - (u_xhat * v_xhat).sum(0)  # [C]
        gradients.add(0, lambda: inverse * (products - (own[0] * means[1]).sum((0, 1))))
        second = dot_stacks(channels(v_xhat, spatial), u).add_(dot_stacks(channels(u_xhat, spatial), v))
        second -= channels((v_xhat * u_mean + u_xhat * v_mean).sum(0), spatial)
        second.addcmul_(xhat, channels(S - 2 * (u_xhat * v_xhat).sum(0), spatial))
        scale = -inverse.square() if gamma is None else -inverse.square() * gamma
        return (second.mul_(channels(scale, spatial)).to(saved[0].dtype),)

    def gradient(self, saved, parameters, d, gradients):
        super().gradient(saved[:3], parameters, d, gradients)

    def _project(self, saved, weight, stack):
        spatial, inverse, size = stack.dim() - 3, saved[2], saved[3]
        xhat = self._standardised(saved)
        v = stack.to(xhat.dtype) if weight is None else stack.to(xhat.dtype) * channels(weight, spatial)
        mean, along = self._joint(self._sums(xhat, v)) / size  # [K, C]
        projected = (v - channels(mean, spatial)).addcmul_(xhat, channels(along, spatial), value=-1)
        return projected.mul_(channels(inverse, spatial)).to(stack.dtype)

    def _standardised(self, saved: tuple) -> Tensor:
        """xhat, fresh."""
        x, mean, inverse, _ = saved
        return (x - channels(mean, x.dim() - 2)).mul_(channels(inverse, x.dim() - 2))

    def _sums(self, xhat: Tensor, stack: Tensor) -> Tensor:
        """Sums of v and of ``v xhat`` over this process's elements: ``[2, K, C]``."""
        dims = [1, *range(3, stack.dim())]
        return torch.stack([stack.sum(dims), (stack * xhat).sum(dims)])

    def _joint(self, sums: Tensor) -> Tensor:
        """Sums over all processes."""
        if self._several():
            torch.distributed.all_reduce(sums, group=self.group)
        return sums

    def _several(self) -> bool:
        distributed = torch.distributed
        return (
            distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(self.group) > 1
        )


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
    """``gamma xhat + beta`` where groups of a sample's elements have their own statistics: ``xhat = (x - m(x)) i``.

    gamma is not the same within a group, so ``J = diag(gamma) i P``, and gamma u takes the place of u in the formulas
    above. Parameters are gamma and beta, each possibly None. A subclass says what the groups are.
    """

    curvature_free = False

    def pull(self, saved, parameters, u):
        return (stacked([self.project(saved, parameters[0], member) for member in u]),)

    def push(self, saved, parameters, xdots):
        gamma = parameters[0]
        projected = stacked([self.project(saved, None, member) for member in xdots[0]])
        return projected if gamma is None else projected.mul_(self.broadcast(gamma, projected.dim() - 1))

    def project(self, saved: tuple, weight: Tensor | None, v: Tensor) -> Tensor:
        """``i P (weight v)``, fresh."""
        raise NotImplementedError

    def broadcast(self, parameter: Tensor, dims: int) -> Tensor:
        """gamma or beta so that it broadcasts against values with that many dimensions."""
        raise NotImplementedError

    def curvature(self, saved, parameters, u, xdots, gradients):
        (x, mean, inverse), gamma, (v,) = saved, parameters[0], xdots
        shape, rows, columns = x.shape, inverse.numel(), row_size(x, inverse)
        gradients.add(0, lambda: self._reduced(dot_stacks(u, self.push(saved, (None,), xdots)), gamma))
        if gamma is not None:
            u = u * self.broadcast(gamma, x.dim())
        u, v = (stack.reshape(len(stack), rows, columns) for stack in (u, v))  # [K, R, n]
        xhat = self._standardised(saved).reshape(rows, columns)  # [R, n]
        u_xhat, v_xhat = row_means(u * xhat), row_means(v * xhat)  # [K, R, 1]
        S = row_means(dot_stacks(u, v))  # [R, 1]
        second = dot_stacks(v_xhat, u).add_(dot_stacks(u_xhat, v))  # of v_xhat P u + u_xhat P v; then P's other terms
        if mean is not None:
            u_mean, v_mean = row_means(u), row_means(v)
            S = S - dot_stacks(u_mean, v_mean)
            second -= dot_stacks(v_xhat, u_mean) + dot_stacks(u_xhat, v_mean)
        second.addcmul_(xhat, S - 3 * dot_stacks(u_xhat, v_xhat))
        return (second.mul_(-inverse.reshape(rows, 1).square()).view(shape),)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._reduced(self._standardised(saved).mul_(d), parameters[0]))
        if len(parameters) > 1:
            gradients.add(1, lambda: self._reduced(d, parameters[1]))

    def _standardised(self, saved: tuple) -> Tensor:
        """xhat, fresh."""
        x, mean, inverse = saved
        rows = x.reshape(inverse.numel(), row_size(x, inverse))
        inverse = inverse.reshape(-1, 1)
        return (rows * inverse if mean is None else (rows - mean.reshape(-1, 1)).mul_(inverse)).view(x.shape)

    def _reduced(self, product: Tensor, parameter: Tensor) -> Tensor:
        return product.sum_to_size(self.broadcast(parameter, product.dim()).shape).view(parameter.shape)


class LayerNorm(AtOnce, Standardise):
    """Over the last dimensions, of this shape."""

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        self.shape = list(shape)
        self.eps = eps

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y, mean, inverse = torch.native_layer_norm(x, self.shape, *parameters, self.eps)
        return y, (x, mean, inverse)

    def project(self, saved, weight, v):
        return self.backward(saved, weight, v, [True, False, False])[0]

    def backward(self, saved, weight, v, mask):
        x, mean, inverse = saved
        shift = shaped(v, self.shape) if mask[2] else None
        return aten.native_layer_norm_backward(v, x, self.shape, mean, inverse, weight, shift, mask)

    def broadcast(self, parameter, dims):
        return parameter


class RootMeanSquareNorm(LayerNorm):
    """Without centring: ``xhat = x i``, ``i = (m(x^2) + eps)^{-1/2}`` (Zhang and Sennrich 2019, arXiv:1910.07467).

    P has no term for the mean; eps is the precision of x if None.
    """

    descend = Rule.descend

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        dims = list(range(-len(self.shape), 0))
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        inverse = torch.rsqrt(x.square().mean(dims, keepdim=True).add_(eps))
        y = x * inverse
        return y if parameters[0] is None else y.mul_(parameters[0]), (x, None, inverse)

    def project(self, saved, weight, v):
        x, _, inverse = saved
        v = v if weight is None else v * weight
        dims = list(range(-len(self.shape), 0))
        along = (v * x).mean(dims, keepdim=True).mul_(inverse.square())
        return torch.addcmul(v, x, along, value=-1).mul_(inverse)


class GroupNorm(AtOnce, Standardise):
    """Over groups of channels and all positions; over each channel alone if the number of groups is None."""

    def __init__(self, groups: int | None, eps: float) -> None:
        self.groups = groups
        self.eps = eps

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        x = x.contiguous()  # channels last, PyTorch's sums lose digits on a CPU, and elsewhere it may refuse
        groups = x.shape[1] if self.groups is None else self.groups
        if x.shape[1] % groups:
            raise ValueError(f"a group norm's input must have a multiple of {groups} channels, got {x.shape[1]}")
        if (math.prod(x.shape[2:]) if self.groups is None else x.numel() // groups) == 1:  # as PyTorch has it
            of = "instance" if self.groups is None else "group"
            raise ValueError(f"{of} statistics need more than one value, got an input of {tuple(x.shape)}")
        sizes = self._sizes(x)
        y, mean, inverse = torch.native_group_norm(x.view(sizes), *parameters, *sizes, groups, self.eps)
        return y.view(x.shape), (x, mean, inverse)

    def project(self, saved, weight, v):
        return self.backward(saved, weight, v, [True, False, False])[0]

    def backward(self, saved, weight, v, mask):
        x, mean, inverse = saved
        sizes, groups = self._sizes(x), mean.shape[1]
        values = v.contiguous().view(sizes), x.view(sizes)
        pulled, *own = aten.native_group_norm_backward(*values, mean, inverse, weight, *sizes, groups, mask)
        return pulled if pulled is None else pulled.view(x.shape), *own

    def broadcast(self, parameter, dims):
        return channels(parameter, dims - 2)

    def _sizes(self, x: Tensor) -> tuple[int, int, int]:
        """Batch, channels and pixels: three dimensions, so that no image of one channel is taken for channels last."""
        return (*x.shape[:2], math.prod(x.shape[2:]))


class InstanceNormTrain(GroupNorm):
    """Over each channel of a sample, with the mean of the samples' statistics kept in running ones.

    The buffers that its forward changes are the running mean and variance.
    """

    def __init__(self, eps: float, momentum: float) -> None:
        super().__init__(None, eps)
        self.momentum = momentum

    def forward(self, inputs, parameters, extras):
        result, (x,) = super().forward(inputs, parameters, ()), inputs
        of_samples = torch.var_mean(x, list(range(2, x.dim())))  # [B, C] each
        for running, own in zip(reversed(extras), of_samples, strict=True):
            running.lerp_(own.mean(0).to(running.dtype), self.momentum)
        return result


def row_size(x: Tensor, inverse: Tensor) -> int:
    """How many elements of x have one inverse."""
    return x.numel() // max(inverse.numel(), 1)


def row_means(rows: Tensor) -> Tensor:
    """Means over the last dimension, which stays."""
    return rows.mean(-1, keepdim=True)


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


@module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm_module(layer, x, parameter):
    statistics = parameter("running_mean"), parameter("running_var")
    training = layer.training or statistics == (None, None)
    batches = parameter("num_batches_tracked") if layer.training and layer.track_running_stats else None
    if layer.training and not layer.track_running_stats:
        statistics = None, None
    affine = parameter("weight"), parameter("bias")
    if isinstance(layer, nn.SyncBatchNorm) and layer.training:
        rule = SynchronisedBatchNorm(layer.eps, layer.momentum, layer.process_group)
        return Call(rule, (x,), affine, (), (*statistics, batches))
    return batch_norm(x, *statistics, *affine, training, layer.momentum, layer.eps, batches)


@module("timm.layers.norm_act.BatchNormAct2d")
def batch_norm_activation(layer, x, parameter):
    y = submodule(layer, "drop", parameter, batch_norm_module(layer, x, parameter))
    return y if isinstance(y, str) else submodule(layer, "act", parameter, y)


@function(functional.layer_norm, torch.layer_norm)
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return Call(LayerNorm(normalized_shape, eps), (input,), (weight, bias))


@function(functional.rms_norm, torch.rms_norm)
def rms_norm(input, normalized_shape, weight=None, eps=None):
    return Call(RootMeanSquareNorm(normalized_shape, eps), (input,), (weight,))


@function(functional.group_norm, torch.group_norm)
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    return Call(GroupNorm(num_groups, eps), (input,), (weight, bias))


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
    if running_mean is None:
        return Call(GroupNorm(None, eps), (input,), (weight, bias))
    return Call(InstanceNormTrain(eps, momentum), (input,), (weight, bias), (), (running_mean, running_var))


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
    return instance_norm(x, *tensors, own, layer.momentum or 0.0, layer.eps)
