"""Functions sampled with their gradients: engineering data that come with them, and formulas that have exact ones."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SMT = {"smt": "pip install smt"}  # what the data sets below need
FORMULAS = {"wing-weight": ("WingWeight", {}), "borehole": ("WaterFlow", {}), "rosenbrock": ("Rosenbrock", {"ndim": 4})}
NAMES = ("airfoil-drag", "b777-thrust", "b777-fuel", *FORMULAS)
TESTED = 1000  # samples at most
POOL = 2 * TESTED  # samples of a formula


class Sampled(NamedTuple):
    """Values and gradients, standardised by the training samples' mean and deviation, so that all are of order one."""

    x: Tensor  # [N, D]
    y: Tensor  # [N, 1]
    slope: Tensor  # [N, D]
    x_test: Tensor  # [M, D]
    y_test: Tensor  # [M, 1]
    slope_test: Tensor  # [M, D]


def load(name: str, samples: int, seed: int) -> Sampled:
    """Samples to train on, drawn from the seed, and others to test with, float32."""
    x, y, slope = everything(name)
    order = np.random.default_rng(seed).permutation(len(x))[: samples + TESTED]
    train, test = np.split(order, [samples])
    mean, deviation = x[train].mean(0), x[train].std(0) + 1e-12
    offset, scale = y[train].mean(), y[train].std()
    parts = (
        part
        for rows in (train, test)
        for part in ((x[rows] - mean) / deviation, (y[rows, None] - offset) / scale, slope[rows] * deviation / scale)
    )
    return Sampled(*(torch.from_numpy(part.astype(np.float32)) for part in parts))


@cache
def everything(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All there is of a data set: x [N, D], y [N], gradients [N, D]."""
    if name == "airfoil-drag":
        from smt.examples.airfoil_parameters.learning_airfoil_parameters import load_cd_training_data

        return load_cd_training_data()
    if name.startswith("b777"):
        from smt.examples.b777_engine.b777_engine import get_b777_engine

        x, y, slope, _ = get_b777_engine()
        output = ("b777-thrust", "b777-fuel").index(name)
        return x, y[:, output], slope[:, output]
    import smt.problems

    kind, settings = FORMULAS[name]
    problem = getattr(smt.problems, kind)(**settings)
    low, high = problem.xlimits.T
    x = low + (high - low) * np.random.default_rng(0).random((POOL, len(low)))
    slope = np.concatenate([problem(x, kx=i) for i in range(len(low))], 1)
    return x, problem(x)[:, 0], slope


def error(y: Tensor, target: Tensor) -> float:
    """Root mean square of the error over that of the target's deviation: 1 for the mean as the answer."""
    return ((y - target).square().mean() / (target - target.mean(0)).square().mean()).sqrt().item()
