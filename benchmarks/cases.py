"""What is measured: a network, the number of rows, a task loss and a penalty. Everything else follows from these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from . import models
from .penalties import TASKS, Batch


class Workload:
    """A batch and a loss, whatever the network: the gradients of `task + weight * penalty` in all parameters.

    Attributes:
        shape: of one sample.
        rows: of a batch.
        outputs: per sample.
        task: a name in `penalties.TASKS`.
        penalty: a name in `penalties.PENALTIES`.
        weight: of the penalty; `speed.balanced` sets it.
    """

    def batch(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Batch:
        """Random inputs and targets, always the same."""
        generator = torch.Generator().manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, generator=generator).to(device, dtype)

        x = normal(self.rows, *self.shape)
        slope = normal(*x.shape) if self.penalty == "gradient_matching" else None
        if self.task == "cross_entropy":
            return Batch(x, torch.randint(self.outputs, (self.rows,), generator=generator).to(device), slope)
        return Batch(x, normal(self.rows, self.outputs) if self.task == "mse" else None, slope)

    def loss(self, y: Tensor, penalty: Tensor, batch: Batch) -> Tensor:
        """The quantity that is differentiated."""
        return TASKS[self.task](y, batch.target) + self.weight * penalty

    @property
    def convolutional(self) -> bool:
        """Whether samples are images."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class Case(Workload):
    """One workload: the gradients of `task + weight * penalty` in all parameters.

    Attributes:
        layers: the network, as descriptions of `models`.
        shape: of one sample.
        rows: of a batch.
        task: a name in `penalties.TASKS`.
        penalty: a name in `penalties.PENALTIES`.
        weight: of the penalty; `speed.balanced` sets it.
        quick_rows: of a batch under `--quick`; 0 leaves the case out.
        quick_compiled: whether `--quick` includes the peers that take long to compile.
    """

    name: str
    layers: tuple
    shape: tuple[int, ...]
    rows: int
    task: str
    penalty: str
    weight: float = 1.0
    quick_rows: int = 0
    quick_compiled: bool = False

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network, always with the same weights."""
        return models.build(self.layers, self.shape).to(device, dtype)

    @property
    def outputs(self) -> int:
        """Outputs per sample."""
        return next(layer.width for layer in reversed(self.layers) if hasattr(layer, "width"))

    def quick(self) -> Case:
        """The same with fewer rows."""
        return replace(self, rows=self.quick_rows)


CASES = (
    Case(
        "mlp-double-backprop",
        models.mlp(512, 512, 10, activation="relu"),
        (784,),
        rows=256,
        task="cross_entropy",
        penalty="double_backprop",
        quick_rows=128,
    ),
    Case(
        "tabular-gradient-matching",
        models.mlp(256, 256, 1, activation="softplus"),
        (16,),
        rows=512,
        task="mse",
        penalty="gradient_matching",
    ),
    Case(
        "tiny-64x2-tanh",
        models.mlp(64, 64, 1, activation="tanh"),
        (2,),
        rows=128,
        task="mse",
        penalty="gradient_matching",
    ),
    Case(
        "coordinate-64x2-tanh",
        models.mlp(64, 64, 1, activation="tanh"),
        (2,),
        rows=1024,
        task="mse",
        penalty="gradient_matching",
        quick_rows=1024,
    ),
    Case(
        "coordinate-128x3-tanh",
        models.mlp(128, 128, 128, 1, activation="tanh"),
        (2,),
        rows=1024,
        task="mse",
        penalty="gradient_matching",
    ),
    Case(
        "critic-128x2-leaky-relu",
        models.mlp(128, 128, 1, activation="leaky_relu"),
        (16,),
        rows=1024,
        task="real",
        penalty="r1",
    ),
    Case(
        "eikonal-256x8-softplus",
        models.mlp(*[256] * 8, 1, activation="softplus100"),
        (3,),
        rows=4096,
        task="mse",
        penalty="eikonal",
    ),
    Case(
        "lenet-relu-double-backprop",
        models.lenet(10),
        (1, 28, 28),
        rows=128,
        task="cross_entropy",
        penalty="double_backprop",
        quick_rows=64,
    ),
    Case(
        "lenet-softplus-double-backprop",
        models.lenet(10, "softplus", "average"),
        (1, 28, 28),
        rows=128,
        task="cross_entropy",
        penalty="double_backprop",
    ),
    Case(
        "vgg-double-backprop",
        models.vgg(32, 64, 128, classes=10),
        (3, 32, 32),
        rows=32,
        task="cross_entropy",
        penalty="double_backprop",
    ),
    Case(
        "resnet-batchnorm-double-backprop",
        models.resnet(16, 32, 64, classes=10, image=32),
        (3, 32, 32),
        rows=32,
        task="cross_entropy",
        penalty="double_backprop",
    ),
    Case(
        "dcgan-critic-r1",
        models.dcgan_critic(64, 128, 256, 512),
        (3, 64, 64),
        rows=16,
        task="real",
        penalty="r1",
        quick_rows=4,
    ),
    Case(
        "dcgan-critic-wgan-gp-penalty-only",
        models.dcgan_critic(64, 128, 256, 512),
        (3, 64, 64),
        rows=16,
        task="none",
        penalty="gradient_penalty",
    ),
    Case(
        "r3gan-critic-r1-r2",
        models.r3gan_critic(32, 64, 128),
        (3, 32, 32),
        rows=32,
        task="relativistic",
        penalty="r1_r2",
    ),
    Case(
        "frobenius-784-512-10-tanh",
        models.mlp(512, 10, activation="tanh"),
        (784,),
        rows=256,
        task="cross_entropy",
        penalty="jacobian_frobenius",
        quick_rows=64,
        quick_compiled=True,
    ),
    Case(
        "frobenius-784-512-100-tanh",
        models.mlp(512, 100, activation="tanh"),
        (784,),
        rows=128,
        task="cross_entropy",
        penalty="jacobian_frobenius",
    ),
    Case(
        "frobenius-784-512-512-10-relu",
        models.mlp(512, 512, 10, activation="relu"),
        (784,),
        rows=128,
        task="cross_entropy",
        penalty="jacobian_frobenius",
    ),
    Case(
        "frobenius-3072-1024-1024-100-relu",
        models.mlp(1024, 1024, 100, activation="relu"),
        (3072,),
        rows=32,
        task="cross_entropy",
        penalty="jacobian_frobenius",
    ),
    Case(
        "frobenius-vgg-10",
        models.vgg(32, 64, 128, classes=10),
        (3, 32, 32),
        rows=8,
        task="cross_entropy",
        penalty="jacobian_frobenius",
    ),
    Case(
        "frobenius-autoencoder-784-256-32-256-784",
        models.mlp(256, 32, 256, 784, activation="tanh"),
        (784,),
        rows=16,
        task="mse",
        penalty="jacobian_frobenius",
    ),
)
