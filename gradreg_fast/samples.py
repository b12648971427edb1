"""Sums over each sample's stack of cotangents, and their adjoint: compiled passes on CUDA, else PyTorch lines."""

from __future__ import annotations

import torch
from torch import Tensor

from gradreg_fast.backend import KERNELS, available
from gradreg_fast.rules.base import at_least_single, elements, is_plain, per_sample


def dot_samples(a: Tensor, b: Tensor) -> Tensor:
    """``sum_k <a^k, b^k>`` of each sample for stacks ``[K, B, ...]``: ``[B]``, at least in float32."""
    if _served(a, b):
        return torch.ops.gradreg_fast.dot_samples(a, b)
    dtype = at_least_single(a.dtype)
    if a is b:  # in one pass
        return torch.linalg.vector_norm(elements(a), dim=2, dtype=dtype).square().sum(0)
    return elements(a * b).sum((0, 2), dtype=dtype)


def scale_samples(stack: Tensor, factor: Tensor, other: Tensor | None = None) -> Tensor:
    """A stack ``[K, B, ...]`` times each sample's factor ``[B]``, and times another stack if given, in its dtype."""
    if _served(stack, stack if other is None else other):
        return torch.ops.gradreg_fast.scale_samples(stack, other, factor.to(at_least_single(stack.dtype)).contiguous())
    scaled = (stack * per_sample(factor, stack[0])).to(stack.dtype)
    return scaled if other is None else scaled.mul_(other)


def _served(*stacks: Tensor) -> bool:
    device = stacks[0].device
    return (
        KERNELS.get(device.type) == "cuda"
        and all(stack.dtype == stacks[0].dtype and stack.is_contiguous() and is_plain(stack) for stack in stacks)
        and available(device)
    )
