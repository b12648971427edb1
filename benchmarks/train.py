"""The main job: the same network trained with each engine, in lockstep, from the same seeds on the same batches.

In lockstep (`loop`) the penalised engines' losses differ by rounding alone. With several weights, the one with the best
accuracy on a validation part of the training data is taken; the test data play no role in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from . import BadArgument, loop, models, processes
from .data import Dataset
from .machine import environment, spread
from .penalties import Batch

PENALTIES = ("double_backprop", "jacobian_frobenius", "jacobian_softmax", "spectral_projection", "confidence_penalty")
MODELS = ("mlp", "lenet")
COMPARED_STEPS = 50  # over which the engines' losses are compared: later, rounding has been amplified
VALIDATION = 0.2  # the share of the training data that chooses the weight


@dataclass(frozen=True)
class Config:
    """What to train and how, as on the command line."""

    data: str
    train_size: int | None
    model: str
    penalty: str
    weights: tuple[float, ...]
    projections: int | None
    engines: tuple[str, ...]
    seeds: int
    epochs: int
    batch_size: int
    lr: float
    threads: int
    device: str
    dtype: str


def layers(config: Config, data: Dataset) -> tuple:
    """The network's description.

    Raises:
        BadArgument: if the model does not fit the data.
    """
    shape = tuple(data.x.shape[1:])
    if config.model == "mlp":
        return models.Flatten(), *models.mlp(512, 512, data.classes, activation="relu")
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise BadArgument(f"--model lenet needs images of at least 4 x 4, {config.data} has samples {shape}: use mlp")
    return models.lenet(data.classes)


class Run(loop.Run):
    """One engine's network, optimiser, losses and times."""

    def __init__(self, engine: str, config: Config, data: Dataset, weight: float, seed: int):
        model = models.build(layers(config, data), data.x.shape[1:], seed).to(config.device, data.x.dtype)
        loss = loop.objective(engine, config.penalty, model, F.cross_entropy, weight)
        super().__init__(model, loss, loop.sgd(config.lr, steps(config, len(data.x))))


def steps(config: Config, samples: int) -> int:
    """Steps of one run."""
    return config.epochs * -(-loop.shared(samples) // config.batch_size)


def lockstep(engines, config: Config, data: Dataset, weight: float, seed: int, advance: Callable) -> dict[str, Run]:
    """Trains every engine's network from the same seed on the same batches."""
    runs = [Run(engine, config, data, weight, seed) for engine in engines]
    order = enumerate(loop.shuffled(len(data.x), config.batch_size, config.epochs, seed))
    batches = (
        Batch(data.x[rows], data.y[rows], seed=i * processes.WORLD + processes.RANK, projections=config.projections)
        for i, rows in order
    )
    loop.lockstep(runs, batches, advance)
    for run in runs:
        run.losses = [*processes.averaged(torch.stack(run.losses))]
    return dict(zip(engines, runs, strict=True))


def validate(config: Config, data: Dataset, advance: Callable) -> dict[float, float]:
    """Mean validation accuracy of every weight over the seeds, with the first penalised engine."""
    train, validation = _split(data)
    engine = next(engine for engine in config.engines if engine != "none")
    accuracies = {}
    for weight in config.weights:
        runs = (lockstep([engine], config, train, weight, seed, advance)[engine] for seed in range(config.seeds))
        accuracies[weight] = statistics.mean(loop.accuracy(run.model, validation.x, validation.y) for run in runs)
    return accuracies


def _split(data):
    held_out = int(VALIDATION * len(data.x))
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0)).to(data.x.device)
    held, kept = order[:held_out], order[held_out:]
    return data._replace(x=data.x[kept], y=data.y[kept]), Dataset(data.x[held], data.y[held], *data[2:])


def total_steps(config: Config, data: Dataset) -> int:
    """How often `train` calls `advance`."""
    validated = len(config.weights) * steps(config, len(_split(data)[0].x)) if chooses(config) else 0
    return config.seeds * (validated + steps(config, len(data.x)))


def chooses(config: Config) -> bool:
    """Whether a weight is chosen by validation."""
    return len(config.weights) > 1 and set(config.engines) != {"none"}


def train(config: Config, data: Dataset, advance: Callable[[], object]) -> dict:
    """Trains, compares, and returns the results file's contents."""
    layers(config, data)
    if config.batch_size % processes.WORLD:
        raise BadArgument(
            f"--batch-size must be a multiple of the {processes.WORLD} processes, got {config.batch_size}"
        )
    dtype = getattr(torch, config.dtype)
    moved = {name: value.to(config.device) for name, value in data._asdict().items()}
    data = data._replace(
        **{name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}
    )
    validation = validate(config, data, advance) if chooses(config) else {}
    weight = max(validation, key=validation.get) if validation else config.weights[0]
    runs = {engine: [] for engine in config.engines}
    for seed in range(config.seeds):
        for engine, run in lockstep(config.engines, config, data, weight, seed, advance).items():
            runs[engine].append(run)
    return {
        "kind": "train",
        "environment": environment(config.threads, config.device),
        "config": asdict(config),
        "samples": len(data.x),
        "processes": processes.WORLD,
        "weight": weight,
        "validation_accuracy": [{"weight": weight, "accuracy": value} for weight, value in validation.items()],
        "engines": {engine: _figures(of_engine, data) for engine, of_engine in runs.items()},
        "largest_loss_difference": _difference(runs),
        "speedup": _speedup(runs),
    }


def _figures(runs, data):
    return {
        "test_accuracy": [loop.accuracy(run.model, data.x_test, data.y_test) for run in runs],
        "losses": [torch.stack(run.losses).tolist() for run in runs],
        "seconds_per_step": spread([second for run in runs for second in run.seconds[1:] or run.seconds]),
    }


def _difference(runs):
    """The largest relative difference of the two penalised engines' losses over the first steps of every seed."""
    if not {"gradreg_fast", "autograd"} <= set(runs):
        return None
    ours, theirs = (
        torch.stack([torch.stack(run.losses[:COMPARED_STEPS]) for run in runs[engine]])
        for engine in ("gradreg_fast", "autograd")
    )
    return ((ours - theirs).abs() / theirs.abs()).max().item()


def _speedup(runs):
    """Quartiles of autograd's time over gradreg_fast's, step by step."""
    if not {"gradreg_fast", "autograd"} <= set(runs):
        return None
    pairs = zip(runs["autograd"], runs["gradreg_fast"], strict=True)
    return spread([a / b for theirs, ours in pairs for a, b in zip(theirs.seconds, ours.seconds, strict=True)])
