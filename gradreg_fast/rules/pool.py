"""Pooling: linear once the winners are known, so maxima keep their indices and averages keep nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, is_channels_last, map_rows, shaped
from gradreg_fast.rules.call import Call, each, function, module

aten = torch.ops.aten


@dataclass(frozen=True)
class Windows:
    """Windows that slide over images, heights before widths: all of them within the image and its padding.

    Attributes:
        size: of a window.
        stride: from one to the next.
        padding: at each side.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def counts(self, image: tuple[int, int]) -> tuple[int, int]:
        """How many fit into an image, below each other and side by side."""
        parts = zip(image, self.size, self.stride, self.padding, strict=True)
        return tuple((length + 2 * padding - size) // stride + 1 for length, size, stride, padding in parts)


class MaxPool(Rule):
    """Maximum over windows; the derivative goes to the winner that PyTorch names (the first of equals).

    Args:
        windows: aten's function returning ``(y, indices)``, with its settings bound: ``x [B, C, H, W]`` (or
            ``[B, H, W]``, which PyTorch pools as well).
        shape: the windows, if these settings say it all.
    """

    def __init__(self, windows, shape: Windows | None = None) -> None:
        self.windows = windows
        self.shape = shape

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        images = x if x.dim() == 4 else x.unsqueeze(1)
        y, indices = self.windows(images)  # indices into the flattened H * W
        return y.view(*x.shape[:-2], *y.shape[2:]), (indices, x.shape, is_channels_last(images))

    def pull(self, saved, parameters, u):
        indices, shape, last = saved
        K, (B, C, _, _), (H, W) = len(u), indices.shape, shape[-2:]
        flat = u.new_zeros((K, B, H * W, C) if last else (K, B, C, H * W))
        index = flat_pixels(indices.unsqueeze(0), last).expand(K, *(-1,) * 3)
        flat.scatter_add_(2 if last else 3, index, flat_pixels(u.reshape(K, *indices.shape), last))
        return (flat.view(K, B, H, W, C).permute(0, 1, 4, 2, 3) if last else flat.view(K, *shape),)

    def push(self, saved, parameters, xdots):
        indices, shape, last = saved
        K, (B, C, h, w) = len(xdots[0]), indices.shape
        index = flat_pixels(indices.unsqueeze(0), last).expand(K, *(-1,) * 3)
        xdot = xdots[0].reshape(K, B, C, *shape[-2:])
        ydot = flat_pixels(xdot, last).gather(2 if last else 3, index)
        return ydot.view(K, B, h, w, C).permute(0, 1, 4, 2, 3) if last else ydot.view(K, *shape[:-2], h, w)


class AveragePool(Rule):
    """An average over windows: linear.

    Args:
        windows: aten's pooling function with its settings bound, of ``[rows, C, H, W]``.
        backward: aten's function of ``(u, x)``, which uses no more than the shape of x.
        shape: the windows, if these settings say it all and each average is over a whole window.
    """

    def __init__(self, windows, backward, shape: Windows | None = None) -> None:
        self.windows = windows
        self.backward = backward
        self.shape = shape

    def forward(self, inputs, parameters, extras):
        return self.windows(inputs[0]), (inputs[0].shape,)

    def pull(self, saved, parameters, u):
        (shape,) = saved
        return (map_rows(lambda rows: self.backward(rows, shaped(rows, (rows.shape[0], *shape[1:]))), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(self.windows, xdots[0])


def flat_pixels(stack: Tensor, last: bool) -> Tensor:
    """A stack ``[K, B, C, H, W]`` as ``[K, B, C, H * W]``, or ``[K, B, H * W, C]`` if the channels are to be last."""
    return stack.permute(0, 1, 3, 4, 2).flatten(2, 3) if last else stack.flatten(3)


@function(functional.max_pool2d, torch.max_pool2d)
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    if return_indices:
        return "it returns indices"
    windows = (each(kernel_size, 2), each(stride or kernel_size, 2), each(padding, 2))
    settings = (*windows, each(dilation, 2), ceil_mode)
    shape = Windows(*map(tuple, windows)) if each(dilation, 2) == [1, 1] and not ceil_mode else None
    return Call(MaxPool(lambda x: aten.max_pool2d_with_indices(x, *settings), shape), (input,))


@function(functional.avg_pool2d)
def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    windows = (each(kernel_size, 2), each(stride or kernel_size, 2), each(padding, 2))
    settings = (*windows, ceil_mode, count_include_pad, divisor_override)
    whole = not ceil_mode and divisor_override is None and (count_include_pad or windows[2] == [0, 0])
    pool = AveragePool(
        lambda x: aten.avg_pool2d(x, *settings),
        lambda u, x: aten.avg_pool2d_backward(u, x, *settings),
        Windows(*map(tuple, windows)) if whole else None,
    )
    return Call(pool, (input,))


@function(functional.adaptive_avg_pool2d)
def adaptive_avg_pool2d(input, output_size):
    pool = AveragePool(lambda x: functional.adaptive_avg_pool2d(x, output_size), aten._adaptive_avg_pool2d_backward)
    return Call(pool, (input,))


@function(functional.adaptive_max_pool2d)
def adaptive_max_pool2d(input, output_size, return_indices=False):
    if return_indices:
        return "it returns indices"
    pool = MaxPool(lambda x: functional.adaptive_max_pool2d_with_indices(x, output_size))
    return Call(pool, (input,))


@module(nn.MaxPool2d)
def max_pool2d_module(layer, x, parameter):
    windows = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return max_pool2d(x, *windows, layer.ceil_mode, layer.return_indices)


@module(nn.AvgPool2d)
def avg_pool2d_module(layer, x, parameter):
    settings = layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding, *settings)


@module(nn.AdaptiveAvgPool2d)
def adaptive_avg_pool2d_module(layer, x, parameter):
    return adaptive_avg_pool2d(x, layer.output_size)


@module(nn.AdaptiveMaxPool2d)
def adaptive_max_pool2d_module(layer, x, parameter):
    return adaptive_max_pool2d(x, layer.output_size, layer.return_indices)
