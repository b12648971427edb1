"""Networks as data: a short tuple of layer descriptions, from which PyTorch and JAX build the same function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass(frozen=True)
class Linear:
    """A fully connected layer with `width` outputs."""

    width: int


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution with `width` output channels."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Activation:
    """An elementwise function, one of `ACTIVATIONS`."""

    name: str


@dataclass(frozen=True)
class Pool:
    """Pooling over disjoint `size` x `size` windows; `kind` is "max" or "average"."""

    kind: str
    size: int = 2


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation over channels, with batch statistics."""


@dataclass(frozen=True)
class Dropout:
    """Zeroes a share `rate` of its inputs in training."""

    rate: float


@dataclass(frozen=True)
class Flatten:
    """[B, C, H, W] -> [B, C H W]."""


@dataclass(frozen=True)
class Residual:
    """`body(x) + shortcut(x)`; an empty shortcut is the identity."""

    body: tuple
    shortcut: tuple = ()


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softplus100": partial(nn.Softplus, beta=100),
}


class Sum(nn.Module):
    """The PyTorch module of `Residual`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the two branches."""
        return self.body(x) + self.shortcut(x)


def build(layers: Sequence, shape: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Builds the PyTorch network of `layers` for samples of `shape`, with weights drawn from `seed`."""
    torch.manual_seed(seed)
    model = nn.Sequential(*map(_module, layers))
    with torch.no_grad():
        model.eval()(torch.zeros(2, *shape))  # lazy layers take their input widths from this
    return model.train()


def _module(layer) -> nn.Module:
    match layer:
        case Linear(width):
            return nn.LazyLinear(width)
        case Conv(width, kernel, stride, padding, groups):
            return nn.LazyConv2d(width, kernel, stride, padding, groups=groups)
        case Activation(name):
            return ACTIVATIONS[name]()
        case Pool("max", size):
            return nn.MaxPool2d(size)
        case Pool("average", size):
            return nn.AvgPool2d(size)
        case BatchNorm():
            return nn.LazyBatchNorm2d()
        case Dropout(rate):
            return nn.Dropout(rate)
        case Flatten():
            return nn.Flatten()
        case Residual(body, shortcut):
            return Sum(nn.Sequential(*map(_module, body)), nn.Sequential(*map(_module, shortcut)))
    raise TypeError(f"not a layer description: {layer!r}")


def mlp(*widths: int, activation: str) -> tuple:
    """Fully connected layers of `widths`, with an activation between them."""
    hidden = [layer for width in widths[:-1] for layer in (Linear(width), Activation(activation))]
    return (*hidden, Linear(widths[-1]))


def lenet(classes: int, activation: str = "relu", pool: str = "max") -> tuple:
    """LeNet-5 with both convolutions padded, so that 8 x 8 images fit as well as 28 x 28 ones."""
    features = [layer for width in (6, 16) for layer in (Conv(width, 5, padding=2), Activation(activation), Pool(pool))]
    return (*features, Flatten(), *mlp(120, 84, classes, activation=activation))


def vgg(*stages: int, classes: int) -> tuple:
    """Two 3 x 3 convolutions and a max-pooling for each width in `stages`, then a linear classifier."""
    convolution = [(Conv(width, 3, padding=1), Activation("relu")) for width in stages]
    return (*(layer for conv in convolution for layer in (*conv, *conv, Pool("max"))), Flatten(), Linear(classes))


def dcgan_critic(*stages: int) -> tuple:
    """Strided 4 x 4 convolutions with LeakyReLU, ended by one 4 x 4 convolution to a single score."""
    strided = [layer for width in stages for layer in (Conv(width, 4, 2, 1), Activation("leaky_relu"))]
    return (*strided, Conv(1, 4), Flatten())


def r3gan_critic(*stages: int, groups: int = 4) -> tuple:
    """Residual stages of 1 x 1, grouped 3 x 3 and 1 x 1 convolutions with LeakyReLU, halving the image between them."""
    slope = Activation("leaky_relu")

    def block(width):
        body = (Conv(2 * width, 1), slope, Conv(2 * width, 3, padding=1, groups=groups), slope, Conv(width, 1))
        return Residual(body)

    downsampled = [layer for width in stages[1:] for layer in (Pool("average"), Conv(width, 1), block(width))]
    return (Conv(stages[0], 3, padding=1), block(stages[0]), *downsampled, Flatten(), Linear(1))


def resnet(*stages: int, classes: int, image: int) -> tuple:
    """A BatchNorm ResNet: a basic block for each width, halving the image from the second on."""
    relu = Activation("relu")

    def normalised(width, kernel=3, stride=1):
        return Conv(width, kernel, stride, kernel // 2), BatchNorm()

    def block(width, stride):
        body = (*normalised(width, stride=stride), relu, *normalised(width))
        return Residual(body, normalised(width, 1, stride) if stride > 1 else ()), relu

    blocks = [layer for i, width in enumerate(stages) for layer in block(width, 1 + (i > 0))]
    pooled = Pool("average", image // 2 ** (len(stages) - 1))
    return (*normalised(stages[0]), relu, *blocks, pooled, Flatten(), Linear(classes))
