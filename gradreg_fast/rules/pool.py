"""Pooling: linear once the winners are known, so maxima keep their indices and averages keep nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, is_channels_last, map_rows, shaped
from gradreg_fast.rules.call import Call, each, function, module
from gradreg_fast.rules.shape import reshaping

aten = torch.ops.aten


@dataclass(frozen=True)
class Windows:
    """Windows that slide over images, heights before widths.

    Attributes:
        size: of a window; None for that of the image.
        stride: from one to the next.
        padding: at each side.
        ceil: the last ones may end behind the padding; else all lie within the image and its padding.
    """

    size: tuple[int, int] | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil: bool = False

    @property
    def whole(self) -> bool:
        """Whether their size is known, and all lie within the image and its padding."""
        return self.size is not None and not self.ceil

    def counts(self, image: tuple[int, int]) -> tuple[int, int]:
        """How many fit into an image, below each other and side by side."""
        return tuple(map(self._count, image, self.size or image, self.stride, self.padding))

    def options(self, x: Tensor) -> tuple[int, ...]:
        """What kernels are told of them on images ``x [..., H, W]``."""
        image = x.shape[-2:]
        sizes = *(self.size or image), *self.stride, *self.padding, *image, *self.counts(image)
        return *sizes, is_channels_last(x)

    def _count(self, length: int, size: int, stride: int, padding: int) -> int:
        room = length + 2 * padding - size
        if not self.ceil:
            return room // stride + 1
        return min(-(-room // stride), (length + padding - 1) // stride) + 1  # none begins behind the image


EVERYTHING = Windows(None, (1, 1), (0, 0))


class MaxPool(Rule):
    """Maximum over windows; the derivative goes to the winner that PyTorch names (the first of equals).

    Args:
        windows: aten's function returning ``(y, indices)``, with its settings bound: ``x [B, C, *image]`` (or
            ``[B, *image]``, which PyTorch pools as well).
        shape: the windows, if these settings say it all.
        dims: of an image.

    Attributes:
        whole: each maximum is over a whole window.
    """

    fresh = True
    homogeneous = True

    def __init__(self, windows, shape: Windows | None = None, dims: int = 2) -> None:
        self.windows = windows
        self.shape = shape
        self.dims = dims
        self.whole = shape is not None and shape.whole

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        images = x if x.dim() == 2 + self.dims else x.unsqueeze(1)
        y, indices = self.windows(images)  # indices into the flattened image
        return y.view(*x.shape[: -self.dims], *y.shape[2:]), (indices, x.shape, is_channels_last(images))

    def pull(self, saved, parameters, u):
        indices, shape, last = saved
        K, (B, C), image = len(u), indices.shape[:2], shape[-self.dims :]
        flat = u.new_zeros((K, B, image.numel(), C) if last else (K, B, C, image.numel()))
        index = flat_pixels(indices.unsqueeze(0), last).expand(K, *(-1,) * 3)
        flat.scatter_add_(2 if last else 3, index, flat_pixels(u.reshape(K, *indices.shape), last))
        return (flat.view(K, B, *image, C).permute(0, 1, 4, 2, 3) if last else flat.view(K, *shape),)

    def push(self, saved, parameters, xdots):
        indices, shape, last = saved
        K, (B, C, *image) = len(xdots[0]), indices.shape
        index = flat_pixels(indices.unsqueeze(0), last).expand(K, *(-1,) * 3)
        xdot = xdots[0].reshape(K, B, C, *shape[-self.dims :])
        ydot = flat_pixels(xdot, last).gather(2 if last else 3, index)
        return ydot.view(K, B, *image, C).permute(0, 1, 4, 2, 3) if last else ydot.view(K, *shape[: -self.dims], *image)


class AveragePool(Rule):
    """An average over windows: linear.

    Args:
        windows: aten's pooling function with its settings bound, of ``[rows, C, H, W]``.
        backward: aten's function of ``(u, x)``, which uses no more than the shape of x.
        shape: the windows, if they are the same wherever they lie.
        counts_padding: as places of the windows that reach into it.
        divisor: of all windows' sums; 0 for how many places each has.

    Attributes:
        whole: each average is over a whole window.
    """

    fresh = True
    homogeneous = True

    def __init__(
        self, windows, backward, shape: Windows | None = None, counts_padding: bool = True, divisor: int = 0
    ) -> None:
        self.windows = windows
        self.backward = backward
        self.shape = shape
        self.counts_padding = counts_padding
        self.divisor = divisor
        self.whole = shape is not None and shape.whole and not divisor and (counts_padding or shape.padding == (0, 0))

    def forward(self, inputs, parameters, extras):
        return self.windows(inputs[0]), (inputs[0].shape, is_channels_last(inputs[0]))

    def pull(self, saved, parameters, u):
        shape, last = saved

        def pull(rows):
            x = shaped(rows, (rows.shape[0], *shape[1:]))
            if last:  # the result takes its layout, which `rows` are brought to
                x = torch.empty_like(x, memory_format=torch.channels_last)
            return self.backward(rows, x)

        return (map_rows(pull, u),)

    def push(self, saved, parameters, xdots):
        return map_rows(self.windows, xdots[0])


def flat_pixels(stack: Tensor, last: bool) -> Tensor:
    """A stack ``[K, B, C, *image]`` as ``[K, B, C, pixels]``, or ``[K, B, pixels, C]`` if the channels are last."""
    return stack.permute(0, 1, 3, 4, 2).flatten(2, 3) if last else stack.flatten(3)


def max_pool(dims: int, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    if return_indices:
        return "it returns indices"
    windows = (each(kernel_size, dims), each(stride or kernel_size, dims), each(padding, dims))
    settings = (*windows, each(dilation, dims), ceil_mode)
    plain = dims == 2 and each(dilation, 2) == [1, 1]
    pool = getattr(aten, f"max_pool{dims}d_with_indices")
    rule = MaxPool(lambda x: pool(x, *settings), Windows(*map(tuple, windows), ceil_mode) if plain else None, dims)
    return Call(rule, (input,))


def average_pool(
    dims: int,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    if dims == 1:
        windows = [(1, *each(kernel_size, 1)), (1, *each(stride or kernel_size, 1)), (0, *each(padding, 1))]
        return as_images(average_pool, input, *windows, ceil_mode, count_include_pad)
    windows = (each(kernel_size, dims), each(stride or kernel_size, dims), each(padding, dims))
    settings = (*windows, ceil_mode, count_include_pad, divisor_override)
    pool, backward = getattr(aten, f"avg_pool{dims}d"), getattr(aten, f"avg_pool{dims}d_backward")
    rule = AveragePool(
        lambda x: pool(x, *settings),
        lambda u, x: backward(u, x, *settings),
        Windows(*map(tuple, windows), ceil_mode) if dims == 2 else None,
        count_include_pad,
        divisor_override or 0,
    )
    return Call(rule, (input,))


def adaptive_average_pool(dims: int, input, output_size):
    if dims == 1:
        return as_images(adaptive_average_pool, input, (1, *each(output_size, 1)))
    pool = getattr(functional, f"adaptive_avg_pool{dims}d")
    backward = getattr(aten, f"_adaptive_avg_pool{dims}d_backward")
    whole_image = dims == 2 and each(output_size, 2) == [1, 1]
    return Call(AveragePool(lambda x: pool(x, output_size), backward, EVERYTHING if whole_image else None), (input,))


def adaptive_max_pool(dims: int, input, output_size, return_indices=False):
    if return_indices:
        return "it returns indices"
    pool = getattr(functional, f"adaptive_max_pool{dims}d_with_indices")
    return Call(MaxPool(lambda x: pool(x, output_size), dims=dims), (input,))


def as_images(pool: Callable, input, *settings):
    """Pooling of sequences as that of images of height one."""
    return reshaping(torch.squeeze, pool(2, reshaping(torch.unsqueeze, input, -2), *settings), -2)


# The functions, and how modules' settings become arguments.

MAX = max_pool, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
AVERAGE = average_pool, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"
KINDS = (
    ("max_pool", "MaxPool", (1, 2, 3), *MAX),
    ("avg_pool", "AvgPool", (1,), *AVERAGE),
    ("avg_pool", "AvgPool", (2, 3), *AVERAGE, "divisor_override"),
    ("adaptive_avg_pool", "AdaptiveAvgPool", (1, 2, 3), adaptive_average_pool, "output_size"),
    ("adaptive_max_pool", "AdaptiveMaxPool", (1, 2, 3), adaptive_max_pool, "output_size", "return_indices"),
)

for function_name, module_name, numbers, entry, *settings in KINDS:
    spaces = (functional,) if entry is adaptive_max_pool else (functional, torch)  # torch's own returns indices, too
    for dims in numbers:
        name, pool = f"{function_name}{dims}d", partial(entry, dims)
        function(*(getattr(space, name) for space in spaces if hasattr(space, name)))(pool)

        def from_settings(layer, x, parameter, pool=pool, settings=settings):
            return pool(x, *(getattr(layer, name) for name in settings))

        module(getattr(nn, f"{module_name}{dims}d"))(from_settings)
