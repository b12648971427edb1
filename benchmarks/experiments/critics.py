"""What does a step of a critic of images cost with gradient penalties, and what does its generator draw?

Fashion-MNIST at 28 x 28 pixels, 10,000 images. The critic has two strided 4 x 4 convolutions (16 and 32 channels, leaky
ReLU), the generator a linear layer and two upsampled 3 x 3 convolutions with batch normalisation; batches of 64, Adam
(rate 0.001, cosine decay), one critic step a generator step, 1,200 steps: far from a fully trained GAN. Non-saturating
logistic loss without a penalty, with R1 and with R1 and R2 (R3GAN's pair of penalties, without its loss), and WGAN-GP
with Wasserstein's; weights as in `gan` (R1's was 0.1 in a short run too, which did worse). The Fréchet distance and the
covered classes are those of `gan`, of images halved to 14 x 14 pixels. Intervals are over three seeds.
"""

from __future__ import annotations

import statistics
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import data, loop, machine, models, plot
from . import gan
from .cells import Row, outcomes, timed_and_tested
from .claims import NOTED, Finding, interval, ratio, said, verdict

CLAIM = "critics"
NEEDS = gan.NEEDS

METHODS = {  # the critic's penalty and its weight
    "no penalty": (None, 0),
    "R1": ("r1", 1),
    "R1 and R2": ("r1_r2", 1),
    "WGAN-GP": ("gradient_penalty", 10),
}
COLOURS = dict(zip(METHODS, (plot.GREY, "#1f4e9c", plot.AHEAD, "#7d6bb3"), strict=True))
ROWS, SIDE = 64, 28
SHEET = 5  # images in a row and a column
GREYS = 63  # levels of the images that are kept
SEEDS, TIMED = range(1, 4), 30  # steps of seed 0, which compares the engines' times and nothing else


def cells(quick: bool) -> list[dict]:
    """Methods by seeds."""
    steps = dict.fromkeys((0, 1), 1) if quick else {0: TIMED} | dict.fromkeys(SEEDS, 1200)
    return [
        {"data": "mnist" if quick else "fashion-mnist"}
        | {"method": method, "weight": weight, "steps": steps[seed], "seed": seed}
        for seed in steps
        for method, (_, weight) in METHODS.items()
    ]


@cache
def images(name: str) -> Tensor:
    """Standardised images [N, 1, 28, 28]."""
    return data.load(name, gan.IMAGES[name]).x


def generator(seed: int) -> nn.Sequential:
    """Noise [B, 16] to images [B, 1, 28, 28]."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(gan.NOISE, 32 * 49),
        nn.Unflatten(1, (32, 7, 7)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 1, 3, padding=1),
    )


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains critic and generator, and looks at what the generator draws."""
    real, seed = images(config["data"]), config["seed"]
    slope = models.Activation("leaky_relu")
    layers = models.Conv(16, 4, 2, 1), slope, models.Conv(32, 4, 2, 1), slope, models.Flatten(), models.Linear(1)
    penalty, weight = METHODS[config["method"]]
    pairs = {}
    for engine in engines:
        critic = models.build(layers, real.shape[1:], seed)
        pairs[engine] = gan.players(critic, generator(seed + 1), engine, penalty, weight, config["steps"])
    gan.play(list(pairs.values()), real, config["steps"], seed, rows=ROWS)
    return {engine: _outcome(*pair, config) for engine, pair in pairs.items()}


def _outcome(critic, drawer, config):
    name, seed = config["data"], config["seed"]
    outcome = {"seconds_per_step": machine.spread(critic.processor_seconds)}
    if not seed:
        return outcome
    noise = torch.randn(gan.TESTED, gan.NOISE, generator=torch.Generator().manual_seed(1000 + seed))
    drawn = loop.outputs(drawer.model, noise)
    halved, real = F.avg_pool2d(drawn, 2).flatten(1), gan.samples(name)[0][: gan.TESTED]
    outcome["frechet"] = gan.frechet(*(gan.features(name, x) for x in (real, halved)))
    outcome["covered"] = gan.covered(name, halved)
    if seed == 1:
        low, high = (extreme.item() for extreme in images(name).aminmax())
        greys = (GREYS * ((drawn[: SHEET**2] - low) / (high - low)).clamp(0, 1)).round().int()
        outcome["drawn"] = greys.flatten(1).tolist()
    return outcome


def findings(rows: list[Row]) -> list[Finding]:
    """Fréchet distance and coverage, over those without penalty; the critic's step, beside autograd's."""
    timed, played = timed_and_tested(rows)
    plain = outcomes(played, "frechet", method="no penalty")
    found = []
    for method in METHODS:
        distances, modes = (outcomes(played, measure, method=method) for measure in ("frechet", "covered"))
        text = f"{method}: Fréchet distance {said(interval(distances))}, classes covered {statistics.fmean(modes):.0%}"
        if method == "no penalty":
            found.append(Finding(f"{text}.", NOTED))
        else:
            ends = ratio(distances, plain)
            found.append(Finding(f"{text}; distance over that without penalty {said(ends)}.", verdict(ends)))
    told = "; ".join(
        f"{method} {_milliseconds(timed, method, 'gradreg_fast'):.1f}, autograd "
        f"{_milliseconds(timed, method, 'autograd'):.1f}"
        for method in list(METHODS)[1:]
    )
    text = (
        f"Critic's step, ms of processor time for {ROWS} real and {ROWS} generated images: no penalty "
        f"{_milliseconds(timed, 'no penalty', 'none'):.1f}; {told}."
    )
    return [*found, Finding(text, NOTED)]


def _milliseconds(rows, method, engine):
    (row,) = (row for row in rows if row.engine == engine and row.config["method"] == method)
    return 1e3 * row.outcome["seconds_per_step"][1]


def draw(rows: list[Row]) -> Figure:
    """A critic's step with each engine, Fréchet distances, and what each method's generator draws."""
    timed, played = timed_and_tested(rows)
    figure, (times, distances, *sheets) = plt.subplots(
        1, 2 + len(METHODS), figsize=(19, 3.9), width_ratios=(1.5, 1.3, *[1] * len(METHODS)), layout="constrained"
    )
    for x, (method, sheet) in enumerate(zip(METHODS, sheets, strict=True)):
        engines = ("gradreg_fast", "autograd") if METHODS[method][0] else ("none",)
        for place, engine in enumerate(engines):
            height = _milliseconds(timed, method, engine)
            bar, colour = x + 0.4 * (place - (len(engines) - 1) / 2), plot.ENGINE_COLOURS[engine]
            times.bar(bar, height, 0.38, color=colour, alpha=0.8, label=engine if x == 1 else "")
            times.annotate(f"{height:.0f}", (bar, height), ha="center", va="bottom", fontsize=8)
        of_method = outcomes(played, "frechet", method=method)
        distances.bar(x, statistics.fmean(of_method), color=COLOURS[method], alpha=0.7)
        distances.scatter([x] * len(of_method), of_method, color="black", s=10, zorder=3)
        tiles = np.array(outcomes(played, lambda o: o.get("drawn"), method=method, seed=1)[0])
        tiles = tiles.reshape(SHEET, SHEET, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(SHEET * SIDE, SHEET * SIDE)
        sheet.imshow(tiles, cmap="gray", vmin=0, vmax=GREYS)
        sheet.axis("off")
        modes = statistics.fmean(outcomes(played, "covered", method=method))
        sheet.set_title(f"{method}: {modes:.0%} of the classes", fontsize=10)
    times.set(title="A critic's step", ylabel="ms of processor time")
    times.legend(frameon=False, fontsize=8)
    distances.set(title="Fréchet distance: seeds, and their mean")
    for axes in (times, distances):
        axes.set_xticks(range(len(METHODS)), [method.replace(" ", "\n", 1) for method in METHODS], fontsize=8)
    plot.style(times, distances)
    figure.suptitle("Critics of Fashion-MNIST images with gradient penalties: their time, and what generators draw")
    return figure
