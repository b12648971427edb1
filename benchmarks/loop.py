"""The training loop of `benchmarks train` and of the experiments: several engines in lockstep on the same batches.

Lockstep means that every engine takes its step on a batch before any sees the next, so that seconds per step are side
by side. Under torchrun each process takes its share of every batch, and DistributedDataParallel averages the gradients.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from . import processes
from .penalties import ENGINES, Batch


class Penalised(nn.Module):
    """A network and an engine's penalty as one forward, which is what DistributedDataParallel synchronises."""

    def __init__(self, engine: str, penalty: str, model: nn.Module):
        super().__init__()
        self.engine, self.penalty, self.model = ENGINES[engine], penalty, model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """The output and the penalty."""
        return self.engine(self.penalty, self.model, batch)


def objective(engine: str, penalty: str, model: nn.Module, task: Callable, weight: float) -> Callable[[Batch], Tensor]:
    """`task(y, target) + weight * penalty` of a batch."""
    penalised = processes.synchronised(Penalised(engine, penalty, model))

    def loss(batch):
        y, value = penalised(batch)
        return task(y, batch.target) + weight * value

    return loss


def sgd(lr: float, steps: int, weight_decay: float = 0.0) -> Callable:
    """SGD with momentum 0.9 and cosine decay, for `Run`."""

    def optimise(parameters):
        optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, steps)

    return optimise


def adam(lr: float, steps: int, weight_decay: float = 0.0, betas: tuple = (0.9, 0.999)) -> Callable:
    """Adam with decoupled weight decay and cosine decay of its rate, for `Run`."""

    def optimise(parameters):
        optimizer = torch.optim.AdamW(parameters, lr, betas, weight_decay=weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, steps)

    return optimise


class Run:
    """One network in training: its loss of a batch, its optimiser, the losses and the times of its steps.

    `seconds` pass on the clock; `processor_seconds` leave out what other programs took on a machine that is shared.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor], optimise: Callable):
        self.model, self.loss = model, loss
        self.optimizer, self.schedule = optimise(model.parameters())
        self.losses: list[Tensor] = []
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []

    def step(self, batch: Batch) -> None:
        """One step of training."""
        synchronise = torch.cuda.synchronize if batch.x.is_cuda else contextlib.nullcontext
        synchronise()
        start, processor_start = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        synchronise()
        self.seconds.append(time.perf_counter() - start)
        self.processor_seconds.append(time.process_time() - processor_start)
        self.losses.append(loss.detach())


def shuffled(samples: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """This process's rows of every batch; samples that leave no process an equal share are left out."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(samples, generator=order)[: shared(samples)].split(batch_size):
            yield rows.chunk(processes.WORLD)[processes.RANK]


def shared(samples: int) -> int:
    """How many of the samples take part, so that all processes have as many."""
    return samples // processes.WORLD * processes.WORLD


def lockstep(runs: Sequence[Run], batches: Iterable[Batch], advance: Callable[[], object] = lambda: None) -> None:
    """Every run takes a step on every batch; who is first changes from batch to batch."""
    for number, batch in enumerate(batches):
        for i in range(len(runs)):
            runs[(number + i) % len(runs)].step(batch)
        advance()


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, chunk: int = 100) -> Tensor:
    """What the network says in evaluation mode, a chunk of rows at a time."""
    training = model.training
    model.eval()
    y = torch.cat([model(part) for part in x.split(chunk)])
    model.train(training)
    return y


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right classes."""
    return (outputs(model, x).argmax(1) == y).double().mean().item()
