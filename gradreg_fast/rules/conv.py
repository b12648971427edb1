"""Convolutions: linear in x; the three products of a layer are one aten call each."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules import depthwise
from gradreg_fast.rules.base import (
    BatchProduct,
    NodeGradients,
    Rule,
    add_values,
    has_symbols,
    is_channels_last,
    map_rows,
    per_sample,
    shared_rows,
)
from gradreg_fast.rules.call import Call, each, function, module
from gradreg_fast.rules.pad import Pad

aten = torch.ops.aten

# Measured on one thread of a CPU:
LARGE_WEIGHTS = 8  # times the images: beyond, neither is laid out anew
FEW_CHANNELS, FEW_NUMBERS = 4, 2**20  # of images, up to which patches are copied for one product


class Conv(Rule):
    """``y = W * x + b`` with zero padding, for any number of spatial dimensions.

    Parameters are ``W [out, in / groups, *kernel]`` and ``b [out]`` or None.
    """

    fresh = True
    homogeneous = True
    transposed = False

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.output_padding = [0] * len(stride)

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        weight, bias = parameters
        if x.dim() != weight.dim():
            raise ValueError(f"a convolution's input must be a batch with {weight.dim()} dimensions, got {x.dim()}")
        if x.device.type == "cpu" and x.dim() == 4 and x.dtype != torch.float64:  # float64 does not run on oneDNN
            kernel = self._patch(x, weight)
            if kernel is not None:
                x = _patches(x, kernel).contiguous()
                return _images(functional.linear(x, weight.flatten(1), bias), (1, 1)), (x, weight, kernel)
            large = weight.numel() > LARGE_WEIGHTS * x.numel()
            if large and not is_channels_last(weight):
                x = x.contiguous()  # copying the weights, and their gradients, would take longer than it saves
            else:
                x, weight = channels_last(x), channels_last(weight)
        return self._convolve(x, weight, bias), (x, weight, None)

    def pull(self, saved, parameters, u):
        return (map_rows(lambda rows: self._pull(rows, *saved), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(lambda rows: self._push(rows, *saved), xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        self._add_stacked(gradients, u, xdots[0], saved, later=True)
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        self._add_weight_gradient(gradients, d, saved[0], saved)
        gradients.add(1, lambda: d.flatten(2).sum((0, 2)))

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        x, _, kernel = saved
        x = x if kernel is None else _images(x, kernel)
        self.affine_gradient(saved, parameters, u, (add_values(xdots[0], scale, x),), scale, gradients)

    def affine_gradient(self, saved, parameters, u, xdots, scale, gradients):
        self._add_stacked(gradients, u, xdots[0], saved, later=False)
        gradients.add(1, lambda: scale @ u[0].flatten(2).sum(2))

    def push_affine(self, saved, parameters, xdots, scale):
        ydot, (_, bias) = self.push(saved, parameters, xdots), parameters
        if bias is not None:
            ydot[0].addcmul_(per_sample(scale, ydot[0]), bias.view(-1, *(1,) * len(self.stride)))
        return ydot

    def flops(self, parameters, shape, inputs):
        return 2 * shape.numel() * math.prod(parameters[0].shape[1:])

    def output_shape(self, shape: Sequence[int], weight: Tensor) -> torch.Size:
        """The shape of y from that of x."""
        spans = [step * (size - 1) + 1 for step, size in zip(self.dilation, weight.shape[2:], strict=True)]
        sizes = zip(shape[2:], spans, self.stride, self.padding, strict=True)
        return torch.Size([shape[0], len(weight), *((n + 2 * p - span) // s + 1 for n, span, s, p in sizes)])

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return aten.convolution(x, weight, bias, *self._settings())

    def weight_gradient(self, u: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The sum over the batch of ``dW`` for the cotangents u of y."""
        if max(self.stride) > 1 and math.prod(weight.shape[2:]) == 1 and not any(self.padding) and not self.transposed:
            # The pixels that strides leave: oneDNN gathers them itself, which takes as long, and where channels are few
            # writes beyond its memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
            x = x[(..., *(slice(None, None, step) for step in self.stride))]
            return Conv([1] * len(self.stride), self.padding, self.dilation, self.groups).weight_gradient(u, x, weight)
        if depthwise.is_faster(u, x, weight, self.groups) and not self.transposed:
            return depthwise.weight_gradient(u, x, weight, self.stride, self.padding, self.dilation)
        return self._backward(u, x, weight, 1)

    def _push(self, xdot: Tensor, x: Tensor, weight: Tensor, kernel: Sequence[int] | None) -> Tensor:
        if kernel is None:
            return self._convolve(_like(xdot, x), weight, None)
        return _images(functional.linear(_patches(xdot, kernel), weight.flatten(1)), (1, 1))

    def _pull(self, u: Tensor, x: Tensor, weight: Tensor, kernel: Sequence[int] | None) -> Tensor:
        if kernel is not None:
            return _images(_patches(u, (1, 1)).matmul(weight.flatten(1)), kernel)
        u = _like(u, x)
        if u.shape[0] != x.shape[0]:  # only the shape and the layout of x matter
            layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
            x = torch.empty((u.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
        return self._backward(u, x, weight, 0)

    def _backward(self, u: Tensor, x: Tensor, weight: Tensor, position: int) -> Tensor:
        mask = [position == 0, position == 1, False]
        return aten.convolution_backward(u, x, weight, None, *self._settings(), mask)[position]

    def _settings(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def _add_stacked(self, gradients: NodeGradients, u: Tensor, xdot: Tensor, saved: tuple, later: bool) -> None:
        """Add ``sum_k u^k (x) xdot^k`` to the weight's gradient; `later`: another term is to come."""
        _, weight, kernel = saved
        u, xdot = (u[:, 0], xdot.sum(1)) if shared_rows(u) else (u.flatten(0, 1), xdot.flatten(0, 1))
        wide = not has_symbols(xdot.shape) and weight.numel() > u.numel() + xdot.numel()  # than what would wait
        xdot = xdot if kernel is None else _patches(xdot, kernel)
        self._add_weight_gradient(gradients, u, xdot, saved, later and wide)

    def _add_weight_gradient(
        self, gradients: NodeGradients, u: Tensor, x: Tensor, saved: tuple, later: bool = False
    ) -> None:
        like, weight, kernel = saved
        if kernel is None:
            gradients.add_over_batch(0, BatchProduct(self, _like(u, like), _like(x, like), weight), later)
        else:
            gradients.add_product(0, _patches(u, (1, 1)).flatten(0, 2), x.flatten(0, 2), weight.shape[1:])

    def _patch(self, x: Tensor, weight: Tensor) -> Sequence[int] | None:
        """The kernel, where the convolution is to be one product of the weights with patches of the images.

        That is where patches do not overlap. Compared with oneDNN's convolutions on one thread, the four sweeps take
        0.2 to 0.9 of the time for images with few channels or few numbers, as much for large ones if each pixel is a
        patch, and up to 1.2 times as much if patches have to be copied.
        """
        kernel = weight.shape[2:]
        if self.transposed or self.groups > 1 or any(self.padding) or tuple(self.stride) != tuple(kernel):
            return None
        if math.prod(kernel) == 1:
            return kernel
        few = not has_symbols(x.shape) and (x.shape[1] <= FEW_CHANNELS or x.numel() <= FEW_NUMBERS)
        whole = few and all(size % step == 0 for size, step in zip(x.shape[2:], kernel, strict=True))
        return kernel if whole and max(self.dilation) == 1 else None


class ConvTranspose(Conv):
    """The adjoint of a convolution, for any number of spatial dimensions.

    Parameters are ``W [in, out / groups, *kernel]`` and ``b [out]`` or None.
    """

    transposed = True

    def __init__(
        self, stride: list[int], padding: list[int], output_padding: list[int], dilation: list[int], groups: int
    ) -> None:
        super().__init__(stride, padding, dilation, groups)
        self.output_padding = output_padding

    def flops(self, parameters, shape, inputs):
        inputs, *rest = parameters[0].shape
        return 2 * shape.numel() * inputs // self.groups * math.prod(rest[1:]) // math.prod(self.stride)


def _patches(images: Tensor, kernel: Sequence[int]) -> Tensor:
    """Images ``[B, C, H, W]`` as the patches that a kernel of this size, which is also the stride, sees.

    ``[B, H / height, W / width, C height width]``.
    """
    height, width = kernel
    if height == width == 1:
        return images.permute(0, 2, 3, 1)
    B, C, H, W = images.shape
    return images.reshape(B, C, H // height, height, W // width, width).permute(0, 2, 4, 1, 3, 5).flatten(3)


def _images(patches: Tensor, kernel: Sequence[int]) -> Tensor:
    """The inverse of `_patches`: images that lie channels last."""
    height, width = kernel
    if height == width == 1:
        return patches.permute(0, 3, 1, 2)
    B, h, w, _ = patches.shape
    pixels = patches.view(B, h, w, -1, height, width).permute(0, 1, 4, 2, 5, 3)  # [B, h, height, w, width, C]
    return pixels.reshape(B, h * height, w * width, -1).permute(0, 3, 1, 2)


def _like(images: Tensor, x: Tensor) -> Tensor:
    """The images contiguous if x is: of two layouts oneDNN takes the one for which weights have to be copied."""
    both = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return images.contiguous() if x.is_contiguous() and not both else images


def channels_last(x: Tensor) -> Tensor:
    """The tensor with its channels next to each other, which oneDNN and PyTorch's pooling prefer, by up to 5x."""
    x = x.contiguous(memory_format=torch.channels_last)
    _, C, H, W = x.shape
    if C == 1:  # both layouts at once: say which
        return x.as_strided(x.shape, (H * W, 1, W, 1))
    return x


def convolution(dims: int, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, mode="zeros"):
    stride, dilation = each(stride, dims), each(dilation, dims)
    if padding == "valid":
        padding = 0
    if padding == "same":
        return "padding='same' needs the module's kernel size"
    padding = each(padding, dims)
    if mode == "zeros":
        return Call(Conv(stride, padding, dilation, groups), (input,), (weight, bias))
    around = [amount for size in reversed(padding) for amount in (size, size)]
    return padded(input, around, mode, Conv(stride, [0] * dims, dilation, groups), (weight, bias))


def padded(input, around, mode, conv, parameters):
    return Call(conv, (Call(Pad(around, "constant" if mode == "zeros" else mode), (input,)),), parameters)


def convolution_module(dims: int, layer, x, parameter):
    stride, dilation = each(layer.stride, dims), each(layer.dilation, dims)
    parameters = (parameter("weight"), parameter("bias"))
    if layer.padding == "same":  # as PyTorch: the odd cell goes to the end
        total = [step * (size - 1) for step, size in zip(dilation, layer.kernel_size, strict=True)]
        around = [amount for size in reversed(total) for amount in (size // 2, size - size // 2)]
        if layer.padding_mode == "zeros" and all(size % 2 == 0 for size in total):
            return convolution(dims, x, *parameters, stride, [size // 2 for size in total], dilation, layer.groups)
        return padded(x, around, layer.padding_mode, Conv(stride, [0] * dims, dilation, layer.groups), parameters)
    return convolution(dims, x, *parameters, stride, layer.padding, dilation, layer.groups, layer.padding_mode)


def transposed(dims: int, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    settings = (each(setting, dims) for setting in (stride, padding, output_padding, dilation))
    return Call(ConvTranspose(*settings, groups), (input,), (weight, bias))


def transposed_module(dims: int, layer, x, parameter):
    settings = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return transposed(dims, x, parameter("weight"), parameter("bias"), *settings)


for dims in (1, 2, 3):
    for name, entry in (("conv", convolution), ("conv_transpose", transposed)):
        targets = {getattr(namespace, f"{name}{dims}d") for namespace in (functional, torch)}
        function(*targets)(partial(entry, dims))
    module(getattr(nn, f"Conv{dims}d"))(partial(convolution_module, dims))
    module(getattr(nn, f"ConvTranspose{dims}d"))(partial(transposed_module, dims))
