"""Further functions of one element: kinked ones, smooth ones from a table of two derivatives, PReLU."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, function, is_real, module
from gradreg_fast.rules.merge import Affine

aten = torch.ops.aten


class Kinked(Activation):
    """A piecewise linear function.

    Args:
        function: phi.
        backward: called as ``backward(v, z)`` with two tensors of one shape, gives ``phi'(z) v``.
    """

    curvature_free = True

    def __init__(self, function: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function
        self.backward = backward

    def evaluate(self, z):
        return self.function(z), (z,)

    def slope(self, saved, v):
        return self.backward(v, saved[0].expand_as(v))


class Smooth(Activation):
    """A twice differentiable function.

    Args:
        function: phi.
        first: called as ``first(z, y)``, gives ``phi'(z)``.
        second: called as ``second(z, slope)``, gives ``phi''(z)`` from the first derivative.
    """

    def __init__(self, function: Callable, first: Callable, second: Callable) -> None:
        self.function = function
        self.first = first
        self.second = second

    def evaluate(self, z):
        y = self.function(z)
        return y, (z, self.first(z, y))

    def slope(self, saved, v):
        return saved[1] * v

    def bend(self, saved, w):
        return w.mul_(self.second(*saved))


class PReLU(Rule):
    """``z`` above zero, ``w z`` elsewhere, with one w or one for each channel (dimension 1)."""

    def forward(self, inputs, parameters, extras):
        (z,) = inputs
        return self._scaled(z, parameters[0], z), (z,)

    def pull(self, saved, parameters, u):
        return (self._scaled(saved[0], parameters[0], u),)

    def push(self, saved, parameters, xdots):
        return self._scaled(saved[0], parameters[0], xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        gradients.add(0, lambda: self._sum_below(saved[0], dot_stacks(u, xdots[0]), parameters[0]))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: self._sum_below(saved[0], d * saved[0], parameters[0]))

    def _scaled(self, z: Tensor, weight: Tensor, v: Tensor) -> Tensor:
        above = positive_part(v, z)
        return above.addcmul_(v - above, along_channels(weight, z))

    def _sum_below(self, z: Tensor, product: Tensor, weight: Tensor) -> Tensor:
        below = product - positive_part(product, z)
        return below.sum_to_size(along_channels(weight, z).shape).view_as(weight)


def positive_part(v: Tensor, z: Tensor) -> Tensor:
    """v where z is positive, else zero; `torch.where` takes ten times as long."""
    return aten.threshold_backward(v, z.expand_as(v), 0)


def along_channels(weight: Tensor, z: Tensor) -> Tensor:
    """The weights so that they broadcast against z."""
    return weight.view(1, -1, *(1,) * (z.dim() - 2)) if z.dim() > 1 else weight


# Piecewise linear: phi, and its derivative times v.


def clamping(low: float | None, high: float | None) -> Kinked:
    """The nearest number in ``[low, high]``, whose ends have slope 1."""

    def backward(v, z):
        # its own ends have slope 0
        limits = [-math.inf if low is None else low, math.inf if high is None else high]
        ends, out = (torch.tensor(pair, dtype=z.dtype, device="cpu") for pair in (limits, [-math.inf, math.inf]))
        return aten.hardtanh_backward(v, z, *ends.nextafter(out).tolist())

    return Kinked(lambda z: z.clamp(low, high), backward)


@function(functional.hardtanh, functional.hardtanh_)
def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    def backward(v, z):
        return aten.hardtanh_backward(v, z, min_val, max_val)

    return Call(Kinked(lambda z: functional.hardtanh(z, min_val, max_val), backward), (input,))


@function(functional.relu6)
def relu6(input, inplace=False):
    return hardtanh(input, 0.0, 6.0)


@function(functional.hardsigmoid)
def hardsigmoid(input, inplace=False):
    # aten's own derivative takes 1 / 6 in single precision
    rule = Kinked(functional.hardsigmoid, lambda v, z: aten.hardtanh_backward(v, z, -3, 3).div_(6))
    return Call(rule, (input,))


@function(functional.threshold, functional.threshold_, torch.threshold)
def threshold(input, threshold, value, inplace=False):
    rule = Kinked(
        lambda z: functional.threshold(z, threshold, value), lambda v, z: aten.threshold_backward(v, z, threshold)
    )
    return Call(rule, (input,))


@function(functional.hardshrink, torch.hardshrink)
def hardshrink(input, lambd=0.5):
    rule = Kinked(lambda z: functional.hardshrink(z, lambd), lambda v, z: aten.hardshrink_backward(v, z, lambd))
    return Call(rule, (input,))


@function(functional.softshrink)
def softshrink(input, lambd=0.5):
    rule = Kinked(lambda z: functional.softshrink(z, lambd), lambda v, z: aten.softshrink_backward(v, z, lambd))
    return Call(rule, (input,))


@function(torch.clamp, torch.clip, torch.clamp_, "clamp", "clip", "clamp_")
def clamp(input, min=None, max=None):
    if any(bound is not None and not is_real(bound) for bound in (min, max)) or (min is None and max is None):
        return "its bounds are no numbers"
    return Call(clamping(min, max), (input,))


@function("clamp_min", torch.clamp_min, "clamp_min_")
def clamp_min(input, min):
    return clamp(input, min)


@function("clamp_max", torch.clamp_max, "clamp_max_")
def clamp_max(input, max):
    return clamp(input, None, max)


@function(torch.abs, torch.abs_, torch.absolute, operator.abs, "abs", "abs_", "absolute")
def absolute(input):
    return Call(Kinked(torch.abs, lambda v, z: v * z.sign()), (input,))


# Smooth: phi, phi'(z, y) and phi''(z, phi').

SMOOTH = {
    "exp": (lambda z, y: y, lambda z, s: s),
    "expm1": (lambda z, y: y + 1, lambda z, s: s),
    "log": (lambda z, y: z.reciprocal(), lambda z, s: -s.square()),
    "log1p": (lambda z, y: (z + 1).reciprocal_(), lambda z, s: -s.square()),
    "sqrt": (lambda z, y: 0.5 / y, lambda z, s: -2 * s**3),
    "rsqrt": (lambda z, y: -0.5 * y**3, lambda z, s: -1.5 * s / z),
    "reciprocal": (lambda z, y: -y.square(), lambda z, s: -2 * s / z),
    "square": (lambda z, y: 2 * z, lambda z, s: 2),
    "cos": (lambda z, y: -torch.sin(z), lambda z, s: -torch.cos(z)),
    "sinh": (lambda z, y: torch.cosh(z), lambda z, s: torch.sinh(z)),
    "cosh": (lambda z, y: torch.sinh(z), lambda z, s: torch.cosh(z)),
    "atan": (lambda z, y: (1 + z.square()).reciprocal_(), lambda z, s: -2 * z * s.square()),
    "tan": (lambda z, y: y.square().add_(1), lambda z, s: 2 * torch.tan(z) * s),
    "asin": (lambda z, y: (1 - z.square()).rsqrt_(), lambda z, s: z * s**3),
    "acos": (lambda z, y: (1 - z.square()).rsqrt_().neg_(), lambda z, s: z * s**3),
    "asinh": (lambda z, y: (1 + z.square()).rsqrt_(), lambda z, s: -z * s**3),
    "acosh": (lambda z, y: (z.square() - 1).rsqrt_(), lambda z, s: -z * s**3),
    "atanh": (lambda z, y: (1 - z.square()).reciprocal_(), lambda z, s: 2 * z * s.square()),
    "log2": (lambda z, y: (z * math.log(2)).reciprocal_(), lambda z, s: -s / z),
    "log10": (lambda z, y: (z * math.log(10)).reciprocal_(), lambda z, s: -s / z),
    "exp2": (lambda z, y: y * math.log(2), lambda z, s: s * math.log(2)),
    "erfc": (lambda z, y: torch.exp(-z.square()).mul_(-2 / math.sqrt(math.pi)), lambda z, s: -2 * z * s),
    "erf": (lambda z, y: torch.exp(-z.square()).mul_(2 / math.sqrt(math.pi)), lambda z, s: -2 * z * s),
}


def smooth(name: str, input):
    return Call(Smooth(getattr(torch, name), *SMOOTH[name]), (input,))


for name in SMOOTH:
    tails = ("",) if name in ("asinh", "acosh", "atanh") else ("", "_")  # autograd itself has none of these in place
    targets = [target for tail in tails for target in (getattr(torch, name + tail), name + tail)]
    function(*targets)(partial(smooth, name))


@function(functional.softsign)
def softsign(input):
    rule = Smooth(
        functional.softsign,
        lambda z, y: (1 + z.abs()).reciprocal_().square_(),
        lambda z, s: -2 * z.sign() * s * s.sqrt(),
    )
    return Call(rule, (input,))


@function(functional.tanhshrink)
def tanhshrink(input):
    rule = Smooth(functional.tanhshrink, lambda z, y: torch.tanh(z).square_(), lambda z, s: 2 * torch.tanh(z) * (1 - s))
    return Call(rule, (input,))


@function(functional.logsigmoid)
def logsigmoid(input):
    return Call(Smooth(functional.logsigmoid, lambda z, y: torch.sigmoid(-z), lambda z, s: s * (s - 1)), (input,))


@function(functional.mish)
def mish(input, inplace=False):
    def second(z, s):
        t, logistic = torch.tanh(functional.softplus(z)), torch.sigmoid(z)
        slope = (1 - t.square()) * logistic  # of t
        return slope * (2 + z * (1 - logistic - 2 * t * logistic))

    return Call(Smooth(functional.mish, lambda z, y: aten.mish_backward(ones(z), z), second), (input,))


@function(functional.hardswish)
def hardswish(input, inplace=False):
    rule = Smooth(
        functional.hardswish,
        lambda z, y: aten.hardswish_backward(ones(z), z),
        lambda z, s: aten.hardtanh_backward(ones(z), z, -3, 3).div_(3),
    )
    return Call(rule, (input,))


def exponential_linear(input, alpha: float, scale: float, input_scale: float):
    """``scale z`` above zero, ``scale alpha (exp(input_scale z) - 1)`` elsewhere."""
    rule = Smooth(
        lambda z: aten.elu(z, alpha, scale, input_scale),
        lambda z, y: aten.elu_backward(ones(z), alpha, scale, input_scale, False, z),
        lambda z, s: positive_part(s, -z).mul_(input_scale),
    )
    return Call(rule, (input,))


def ones(z: Tensor) -> Tensor:
    """A one for each element."""
    return z.new_ones(()).expand_as(z)


@function(functional.elu, functional.elu_)
def elu(input, alpha=1.0, inplace=False):
    return exponential_linear(input, alpha, 1.0, 1.0)


@function(functional.celu, functional.celu_, torch.celu)
def celu(input, alpha=1.0, inplace=False):
    return exponential_linear(input, alpha, 1.0, 1 / alpha)


@function(functional.selu, functional.selu_, torch.selu)
def selu(input, inplace=False):
    return exponential_linear(input, 1.6732632423543772, 1.0507009873554805, 1.0)


@function(torch.pow, operator.pow, operator.ipow, "pow", "pow_")
def power(input, exponent):
    if is_real(input) and input > 0:
        return smooth("exp", Call(Affine(math.log(input)), (exponent,)))
    if not is_real(exponent) or is_real(input):
        return "its exponent is no number"
    if exponent in (0, 1):
        return Call(Affine(exponent, 1 - exponent), (input,))
    if exponent == 2:
        return smooth("square", input)
    if exponent == 0.5:
        return Call(Smooth(lambda z: z**0.5, *SMOOTH["sqrt"]), (input,))  # a power, also to autocast
    if exponent == -1:
        return smooth("reciprocal", input)

    rule = Smooth(
        lambda z: z**exponent,
        lambda z, y: exponent * z ** (exponent - 1),
        lambda z, s: exponent * (exponent - 1) * z ** (exponent - 2),
    )
    return Call(rule, (input,))


@function(functional.prelu, torch.prelu)
def prelu(input, weight):
    return Call(PReLU(), (input,), (weight,))


# Modules: how their settings become arguments.

for kind, entry, *settings in (
    (nn.Hardtanh, hardtanh, "min_val", "max_val"),
    (nn.ReLU6, relu6),
    (nn.Hardsigmoid, hardsigmoid),
    (nn.Threshold, threshold, "threshold", "value"),
    (nn.Hardshrink, hardshrink, "lambd"),
    (nn.Softshrink, softshrink, "lambd"),
    (nn.Softsign, softsign),
    (nn.Tanhshrink, tanhshrink),
    (nn.LogSigmoid, logsigmoid),
    (nn.Mish, mish),
    (nn.Hardswish, hardswish),
    (nn.ELU, elu, "alpha"),
    (nn.CELU, celu, "alpha"),
    (nn.SELU, selu),
):

    def from_settings(layer, x, parameter, entry=entry, settings=settings):
        return entry(x, *(getattr(layer, name) for name in settings))

    module(kind)(from_settings)


@module(nn.PReLU)
def prelu_module(layer, x, parameter):
    return prelu(x, parameter("weight"))
