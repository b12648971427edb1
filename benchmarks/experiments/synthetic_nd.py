"""Does a penalty at training points in ten dimensions control the gradient at new points, and does accuracy gain?

The function is the sum of three waves `sin(2 w x)` along random unit directions w of the cube [-1, 1]^10, with its
gradient known exactly. Networks with two hidden layers of tanh units, the mean squared error plus the squared norm of
the gradient at the training points (`jacobian_frobenius`, FrobReg); Adam, rate 0.01, cosine decay, 300 steps of the
whole data. The norm of the gradient is measured at the training points, halfway between each and the nearest other, and
at 1,000 new points; errors at the new points, 1 being those of the mean. Intervals are over five draws of points and
weights.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from .. import loop, machine, models, plot
from ..penalties import Batch
from . import sampled
from .cells import Row, outcomes, values
from .claims import NOTED, Finding, ratio, said, verdict
from .synthetic_1d import derivative

CLAIM = "controlled"
NEEDS: dict[str, str] = {}

DIMENSIONS, TESTED = 10, 1000
POINTS, WIDTH = 200, 64
SIZES = ((POINTS, WIDTH), (50, WIDTH), (800, WIDTH), (POINTS, 16))
WEIGHTS = (1e-2, 1e-1, 1.0)
SHOWN = 1e-1  # the weight that the findings tell of
COLOURS = ("#1f4e9c", "#2a7f4f", "#d98a1f")
PLACES = {"at": "at the training points", "halfway": "halfway between neighbours", "new": "at new points"}
STYLES = dict(zip(PLACES, ("o-", "^:", "s--"), strict=True))


def cells(quick: bool) -> list[dict]:
    """Weights by sizes of the data and of the network."""
    seeds, steps = (1, 20) if quick else (5, 300)
    return [
        {"points": points, "width": width, "weight": weight, "steps": steps, "seed": seed}
        for points, width in SIZES[: 2 if quick else None]
        for weight in (0, *WEIGHTS)
        for seed in range(seeds)
    ]


def waves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The function [N, 1] and its gradient [N, D]."""
    directions = F.normalize(torch.randn(3, DIMENSIONS, generator=torch.Generator().manual_seed(0)), dim=1)
    phase = 2 * x @ directions.T  # [N, 3]
    return phase.sin().sum(1, keepdim=True), 2 * phase.cos() @ directions


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Fits the function; gradient norms and errors, each over those of the function itself."""
    generator = torch.Generator().manual_seed(config["seed"])
    x, x_new = (2 * torch.rand(n, DIMENSIONS, generator=generator) - 1 for n in (config["points"], TESTED))
    nearest = (torch.cdist(x, x) + 1e9 * torch.eye(len(x))).argmin(1)
    places = {"at": x, "halfway": (x + x[nearest]) / 2, "new": x_new}
    batch, runs = Batch(x, waves(x)[0]), {}
    for engine in engines:
        layers = models.mlp(config["width"], config["width"], 1, activation="tanh")
        model = models.build(layers, (DIMENSIONS,), config["seed"])
        loss = loop.objective(engine, "jacobian_frobenius", model, F.mse_loss, config["weight"])
        runs[engine] = loop.Run(model, loss, loop.adam(1e-2, config["steps"]))
    loop.lockstep(list(runs.values()), [batch] * config["steps"])
    return {engine: _outcome(each, places) for engine, each in runs.items()}


def _outcome(run, places):
    found = {place: derivative(run.model, x) for place, x in places.items()}
    true_value, true_slope = waves(places["new"])
    norms = {place: slope.square().sum(1).mean().sqrt().item() for place, (_, slope) in found.items()}
    return norms | {
        "error": sampled.error(found["new"][0], true_value),
        "gradient_error": sampled.error(found["new"][1], true_slope),
        "seconds_per_step": machine.spread(run.processor_seconds),
    }


def _reduction(rows, measure, weight):
    return ratio(outcomes(rows, measure, weight=weight), outcomes(rows, measure, weight=0))


def _of_size(rows, points, width):
    return [row for row in rows if row.config["points"] == points and row.config["width"] == width]


def findings(rows: list[Row]) -> list[Finding]:
    """Reduction of the gradient at, between and away from the points, and of the errors."""
    found = []
    for points, width in dict.fromkeys((row.config["points"], row.config["width"]) for row in rows):
        of_size = _of_size(rows, points, width)
        ends = {place: _reduction(of_size, place, SHOWN) for place in PLACES}
        told = ", ".join(f"{said(each)} {PLACES[place]}" for place, each in ends.items())
        text = f"{points} points, width {width}, weight {SHOWN:g}: gradient norm over that without penalty {told}."
        found.append(Finding(text, verdict(ends["new"])))
        best = min(WEIGHTS, key=lambda weight: _reduction(of_size, "error", weight)[1])
        error, slope = (_reduction(of_size, name, best) for name in ("error", "gradient_error"))
        text = (
            f"{points} points, width {width}, the best weight for new points ({best:g}): error there over that without "
            f"penalty {said(error)}, of the gradient {said(slope)}."
        )
        found.append(Finding(text, NOTED))
    return found


def draw(rows: list[Row]) -> Figure:
    """Gradient norms over the weight, by size of the data and of the network; errors."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    fixed = {"points": lambda row: row.config["width"] == WIDTH, "width": lambda row: row.config["points"] == POINTS}
    for panel, (name, chosen) in zip(axes, fixed.items(), strict=False):
        of_panel = list(filter(chosen, rows))
        for colour, value in zip(COLOURS, sorted(values(of_panel, name)), strict=False):
            of_value = [row for row in of_panel if row.config[name] == value]
            what = f"{value} points" if name == "points" else f"width {value}"
            for place, style in STYLES.items():
                ends = [_reduction(of_value, place, weight) for weight in WEIGHTS]
                plot.intervals(panel, WEIGHTS, ends, style, colour, f"{what}, {PLACES[place]}")
            if name == "points":
                ends = [_reduction(of_value, "error", weight) for weight in WEIGHTS]
                plot.intervals(axes[2], WEIGHTS, ends, "o-", colour, what)
        other = f"width {WIDTH}" if name == "points" else f"{POINTS} points"
        panel.set_title(f"norm of the gradient, {other}")
    axes[2].set_title(f"error at new points, width {WIDTH}")
    for panel in axes:
        panel.axhline(1, color="black", linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel="weight of the penalty")
        panel.set_ylabel("with the penalty / without (mean, 95% confidence)", fontsize=9)
        plot.plain_ticks(panel.yaxis)
        panel.legend(frameon=False, fontsize=7)
    plot.style(*axes)
    figure.suptitle("Penalising the gradient at training points in ten dimensions: is it controlled elsewhere?")
    return figure
