"""Do surrogate networks need fewer samples when the samples come with gradients, or with extracted ones?

Airfoil drag (16 inputs) and B777 engine (3 inputs) data of SMT with their own gradients, and three formulas with exact
ones. Networks with two hidden layers of 32 tanh units, Adam (rate 0.01, cosine decay), 400 steps of the whole data, all
quantities standardised; the loss is the mean squared error plus `gradient_matching` with weight 1, never tuned.
Gradients are given, or (our reading of "extracted from a surrogate network") those of a network that was trained first
on the same samples, without gradients and from other weights. `jenn`, a library of gradient-enhanced networks, has the
same layers, loss and number of steps, its own Adam, and rate 0.01, better there than its default. Errors are on up to
1,000 other samples; 1 is the error of the mean. Intervals are over five draws of samples and weights.
"""

from __future__ import annotations

import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from .. import loop, machine, models, plot
from ..penalties import Batch
from . import sampled
from .cells import Row, outcomes, values
from .claims import NOTED, Finding, geometric, overall, ratio, said, verdict
from .synthetic_1d import derivative

CLAIM = "surrogates"
NEEDS = sampled.SMT | {"jenn": "pip install jenn"}

SIZES, JENN_SIZE = (30, 100, 300), 100
WIDTH, RATE = 32, 1e-2
COLOURS = {"none": plot.GREY, "given": plot.AHEAD, "extracted": "#1f4e9c", "jenn": "#d98a1f"}
LABELS = {"none": "values only", "given": "with gradients", "extracted": "with extracted gradients", "jenn": "jenn"}


def cells(quick: bool) -> list[dict]:
    """Data sets by sizes and kinds of gradients."""
    seeds, steps = (1, 8) if quick else (5, 400)
    names = sampled.NAMES[1::2] if quick else sampled.NAMES  # quick leaves out the largest file
    return [
        {"data": name, "samples": size, "gradients": kind, "weight": weight, "steps": steps, "seed": seed}
        for name in names
        for size in SIZES
        for kind, weight in (("none", 0), ("given", 1), ("extracted", 1), ("jenn", 0))
        for seed in range(seeds)
        if kind != "jenn" or size == JENN_SIZE
    ]


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains on the samples, and tests values and gradients."""
    data, steps, seed = sampled.load(config["data"], config["samples"], config["seed"]), config["steps"], config["seed"]
    if config["gradients"] == "jenn":
        return {engines[0]: _jenn(data, steps, seed)}
    slope = data.slope
    if config["gradients"] == "extracted":
        first = train(data, ("none",), 0, steps, WIDTH, seed + 1000)["none"]
        slope = derivative(first.model, data.x)[1]
    runs = train(data._replace(slope=slope), engines, config["weight"], steps, WIDTH, seed)
    return {engine: _outcome(run, data) for engine, run in runs.items()}


def train(
    data: sampled.Sampled, engines: tuple[str, ...], weight: float, steps: int, width: int, seed: int
) -> dict[str, loop.Run]:
    """Networks with two hidden layers of this width, fitted by the engines to values and, with a weight, gradients."""
    runs = {}
    for engine in engines:
        model = models.build(models.mlp(width, width, 1, activation="tanh"), data.x.shape[1:], seed)
        loss = loop.objective(engine, "gradient_matching", model, F.mse_loss, weight)
        runs[engine] = loop.Run(model, loss, loop.adam(RATE, steps))
    loop.lockstep(list(runs.values()), [Batch(data.x, data.y, data.slope)] * steps)
    return runs


def _outcome(run, data):
    y, slope = derivative(run.model, data.x_test)
    return {
        "error": sampled.error(y, data.y_test),
        "gradient_error": sampled.error(slope, data.slope_test),
        "seconds_per_step": machine.spread(run.processor_seconds),
        "seconds": sum(run.processor_seconds),
    }


def _jenn(data, steps, seed):
    import jenn

    x, y, x_test = (part.T.numpy() for part in (data.x, data.y, data.x_test))
    network = jenn.NeuralNet([len(x), WIDTH, WIDTH, 1])
    start = time.process_time()
    network.fit(x, y, data.slope.T[None].numpy(), alpha=RATE, max_iter=steps, random_state=seed)
    seconds = time.process_time() - start

    def tested(prediction, target: Tensor):
        return sampled.error(torch.from_numpy(prediction.T), target)

    return {
        "error": tested(network.predict(x_test), data.y_test),
        "gradient_error": tested(network.predict_partials(x_test)[0], data.slope_test),
        "seconds": seconds,
    }


def findings(rows: list[Row]) -> list[Finding]:
    """Errors with gradients over those without, and jenn's beside ours."""
    found = []
    for name in values(rows, "data"):
        for kind in ("given", "extracted"):
            ends = [
                ratio(*(outcomes(rows, "error", data=name, samples=size, gradients=each) for each in (kind, "none")))
                for size in SIZES
            ]
            told = ", ".join(f"{said(each)} with {size} samples" for each, size in zip(ends, SIZES, strict=True))
            text = f"{name}, gradients {kind}: error over that without gradients {told}."
            found.append(Finding(text, overall(map(verdict, ends))))
        at_size = {"data": name, "samples": JENN_SIZE}
        ours, theirs = (
            {measure: outcomes(rows, measure, **at_size, gradients=kind) for measure in ("error", "seconds")}
            for kind in ("given", "jenn")
        )
        text = (
            f"{name}, {JENN_SIZE} samples with gradients: error {said(geometric(ours['error']), '.3f')} with "
            f"gradreg_fast, {said(geometric(theirs['error']), '.3f')} with jenn; jenn's seconds over gradreg_fast's "
            f"{said(ratio(theirs['seconds'], ours['seconds']))}."
        )
        found.append(Finding(text, NOTED))
    return found


def draw(rows: list[Row]) -> Figure:
    """A panel for each data set: test error over the number of samples."""
    names = values(rows, "data")
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(14, 8), layout="constrained", squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        for kind in LABELS:
            sizes = [size for size in SIZES if kind != "jenn" or size == JENN_SIZE]
            ends = [geometric(outcomes(rows, "error", data=name, samples=size, gradients=kind)) for size in sizes]
            plot.intervals(panel, sizes, ends, "P" if kind == "jenn" else "o-", COLOURS[kind], LABELS[kind])
        panel.set(title=name, xscale="log", yscale="log", xlabel="training samples", ylabel="test error (1: the mean)")
        panel.set_xticks(SIZES, SIZES)
        panel.minorticks_off()
        plot.plain_ticks(panel.yaxis)
    plot.style(*axes.flat)
    axes.flat[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"Surrogate networks {WIDTH}-{WIDTH}: error and number of samples (geometric mean, 95% confidence)")
    return figure
