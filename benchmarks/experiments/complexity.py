"""Do errors with and without gradient information tell how many hidden nodes are enough?

Networks with one hidden layer of 1 to 64 tanh units, fitted with and without the samples' gradients (weight 1, never
tuned; Adam, rate 0.01, cosine decay, 400 steps of the whole data, 100 training samples, all quantities standardised).
Our reading of the bound: a network that is too small has to give up accuracy on the values to fit the gradients too. So
the indicated bound is the smallest number of nodes from which on the training error with gradients exceeds that without
by no more than 0.03 of the values' deviation. It is held against the number with the smallest error on 50 validation
samples, without gradients; both are then judged on up to 1,000 test samples. Five draws.
"""

from __future__ import annotations

import statistics

import matplotlib.pyplot as plt
import torch.nn.functional as F
from matplotlib.figure import Figure

from .. import loop, machine, models, plot
from ..penalties import Batch
from . import sampled
from .cells import Row, outcomes, values
from .claims import AGAINST, MIXED, SUPPORTS, Finding, geometric, ratio, said

CLAIM = "complexity"
NEEDS = sampled.SMT

NODES = (1, 2, 4, 8, 16, 32, 64)
SAMPLES, VALIDATION = 100, 50
TOLERANCE = 0.03
SEARCH = "found by validation"
KINDS = {0: ("values only", plot.GREY), 1: ("with gradients", plot.AHEAD)}


def cells(quick: bool) -> list[dict]:
    """Data sets by numbers of nodes, without and with gradients."""
    seeds, steps = (1, 8) if quick else (5, 400)
    return [
        {"data": name, "nodes": nodes, "weight": weight, "steps": steps, "seed": seed}
        for name in (sampled.NAMES[1::2] if quick else sampled.NAMES)
        for nodes in NODES
        for weight in KINDS
        for seed in range(seeds)
    ]


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains one network; its errors on training, validation and test samples."""
    data = sampled.load(config["data"], SAMPLES, config["seed"])
    batch, steps = Batch(data.x, data.y, data.slope), config["steps"]
    runs = {}
    for engine in engines:
        model = models.build(models.mlp(config["nodes"], 1, activation="tanh"), data.x.shape[1:], config["seed"])
        loss = loop.objective(engine, "gradient_matching", model, F.mse_loss, config["weight"])
        runs[engine] = loop.Run(model, loss, loop.adam(1e-2, steps))
    loop.lockstep(list(runs.values()), [batch] * steps)
    return {engine: _outcome(run, data) for engine, run in runs.items()}


def _outcome(run, data):
    tested = loop.outputs(run.model, data.x_test)
    return {
        "training": sampled.error(loop.outputs(run.model, data.x), data.y),
        "validation": sampled.error(tested[:VALIDATION], data.y_test[:VALIDATION]),
        "test": sampled.error(tested[VALIDATION:], data.y_test[VALIDATION:]),
        "seconds_per_step": machine.spread(run.processor_seconds),
    }


def _errors(rows, measure, name, weight):
    """Of every seed, the errors by number of nodes."""
    by_nodes = [outcomes(rows, measure, data=name, weight=weight, nodes=nodes) for nodes in NODES]
    return [dict(zip(NODES, of_seed, strict=True)) for of_seed in zip(*by_nodes, strict=True)]


def bound(without: dict[int, float], with_gradients: dict[int, float]) -> int:
    """The smallest number of nodes from which on gradients cost no accuracy; the largest if there is none."""
    enough = NODES[-1]
    for nodes in reversed(NODES):
        if with_gradients[nodes] - without[nodes] > TOLERANCE:
            break
        enough = nodes
    return enough


def chosen(rows: list[Row], name: str) -> tuple[list[int], list[int]]:
    """Of every seed, the indicated bound, and the number that the validation search finds."""
    pairs = zip(_errors(rows, "training", name, 0), _errors(rows, "training", name, 1), strict=True)
    searched = [min(errors, key=errors.get) for errors in _errors(rows, "validation", name, 0)]
    return [bound(*pair) for pair in pairs], searched


def findings(rows: list[Row]) -> list[Finding]:
    """Bounds, what the search finds, and the test errors of both."""
    found = []
    for name in values(rows, "data"):
        bounds, searched = chosen(rows, name)
        errors = _errors(rows, "test", name, 0)
        at_bound, at_searched, largest = (
            [each[nodes] for each, nodes in zip(errors, of_seed, strict=True)]
            for of_seed in (bounds, searched, [NODES[-1]] * len(errors))
        )
        holds = sum(b >= s for b, s in zip(bounds, searched, strict=True))
        text = (
            f"{name}: indicated bound {_listed(bounds)}, validation search {_listed(searched)} (each draw); the search "
            f"stays within the bound in {holds} of {len(bounds)}. Test error without gradients at the bound over that "
            f"at the search's number {said(ratio(at_bound, at_searched))}, over that with {NODES[-1]} nodes "
            f"{said(ratio(at_bound, largest))}."
        )
        tells = min(bounds) < NODES[-1]
        found.append(Finding(text, (SUPPORTS if holds == len(bounds) else MIXED) if tells and holds else AGAINST))
    return found


def _listed(numbers):
    return ", ".join(map(str, numbers))


def draw(rows: list[Row]) -> Figure:
    """For each data set the training errors with and without gradients, the test error, and both numbers of nodes."""
    names = values(rows, "data")
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(15, 8.5), layout="constrained", squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        for weight, (label, colour) in KINDS.items():
            for measure, style in (("training", "o-"), ("test", "s:")):
                of_kind = _errors(rows, measure, name, weight)
                ends = [geometric([each[nodes] for each in of_kind]) for nodes in NODES]
                plot.intervals(panel, NODES, ends, style, colour, f"{label}: {measure} error")
        bounds, searched = chosen(rows, name)
        panel.axvline(statistics.median(bounds), color=plot.AHEAD, linewidth=6, alpha=0.25, label="indicated bound")
        panel.axvline(
            statistics.median(searched), color="black", linestyle="--", linewidth=1, label="validation search"
        )
        panel.set(title=name, xscale="log", yscale="log", xlabel="hidden nodes", ylabel="error (1: the mean)")
        panel.set_xticks(NODES, NODES)
        panel.minorticks_off()
        plot.plain_ticks(panel.yaxis)
    plot.style(*axes.flat)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("How many hidden nodes are enough? (geometric means, 95% confidence; vertical lines: medians)")
    return figure
