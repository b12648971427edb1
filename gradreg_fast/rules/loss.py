"""Loss heads, one loss per sample: nodes like any other, placed on top of a network.

They couple a sample's outputs only, and are small next to the network: plain PyTorch lines on ``y [B, C, ...]``. The
target is the node's only parameter and gets no gradient.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks, has_numbers


class CrossEntropy(Rule):
    """Mean over a sample's positions of ``-sum_c t_c log softmax(y)_c``; classes in dimension 1.

    The target holds class indices ``[B, ...]`` (negative: the position counts nothing) or probabilities shaped as y.
    """

    curvature_free = False

    def forward(self, inputs, parameters, extras):
        (y,) = inputs
        t = class_weights(parameters[0], y)
        logarithms = torch.log_softmax(y, 1)
        losses = (t * logarithms).flatten(1).sum(1)  # [B]
        p = logarithms.exp_()
        positions = math.prod(y.shape[2:])
        weighted = p * t.sum(1, keepdim=True)
        if positions > 1:
            losses, t, weighted = losses / positions, t / positions, weighted / positions
        return -losses, (p, weighted, weighted - t)

    def pull(self, saved, parameters, u):
        _, _, gradient = saved
        return (seed(u, gradient) * gradient,)

    def push(self, saved, parameters, xdots):
        _, _, gradient = saved
        return (xdots[0] * gradient).flatten(2).sum(2)

    def curvature(self, saved, parameters, u, xdots, gradients):
        p, weighted, _ = saved
        (v,) = xdots
        centred = v - (p * v).sum(2, keepdim=True)  # [K, B, C, ...]
        return (dot_stacks(seed(u, p) * weighted, centred),)


class MeanSquaredError(Rule):
    """Mean over a sample's outputs of ``(y - target)^2``."""

    curvature_free = False

    def forward(self, inputs, parameters, extras):
        difference = inputs[0] - same_shape(parameters[0], inputs[0])
        return difference.square().flatten(1).mean(1) if difference.dim() > 1 else difference.square(), (difference,)

    def pull(self, saved, parameters, u):
        (difference,) = saved
        return (seed(u, difference) * (difference * (2 / outputs(difference))),)

    def push(self, saved, parameters, xdots):
        (difference,) = saved
        return sum_outputs(xdots[0] * (difference * (2 / outputs(difference))))

    def curvature(self, saved, parameters, u, xdots, gradients):
        (difference,) = saved
        return (dot_stacks(seed(u, difference), xdots[0]).mul_(2 / outputs(difference)),)


class BinaryCrossEntropy(Rule):
    """Mean over a sample's outputs of the logistic loss of logits y with targets in [0, 1]."""

    curvature_free = False

    def forward(self, inputs, parameters, extras):
        (y,) = inputs
        target = same_shape(parameters[0], y)
        losses = functional.binary_cross_entropy_with_logits(y, target, reduction="none")
        return losses.flatten(1).mean(1) if y.dim() > 1 else losses, (torch.sigmoid(y), target)

    def pull(self, saved, parameters, u):
        p, target = saved
        return (seed(u, p) * ((p - target) / outputs(p)),)

    def push(self, saved, parameters, xdots):
        p, target = saved
        return sum_outputs(xdots[0] * ((p - target) / outputs(p)))

    def curvature(self, saved, parameters, u, xdots, gradients):
        p, _ = saved
        return (dot_stacks(seed(u, p), xdots[0]).mul_(p * (1 - p) / outputs(p)),)


def class_weights(target: Tensor, y: Tensor) -> Tensor:
    """The target as weights of the classes, ``[B, C, ...]`` like y."""
    if target.shape == y.shape and target.is_floating_point():
        return target.to(y.dtype)
    if target.is_floating_point() or target.dtype == torch.bool or target.shape != (y.shape[0], *y.shape[2:]):
        raise ValueError(
            f"target must hold class indices {(y.shape[0], *y.shape[2:])} or probabilities {tuple(y.shape)}, got "
            f"{tuple(target.shape)} of {target.dtype}"
        )
    if target.device.type == "cpu" and has_numbers(target) and target.numel() and target.max() >= y.shape[1]:
        raise ValueError(f"target must hold class indices below {y.shape[1]}, got {int(target.max())}")
    classes = torch.arange(y.shape[1], device=y.device).view(-1, *(1,) * (y.dim() - 2))  # [C, ...]
    return (target.unsqueeze(1) == classes).to(y.dtype)


def same_shape(target: Tensor, y: Tensor) -> Tensor:
    """The target in y's shape: one output per sample may be ``[B]`` or ``[B, 1]``."""
    single = target.numel() == y.numel() == y.shape[0] and target.dim() <= 2 and y.dim() <= 2
    if target.shape != y.shape and not single:
        raise ValueError(f"target must be shaped like the output {tuple(y.shape)}, got {tuple(target.shape)}")
    return target.to(y.dtype).view_as(y)


def outputs(y: Tensor) -> int:
    """How many outputs a sample has."""
    return y[0].numel() if y.shape[0] else 1


def seed(u: Tensor, y: Tensor) -> Tensor:
    """Cotangents ``[K, B]`` of the losses, shaped to multiply ``y [B, ...]``."""
    return u[(...,) + (None,) * (y.dim() - 1)]


def sum_outputs(stack: Tensor) -> Tensor:
    """``[K, B, ...]`` summed to ``[K, B]``."""
    return stack.flatten(2).sum(2) if stack.dim() > 2 else stack
