"""Which rule serves which module, function or method.

`FUNCTIONS` maps a function, or a method's name, to an entry with that function's own signature; `MODULES` maps a module
type (exactly that type: a subclass may do something else) to an entry called with the module, its input and a lookup
of its parameters and buffers by name. An entry returns a `Call`, or a string: why there is no rule for this use. In the
arguments, a `Value` stands for a tensor that depends on the network's input, a `Parameter` for a parameter or buffer, a
`Plain` for a Python value computed on the way (a size).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Number

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules import activation
from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.linear import Linear
from gradreg_fast.rules.merge import Add, Affine, Cat, Dropout
from gradreg_fast.rules.norm import BatchNormEval, BatchNormTrain
from gradreg_fast.rules.pool import AveragePool, MaxPool, Windows
from gradreg_fast.rules.shape import LinearMap, Permute, Reshape

aten = torch.ops.aten


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the network's input, by its number in the graph."""

    index: int


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer, by its slot."""

    slot: int


@dataclass(frozen=True)
class Plain:
    """A plain Python value that the graph computes, by its number in the graph."""

    index: int


@dataclass(frozen=True)
class Call:
    """A rule and what it is applied to.

    Attributes:
        rule: the operation.
        inputs: `Value` objects, or one `Call` whose result is the input.
        parameters: `Parameter` objects or None.
        extras: `Plain` objects.
        updated: `Parameter` objects or None: buffers that the forward changes, given to it behind the extras.
    """

    rule: Rule
    inputs: Sequence[Value | Call]
    parameters: Sequence[Parameter | None] = ()
    extras: Sequence[Plain] = ()
    updated: Sequence[Parameter | None] = ()


FUNCTIONS: dict[Callable | str, Callable[..., Call | str]] = {}
MODULES: dict[type[nn.Module], Callable[..., Call | str]] = {}


def function(*targets: Callable | str) -> Callable:
    """Register an entry for functions, and for methods by name."""

    def register(entry):
        FUNCTIONS.update(dict.fromkeys(targets, entry))
        return entry

    return register


# Layers with parameters.


@function(functional.linear)
def linear(input, weight, bias=None):
    return Call(Linear(), (input,), (weight, bias))


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
    mode = "constant" if mode == "zeros" else mode
    pad = LinearMap(partial(functional.pad, pad=list(around), mode=mode))
    return Call(conv, (Call(pad, (input,)),), parameters)


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


function(functional.conv2d, torch.conv2d)(partial(convolution, 2))


@function(functional.batch_norm)
def batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, batches=None
):
    if training:
        return Call(BatchNormTrain(eps, momentum), (input,), (weight, bias), (), (running_mean, running_var, batches))
    return Call(BatchNormEval(eps), (input,), (weight, bias, running_mean, running_var))


def batch_norm_module(layer, x, parameter):
    statistics = parameter("running_mean"), parameter("running_var")
    training = layer.training or statistics == (None, None)
    batches = parameter("num_batches_tracked") if layer.training and layer.track_running_stats else None
    if layer.training and not layer.track_running_stats:
        statistics = None, None
    affine = parameter("weight"), parameter("bias")
    return batch_norm(x, *statistics, *affine, training, layer.momentum, layer.eps, batches)


# Activations.


@function(functional.relu, torch.relu, torch.relu_, functional.relu_, "relu", "relu_")
def relu(input, inplace=False):
    return Call(activation.ReLU(), (input,))


@function(functional.leaky_relu, functional.leaky_relu_)
def leaky_relu(input, negative_slope=0.01, inplace=False):
    return Call(activation.LeakyReLU(negative_slope), (input,))


@function(functional.softplus)
def softplus(input, beta=1.0, threshold=20.0):
    return Call(activation.Softplus(beta, threshold), (input,))


@function(functional.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_")
def tanh(input):
    return Call(activation.Tanh(), (input,))


@function(functional.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_")
def sigmoid(input):
    return Call(activation.Sigmoid(), (input,))


@function(functional.silu)
def silu(input, inplace=False):
    return Call(activation.SiLU(), (input,))


@function(functional.gelu)
def gelu(input, approximate="none"):
    return Call(activation.GELU(approximate), (input,))


@function(torch.sin, torch.sin_, "sin", "sin_")
def sine(input, frequency=1.0):
    return Call(activation.Sine(frequency), (input,))


# Pooling.


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


# Shapes.


def reshaping(target: Callable, input, *arguments, **keywords):
    plains = list(collect(Plain, (arguments, keywords)))

    def reshape(x: Tensor, *extras) -> Tensor:
        values = dict(zip(plains, extras, strict=True))
        filled_arguments, filled_keywords = fill((arguments, keywords), values)
        return target(x, *filled_arguments, **filled_keywords)

    return Call(Reshape(reshape), (input,), (), plains)


def permuting(target: Callable, input, *arguments, **keywords):
    return Call(Permute(lambda x: target(x, *arguments, **keywords)), (input,))


for name in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"):
    function(name)(partial(reshaping, getattr(Tensor, "reshape" if name == "view" else name)))
for target in (torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze):
    function(target)(partial(reshaping, target))
for name in ("permute", "transpose", "t"):
    function(name)(partial(permuting, getattr(Tensor, name)))
for target in (torch.permute, torch.transpose, torch.t):
    function(target)(partial(permuting, target))


@function("contiguous", "clone")
def identity(input, memory_format=None):
    return Call(Affine(), (input,))


# Branches and arithmetic with numbers.


@function(torch.add, operator.add, operator.iadd, "add", "add_")
def add(input, other, *, alpha=1):
    if isinstance(other, Number) and not isinstance(other, complex):
        return Call(Affine(1, alpha * other), (input,))
    if isinstance(input, Number) and not isinstance(input, complex):
        return Call(Affine(alpha, input), (other,))
    return Call(Add(alpha), (input, other))


@function(torch.sub, operator.sub, operator.isub, "sub", "sub_")
def sub(input, other, *, alpha=1):
    if isinstance(other, Number):
        return Call(Affine(1, -alpha * other), (input,))
    if isinstance(input, Number):
        return Call(Affine(-alpha, input), (other,))
    return Call(Add(-alpha), (input, other))


@function(torch.mul, operator.mul, operator.imul, "mul", "mul_")
def mul(input, other):
    number, value = (input, other) if isinstance(input, Number) else (other, input)
    if not isinstance(number, Number) or isinstance(number, complex):
        return "a product of two branches has no rule"
    return Call(Affine(number), (value,))


@function(torch.div, torch.true_divide, operator.truediv, operator.itruediv, "div", "div_")
def div(input, other):
    if not isinstance(other, Number) or isinstance(other, complex):
        return "a quotient of two branches has no rule"
    return Call(Affine(1 / other), (input,))


@function(torch.neg, operator.neg, "neg")
def neg(input):
    return Call(Affine(-1), (input,))


@function(torch.cat, torch.concat, torch.concatenate)
def cat(tensors, dim=0):
    return Call(Cat(dim), tuple(tensors))


@function(functional.dropout)
def dropout(input, p=0.5, training=True, inplace=False):
    if not training or p == 0:
        return Call(Affine(), (input,))
    return Call(Dropout(p), (input,))


MODULES |= {
    nn.Linear: lambda layer, x, parameter: linear(x, parameter("weight"), parameter("bias")),
    nn.Conv2d: partial(convolution_module, 2),
    nn.BatchNorm1d: batch_norm_module,
    nn.BatchNorm2d: batch_norm_module,
    nn.BatchNorm3d: batch_norm_module,
    nn.ReLU: lambda layer, x, parameter: relu(x),
    nn.LeakyReLU: lambda layer, x, parameter: leaky_relu(x, layer.negative_slope),
    nn.Softplus: lambda layer, x, parameter: softplus(x, layer.beta, layer.threshold),
    nn.Tanh: lambda layer, x, parameter: tanh(x),
    nn.Sigmoid: lambda layer, x, parameter: sigmoid(x),
    nn.SiLU: lambda layer, x, parameter: silu(x),
    nn.GELU: lambda layer, x, parameter: gelu(x, layer.approximate),
    nn.MaxPool2d: lambda layer, x, parameter: max_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices
    ),
    nn.AvgPool2d: lambda layer, x, parameter: avg_pool2d(
        x,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
        layer.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda layer, x, parameter: adaptive_avg_pool2d(x, layer.output_size),
    nn.AdaptiveMaxPool2d: lambda layer, x, parameter: adaptive_max_pool2d(x, layer.output_size, layer.return_indices),
    nn.Flatten: lambda layer, x, parameter: reshaping(torch.flatten, x, layer.start_dim, layer.end_dim),
    nn.Unflatten: lambda layer, x, parameter: reshaping(torch.unflatten, x, layer.dim, layer.unflattened_size),
    nn.Identity: lambda layer, x, parameter: identity(x),
    nn.Dropout: lambda layer, x, parameter: dropout(x, layer.p, layer.training),
}


def each(setting, dims: int) -> list[int]:
    """A number for each dimension, or the given ones."""
    return [setting] * dims if isinstance(setting, int) else list(setting)


def collect(kind: type, nested):
    """All objects of one type in nested tuples, lists, slices and dictionaries."""
    if isinstance(nested, kind):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for member in nested:
            yield from collect(kind, member)
    elif isinstance(nested, dict):
        yield from collect(kind, list(nested.values()))
    elif isinstance(nested, slice):
        yield from collect(kind, [nested.start, nested.stop, nested.step])


def fill(nested, values: dict):
    """Nested tuples, lists, slices and dictionaries with each key of `values` replaced."""
    if isinstance(nested, (tuple, list)):
        return type(nested)(fill(member, values) for member in nested)
    if isinstance(nested, dict):
        return {key: fill(member, values) for key, member in nested.items()}
    if isinstance(nested, slice):
        return slice(*(fill(member, values) for member in (nested.start, nested.stop, nested.step)))
    return values[nested] if isinstance(nested, (Value, Parameter, Plain)) else nested
