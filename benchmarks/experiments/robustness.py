"""Are classifiers trained with penalties on input gradients more robust to noise and to attacks?

The networks of `small_data` again: LeNet, Fashion-MNIST, the same methods, protocol and schedule; strengths are chosen
by accuracy on clean held-out images, as someone does who does not think of robustness. Tested on 300 test images with
normal noise, and with FGSM and PGD (ten steps of a quarter of its size, from the image itself), which change no pixel
by more than their size. Sizes and the noise's deviation are in shares of a pixel's range, which images do not leave.
Intervals are over five seeds.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import loop, plot
from .cells import Row
from .claims import NOTED, Finding, interval, overall, said, verdict
from .classifiers import GRADIENTS, METHODS, NEEDS, Block, blocks, chosen, gains, mean, measured, outcome, tests, train
from .small_data import SEEDS, STEPS

__all__ = ["CLAIM", "NEEDS", "cells", "draw", "findings", "run"]

CLAIM = "robustness"
SAMPLES, ATTACKED = 500, 300
SIZES = {"noise": (0.1, 0.2, 0.4), "FGSM": (0.02, 0.05, 0.1), "PGD": (0.02, 0.05, 0.1)}
SHOWN = 1  # the size of which the trade-off is told


def cells(quick: bool) -> list[dict]:
    """One block of the protocol."""
    if quick:
        return Block("mnist", 50).cells(1, [1], tested=10)
    return Block("fashion-mnist", SAMPLES).cells(STEPS[SAMPLES], SEEDS)


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains one network with each engine, and disturbs what it sees."""
    return {
        engine: outcome(run, config) | _disturbed(run.model, config) for engine, run in train(config, engines).items()
    }


def _disturbed(model, config):
    x, y = (part[:ATTACKED] for part in tests(config))
    return {"clean": 100 * loop.accuracy(model, x, y)} | {
        kind: [100 * loop.accuracy(model, disturbed(kind, size, model, x, y), y) for size in sizes]
        for kind, sizes in SIZES.items()
    }


def disturbed(kind: str, size: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Images with noise, or moved to where the network is wrong."""
    low, high = x.min(), x.max()
    radius = size * (high - low)
    if kind == "noise":
        random = torch.Generator().manual_seed(0)
        return (x + radius * torch.randn(x.shape, generator=random)).clamp(low, high)
    steps, rate = (1, radius) if kind == "FGSM" else (10, radius / 4)
    moved = x
    for _ in range(steps):
        moved = moved + rate * slope(model, moved, y).sign()
        moved = moved.clamp(x - radius, x + radius).clamp(low, high)
    return moved


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss's input gradient in evaluation mode."""
    x = x.detach().requires_grad_()
    training = model.training
    loss = F.cross_entropy(model.eval()(x), y, reduction="sum")
    model.train(training)
    return torch.autograd.grad(loss, x)[0]


def findings(rows: list[Row]) -> list[Finding]:
    """Accuracies under each disturbance, and what penalties gain there and on clean images."""
    (block,) = blocks(rows)
    found = []
    for kind, sizes in SIZES.items():
        accuracies = {name: _intervals(rows, name, block, kind) for name in block.methods}
        at = ", ".join(f"{size:g}" for size in sizes)
        told = "; ".join(
            f"{name} {', '.join(said(each, '.1f') for each in of_method)}" for name, of_method in accuracies.items()
        )
        found.append(Finding(f"{kind} of {at}: accuracy in % {told}.", NOTED))
        for name in GRADIENTS:
            ends = [interval(gains(rows, name, "none", block, _at(kind, i))) for i in range(len(sizes))]
            text = f"{name}, {kind} of {at}: gain over no penalty in points {', '.join(map(said, ends))}."
            found.append(Finding(text, overall(verdict(each, 0, less_is_better=False) for each in ends)))
    told = ", ".join(
        f"{name} {said(interval(gains(rows, name, 'none', block)))} at {chosen(rows, name, block):g}"
        for name in GRADIENTS
    )
    return [
        *found,
        Finding(f"Without noise or attack, gain over no penalty in points, and the strength: {told}.", NOTED),
    ]


def _at(kind, place):
    return lambda outcome: outcome[kind][place]


def _intervals(rows, name, block, kind):
    return [interval(measured(rows, name, block, _at(kind, i))) for i in range(len(SIZES[kind]))]


def draw(rows: list[Row]) -> Figure:
    """Accuracy over the disturbance's size; accuracy under attack over that on clean images, for every strength."""
    (block,) = blocks(rows)
    figure, (*kinds, trade) = plt.subplots(1, 1 + len(SIZES), figsize=(19, 5.2), layout="constrained")
    for axes, (kind, sizes) in zip(kinds, SIZES.items(), strict=True):
        for name in block.methods:
            ends = [interval(measured(rows, name, block, "clean")), *_intervals(rows, name, block, kind)]
            style = METHODS[name].marker + "-"
            plot.intervals(axes, (0, *sizes), ends, style, METHODS[name].colour, name)
        what = "standard deviation of the noise" if kind == "noise" else f"largest change of a pixel by {kind}"
        axes.set(title=kind, xlabel=f"{what}, share of its range", ylabel="accuracy in %")
        axes.set_ylim(0, None)
    for name in block.methods:
        strengths = METHODS[name].strengths
        points = [
            [mean(rows, name, strength, block, measure) for strength in strengths]
            for measure in ("test", _at("PGD", SHOWN))
        ]
        trade.plot(*points, METHODS[name].marker + "-", color=METHODS[name].colour, markersize=4)
        trade.scatter(*(each[-1:] for each in points), color=METHODS[name].colour, s=70)
    trade.set(title="every strength (large: the strongest)", xlabel="accuracy on clean images in %")
    trade.set_ylabel(f"accuracy under PGD of {SIZES['PGD'][SHOWN]:g} in %")
    plot.style(*kinds, trade)
    handles, labels = kinds[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.suptitle(
        f"{block}: accuracy under noise and attack (strengths chosen on clean images; 95% confidence over seeds)"
    )
    return figure
