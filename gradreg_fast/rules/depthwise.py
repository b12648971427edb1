"""The weight's gradient of a depthwise convolution over small images: a product of all pixels with all pixels.

oneDNN's takes 5 to 20 times a forward's time on one thread of a CPU. Of a channel's product ``sum_b u_b x_b^T``, each
element belongs to one of the kernel's cells or to none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gradreg_fast.rules.base import has_numbers

MOST_PAIRS = 64  # of pixels, for each cell of the kernel: up to there 0.05 to 0.7 of oneDNN's time


def is_faster(u: Tensor, x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `weight_gradient` is ahead of PyTorch's for this convolution."""
    if not (x.device.type == "cpu" and x.dim() == 4 and groups == len(weight) == x.shape[1] and has_numbers(u)):
        return False
    return math.prod(u.shape[2:]) * math.prod(x.shape[2:]) <= MOST_PAIRS * weight[0].numel()


def weight_gradient(
    u: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``sum_b dW_b`` for cotangents ``u [B, C, ...]`` of y and images ``x [B, C, ...]``, shaped like the weight."""
    sizes = tuple(u.shape[2:]), tuple(x.shape[2:]), tuple(weight.shape[2:])
    cells = _cells(*sizes, tuple(stride), tuple(padding), tuple(dilation))
    products = torch.bmm(u.flatten(2).permute(1, 2, 0), x.flatten(2).permute(1, 0, 2))  # [C, pixels of u, of x]
    sums = products.new_zeros(len(weight), weight[0].numel() + 1).index_add_(1, cells, products.flatten(1))
    return sums[:, :-1].reshape(weight.shape)


@lru_cache(maxsize=64)
def _cells(above: tuple, below: tuple, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple) -> Tensor:
    """For each pair of pixels of y and of x, the number of the kernel's cell between them; one more for none."""
    rows, columns = (_offsets(*sizes) for sizes in zip(above, below, kernel, stride, padding, dilation, strict=True))
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    cells = torch.where((rows < 0) | (columns < 0), kernel[0] * kernel[1], rows * kernel[1] + columns)
    return cells.flatten()


def _offsets(above: int, below: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """For each pair of places along one dimension the place in the kernel, or -1."""
    steps = torch.arange(below, device="cpu") + padding - stride * torch.arange(above, device="cpu")[:, None]
    inside = (steps >= 0) & (steps < kernel * dilation) & (steps % dilation == 0)
    return torch.where(inside, steps // dilation, -1)
