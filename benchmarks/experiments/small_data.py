"""Do penalties on input gradients make classifiers of images more accurate, most of all with few images?

LeNet (about 44,000 parameters) on Fashion-MNIST and MNIST, also with batch normalisation, and with dropout of one half
before its linear layers (with which so few steps are too few). Double backprop, JacReg (the softmax's Jacobian),
FrobReg (the logits'), both exact, and SpectReg (the gradient of a random projection of the logits) beside weight decay,
dropout and the confidence penalty. Of the images, a fifth are held out; every method has three strengths, and the one
with the best mean accuracy on the held-out images over the seeds is chosen (often the strongest: more might gain more).
SGD (momentum 0.9, rate 0.03, cosine decay), batches of 32, 300 to 1,500 steps, so that larger sets are seen fewer
times, all 60,000 images once. 5,000 images test. A seed, of five, draws images, first weights and batches, the same for
all methods: gains are paired differences of test accuracy, in points, and where an interval leaves out zero, the paired
t-test at 5% finds a difference. No correction is made for their number.
"""

from __future__ import annotations

import statistics

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .. import plot
from .cells import Row, timed_and_tested, values
from .claims import NOTED, Finding, interval, said, verdict
from .classifiers import (
    DROPPED,
    GRADIENTS,
    LENET,
    METHODS,
    NEEDS,
    NORMALISED,
    RIVALS,
    Block,
    blocks,
    draw_gains,
    draw_strengths,
    draw_times,
    gains,
    measured,
    outcome,
    tell,
    tell_times,
    train,
)

__all__ = ["CLAIM", "NEEDS", "cells", "draw", "findings", "run"]

CLAIM = "small data"
STEPS = {500: 300, 1000: 400, 2000: 500, 5000: 600, 60_000: 1500}  # of so many images
BLOCKS = (
    Block("fashion-mnist", 500),
    Block("fashion-mnist", 1000),
    Block("mnist-full", 500),
    Block("fashion-mnist", 2000),
    Block("fashion-mnist", 500, NORMALISED),
    Block("fashion-mnist", 500, DROPPED),
    Block("mnist-full", 2000),
    Block("fashion-mnist", 5000),
    Block("mnist-full", 1000),
    Block("mnist-full", 5000),
    Block("fashion-mnist", 60_000),
    Block("mnist-full", 60_000),
)
SEEDS = range(1, 6)
TIMED = 60  # steps of seed 0, which compares the engines' times and nothing else


def cells(quick: bool) -> list[dict]:
    """Blocks by methods, strengths and seeds."""
    if quick:
        seeds = {Block("mnist", 50): (0, 1), Block("mnist", 100): (1,), Block("mnist", 50, DROPPED): (1,)}
        return [cell for block in seeds for cell in block.cells(1, seeds[block], tested=10)]
    timed = [
        cell
        for network in (LENET, NORMALISED, DROPPED)
        for cell in Block("fashion-mnist", 500, network).cells(TIMED, [0])
    ]
    return timed + [cell for block in BLOCKS for cell in block.cells(STEPS[block.samples], SEEDS)]


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains one network with each engine, and counts the images that it is right about."""
    return {engine: outcome(run, config) for engine, run in train(config, engines).items()}


def findings(rows: list[Row]) -> list[Finding]:
    """Accuracies and gains in each block, what they come to in all, where they are greatest, and a step's time."""
    timed, tested = timed_and_tested(rows)
    there = blocks(tested)
    found = [finding for block in there for finding in tell(tested, block)]
    for name in GRADIENTS:
        ends = _mean_gain(tested, name)
        text = f"{name}, mean over all {len(there)} of these settings: gain over no penalty in points {said(ends)}."
        found.append(Finding(text, verdict(ends, 0, less_is_better=False)))
    told = ", ".join(f"{name} {said(_mean_gain(tested, name))}" for name in RIVALS)
    found.append(Finding(f"Rivals, mean over the settings that have them: gain in points {told}.", NOTED))
    for data in values(rows, "data"):
        few, *_, many = sorted(block for block in there if block[::2] == (data, LENET))
        of_few, of_many = (_means(gains(tested, name, "none", block) for name in GRADIENTS) for block in (few, many))
        ends = interval([a - b for a, b in zip(of_few, of_many, strict=True)])
        text = (
            f"{LENET}, {data}: mean gain of the four with {few.samples:,} images, less that with {many.samples:,}, in "
            f"points: {said(ends)}."
        )
        found.append(Finding(text, verdict(ends, 0, less_is_better=False)))
    return found + [tell_times(timed, block) for block in blocks(timed)]


def _mean_gain(rows, name):
    """The interval over the seeds of the mean gain over all blocks that have the method."""
    return interval(_means(gains(rows, name, "none", block) for block in blocks(rows) if name in block.methods))


def _means(lists):
    """The mean over the lists, of each seed."""
    return [statistics.fmean(of_seed) for of_seed in zip(*lists, strict=True)]


def draw(rows: list[Row]) -> Figure:
    """Gains over no penalty in every block; accuracies over sizes and strengths; a step's time."""
    timed, tested = timed_and_tested(rows)
    there = blocks(tested)
    plain = {data: [block for block in there if block[::2] == (data, LENET)] for data in values(rows, "data")}
    others = [block for block in there if block.network != LENET]
    figure = plt.figure(figsize=(17, 9.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    groups = {f"{LENET} on {data}": (sorted(each), "{0.samples:,} images") for data, each in plain.items()}
    groups["Other networks"] = (others, "{0.network},\n{0.samples:,} images\nof {0.data}")
    widths = [len(each) for each, _ in groups.values()]
    for axes, (title, (each, label)) in zip(
        upper.subplots(1, len(groups), width_ratios=widths, sharey=True), groups.items(), strict=True
    ):
        draw_gains(axes, tested, each)
        axes.set_title(title)
        axes.set_xticks(range(len(each)), [label.format(block) for block in each], fontsize=7)
    upper.axes[0].set_ylabel(
        "gain in test accuracy over no penalty, points\nmean over seeds, 95% confidence", fontsize=9
    )
    accuracies, strengths, times = lower.subplots(1, 3)
    smallest, *_ = of_sizes = sorted(next(iter(plain.values())))
    sizes = [block.samples for block in of_sizes]
    for name, method in METHODS.items():
        means = [statistics.fmean(measured(tested, name, block)) for block in of_sizes]
        accuracies.plot(sizes, means, method.marker + "-", color=method.colour, markersize=5, label=name)
    accuracies.set(title=f"{LENET} on {smallest.data}", xscale="log", xlabel="images", ylabel="mean test accuracy in %")
    accuracies.set_xticks(sizes, [f"{size:,}" for size in sizes])
    accuracies.minorticks_off()
    draw_strengths(strengths, tested, smallest)
    draw_times(times, timed, blocks(timed)[0])
    plot.style(*upper.axes, *lower.axes)
    handles, labels = accuracies.get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside upper center", ncols=len(METHODS), frameon=False, fontsize=9)
    figure.suptitle(
        "Penalties on input gradients (circles) and their rivals (squares): what they add to a classifier's accuracy"
    )
    return figure
