r"""Elementwise activations: each gives phi, the product with phi' and the product with phi''.

`curvature` returns ``w = sum_k u^k xdot^k`` and leaves it to `adjoint` to multiply it by ``phi''``, once for all
chunks. Where ``phi'' = r phi'`` with a ratio r that is cheap (tanh, sigmoid, softplus), `bend` multiplies by r instead
and w is taken with the cotangent *below* the activation, ``phi' u``, which the layer below keeps anyway: the cotangent
above is then never stored.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import Rule, dot_stacks
from gradreg_fast.rules.call import Call, function, module

aten = torch.ops.aten


class Activation(Rule):
    """``y = phi(z)``, elementwise; a subclass gives `evaluate`, `slope` and, unless piecewise linear, `bend`.

    Attributes:
        keeps_result: `slope` and `bend` need y alone.
        in_place: y may take the memory of z (only if `keeps_result`).
    """

    curvature_free = False
    keeps_result = False
    in_place = False

    def evaluate(self, z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``phi(z)`` and the tensors that `slope` and `bend` need."""
        raise NotImplementedError

    def slope(self, saved: tuple[Tensor, ...], v: Tensor) -> Tensor:
        """``phi'(z) v`` for ``v`` of shape ``[B, ...]`` or ``[K, B, ...]``: a fresh tensor."""
        raise NotImplementedError

    def bend(self, saved: tuple[Tensor, ...], w: Tensor) -> Tensor:
        """``phi''(z) w``, or ``(phi'' / phi') w`` if `meets_below`: a fresh tensor, or w overwritten, ``[B, ...]``."""
        raise NotImplementedError

    def slope_and_bend(self, saved: tuple[Tensor, ...], d: Tensor, w: Tensor) -> Tensor:
        """``slope(d) + bend(w)``, in as few passes as the activation allows; may overwrite w."""
        return self.bend(saved, w).add_(self.slope(saved, d))

    def forward(self, inputs, parameters, extras):
        return self.evaluate(inputs[0])

    def pull(self, saved, parameters, u):
        return (self.slope(saved, u),)

    def push(self, saved, parameters, xdots):
        return self.slope(saved, xdots[0])

    def curvature(self, saved, parameters, u, xdots, gradients):
        if self.curvature_free:
            return (None,)
        return (dot_stacks(u[0] if self.meets_below else u, xdots[0]),)

    def adjoint(self, saved, parameters, d, second):
        if second is None:
            return (self.slope(saved, d),)
        return (self.bend(saved, second[0]) if d is None else self.slope_and_bend(saved, d, second[0]),)


class ReLU(Activation):
    """``max(z, 0)``; slope 0 at zero, as in PyTorch."""

    curvature_free = True
    homogeneous = True
    keeps_result = True

    def evaluate(self, z):
        y = functional.relu(z, inplace=self.in_place)
        return y, (y,)

    def slope(self, saved, v):
        return aten.threshold_backward(v, saved[0], 0)


class LeakyReLU(Activation):
    """``z`` above zero, ``negative_slope z`` elsewhere."""

    curvature_free = True
    homogeneous = True

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope
        self.keeps_result = negative_slope >= 0  # y keeps the sign of z, and is stored anyway

    def evaluate(self, z):
        y = functional.leaky_relu(z, self.negative_slope, inplace=self.in_place)
        return y, (y if self.keeps_result else z,)

    def slope(self, saved, v):
        return aten.leaky_relu_backward(v, saved[0], self.negative_slope, self.negative_slope >= 0)


class Tanh(Activation):
    """``tanh(z)``: ``phi' = 1 - y^2``, ``phi'' / phi' = -2 y``."""

    meets_below = True
    keeps_result = True

    def evaluate(self, z):
        y = z.tanh_() if self.in_place else z.tanh()
        return y, (y,)

    def slope(self, saved, v):
        return aten.tanh_backward(v, saved[0])

    def bend(self, saved, w):
        return w.mul_(saved[0]).mul_(-2)

    def slope_and_bend(self, saved, d, w):
        return self.slope(saved, d).addcmul_(saved[0], w, value=-2)


class Sigmoid(Activation):
    """``1 / (1 + exp(-z))``: ``phi' = y (1 - y)``, ``phi'' / phi' = 1 - 2 y``."""

    meets_below = True
    keeps_result = True

    def evaluate(self, z):
        y = z.sigmoid_() if self.in_place else z.sigmoid()
        return y, (y,)

    def slope(self, saved, v):
        return aten.sigmoid_backward(v, saved[0])

    def bend(self, saved, w):
        return torch.addcmul(w, saved[0], w, value=-2)


class Softplus(Activation):
    """``log(1 + exp(beta z)) / beta``, z itself above the threshold: ``phi' = s``, ``phi'' / phi' = beta (1 - s)``."""

    meets_below = True

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta = beta
        self.threshold = threshold

    def evaluate(self, z):
        slope = aten.softplus_backward(z.new_ones(()).expand_as(z), z, self.beta, self.threshold)
        return functional.softplus(z, self.beta, self.threshold), (slope,)

    def slope(self, saved, v):
        return saved[0] * v

    def bend(self, saved, w):
        w = torch.addcmul(w, saved[0], w, value=-1)
        return w if self.beta == 1 else w.mul_(self.beta)

    def slope_and_bend(self, saved, d, w):
        w = w if self.beta == 1 else w.mul_(self.beta)
        return w.addcmul(saved[0], d - w)


class SiLU(Activation):
    """``z s(z)``, s the logistic function: ``phi'' = s (1 - s) (2 + z (1 - 2 s))``."""

    def evaluate(self, z):
        return functional.silu(z), (z,)

    def slope(self, saved, v):
        return aten.silu_backward(v, saved[0])

    def bend(self, saved, w):
        (z,) = saved
        s = torch.sigmoid(z)
        return w.mul_(torch.addcmul(z, z, s, value=-2).add_(2)).mul_(torch.addcmul(s, s, s, value=-1))


class GELU(Activation):
    """``z Phi(z)``, Phi the normal distribution function (``none``) or its tanh approximation (``tanh``)."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def evaluate(self, z):
        # three sweeps take the slope, whose error function costs more than they do; oneDNN's kernel does not broadcast
        slope = aten.gelu_backward(torch.ones_like(z), z, approximate=self.approximate)
        return functional.gelu(z, approximate=self.approximate), (z, slope)

    def slope(self, saved, v):
        return saved[1] * v

    def slope_and_bend(self, saved, d, w):
        return self.bend(saved, w).addcmul_(saved[1], d)

    def bend(self, saved, w):
        z, _ = saved
        if self.approximate == "none":
            square = z.square()
            return w.mul_(torch.exp(-0.5 * square)).mul_(square.sub_(2)).mul_(-1 / math.sqrt(2 * math.pi))
        root, cubic = math.sqrt(2 / math.pi), 0.044715
        h1 = root * (1 + 3 * cubic * z.square())  # h = root (z + cubic z^3), phi = z (1 + tanh h) / 2
        t = torch.tanh(root * (z + cubic * z**3))
        t1 = (1 - t.square()) * h1
        t2 = (1 - t.square()) * (6 * root * cubic * z - 2 * t * h1.square())
        return w.mul_(t1 + 0.5 * z * t2)


class Sine(Activation):
    """``sin(frequency z)``, as in SIREN (Sitzmann et al. 2020, arXiv:2006.09661)."""

    def __init__(self, frequency: float = 1.0) -> None:
        self.frequency = frequency

    def evaluate(self, z):
        angle = z if self.frequency == 1 else self.frequency * z
        y = torch.sin(angle)
        slope = torch.cos(angle)
        return y, (y, slope if self.frequency == 1 else slope.mul_(self.frequency))

    def slope(self, saved, v):
        return saved[1] * v

    def bend(self, saved, w):
        return w.mul_(saved[0]).mul_(-(self.frequency**2))


@function(functional.relu, torch.relu, torch.relu_, functional.relu_, "relu", "relu_")
def relu(input, inplace=False):
    return Call(ReLU(), (input,))


@function(functional.leaky_relu, functional.leaky_relu_)
def leaky_relu(input, negative_slope=0.01, inplace=False):
    return Call(LeakyReLU(negative_slope), (input,))


@function(functional.softplus)
def softplus(input, beta=1.0, threshold=20.0):
    return Call(Softplus(beta, threshold), (input,))


@function(torch.tanh, torch.tanh_, "tanh", "tanh_")
def tanh(input):
    return Call(Tanh(), (input,))


@function(torch.sigmoid, torch.sigmoid_, torch.special.expit, "sigmoid", "sigmoid_")
def sigmoid(input):
    return Call(Sigmoid(), (input,))


@function(functional.silu)
def silu(input, inplace=False):
    return Call(SiLU(), (input,))


@function(functional.gelu)
def gelu(input, approximate="none"):
    return Call(GELU(approximate), (input,))


@function(torch.sin, torch.sin_, "sin", "sin_")
def sine(input):
    return Call(Sine(), (input,))


@module(nn.ReLU)
def relu_module(layer, x, parameter):
    return relu(x)


@module(nn.LeakyReLU)
def leaky_relu_module(layer, x, parameter):
    return leaky_relu(x, layer.negative_slope)


@module(nn.Softplus)
def softplus_module(layer, x, parameter):
    return softplus(x, layer.beta, layer.threshold)


@module(nn.Tanh)
def tanh_module(layer, x, parameter):
    return tanh(x)


@module(nn.Sigmoid)
def sigmoid_module(layer, x, parameter):
    return sigmoid(x)


@module(nn.SiLU)
def silu_module(layer, x, parameter):
    return silu(x)


@module("timm.layers.activations.GELU")
def timm_gelu_module(layer, x, parameter):
    return gelu(x)


@module(nn.GELU)
def gelu_module(layer, x, parameter):
    return gelu(x, layer.approximate)
