"""Does a ResNet with batch normalisation, trained with all images, still gain from penalties on input gradients?

A block each of 8, 16 and 32 channels (20,000 parameters, some eight times LeNet's operations) on all 60,000 images of
Fashion-MNIST, by the protocol of `small_data`, a fifth held out. 1,500 steps of 32 images are one pass over the rest: a
short training. The weakest strength is the best of every method: weaker ones would harm less. Left out for time are the
exact Jacobians, which cost ten gradients a step; dropout has no place in this network. SGD (momentum 0.9, rate 0.03,
cosine decay); intervals are over five seeds.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .. import plot
from .cells import Row, timed_and_tested
from .claims import Finding
from .classifiers import (
    NEEDS,
    RESNET,
    Block,
    blocks,
    draw_gains,
    draw_strengths,
    draw_times,
    outcome,
    tell,
    tell_times,
    train,
)

__all__ = ["CLAIM", "NEEDS", "cells", "draw", "findings", "run"]

CLAIM = "small data"
STEPS, TIMED = 1500, 20  # the latter of seed 0, which compares the engines' times and nothing else
SEEDS = range(1, 6)


def cells(quick: bool) -> list[dict]:
    """One block of the protocol, and less of it for seed 0."""
    if quick:
        return Block("mnist", 50, RESNET).cells(1, (0, 1), tested=10)
    block = Block("fashion-mnist", 60_000, RESNET)
    return block.cells(TIMED, [0]) + block.cells(STEPS, SEEDS)


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains one network with each engine, and counts the images that it is right about."""
    return {engine: outcome(run, config) for engine, run in train(config, engines).items()}


def findings(rows: list[Row]) -> list[Finding]:
    """Accuracies, gains, and a step's time."""
    timed, tested = timed_and_tested(rows)
    (block,) = blocks(rows)
    return [*tell(tested, block), tell_times(timed, block)]


def draw(rows: list[Row]) -> Figure:
    """Gains over no penalty, accuracy over strengths, and a step's time."""
    timed, tested = timed_and_tested(rows)
    (block,) = blocks(rows)
    figure, (gained, strengths, times) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    draw_gains(gained, tested, [block])
    gained.set(title="gain over no penalty", ylabel="points of test accuracy, 95% confidence over seeds", xticks=[])
    draw_strengths(strengths, tested, block)
    strengths.set_title("every strength (grey: no penalty)")
    draw_times(times, timed, block)
    plot.style(gained, strengths, times)
    figure.legend(*gained.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{block}, {STEPS:,} steps: what penalties (circles) and rivals (squares) add to its accuracy")
    return figure
