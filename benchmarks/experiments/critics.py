"""What does a step of a critic of images cost with gradient penalties, and what does its generator draw?

Fashion-MNIST at 28 x 28 pixels, 10,000 images. The critic has two strided 4 x 4 convolutions (16 and 32 channels, leaky
ReLU), the generator a linear layer and two upsampled 3 x 3 convolutions with batch normalisation; batches of 64, Adam
(rate 0.001, cosine decay), one critic step a generator step, 600 steps: far from a fully trained GAN. Non-saturating
logistic loss without a penalty, with R1 and with R1 and R2 (R3GAN's pair of penalties, without its loss), and WGAN-GP
with Wasserstein's; weights never tuned. Fréchet distance and covered classes are those of `gan`, of images halved to 14 x 14.
Intervals are over three seeds.
"""

from __future__ import annotations

import statistics

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import data, loop, machine, models, plot
from . import gan
from .cells import Row, outcomes
from .claims import NOTED, Finding, interval, ratio, said, verdict

CLAIM = "critics"
NEEDS = gan.NEEDS

METHODS = {  # the critic's penalty and its weight
    "no penalty": (None, 0),
    "R1": ("r1", 0.1),
    "R1 and R2": ("r1_r2", 0.1),
    "WGAN-GP": ("gradient_penalty", 10),
}
COLOURS = dict(zip(METHODS, (plot.GREY, "#1f4e9c", plot.AHEAD, "#7d6bb3"), strict=True))
ROWS, IMAGES, SIDE = 64, 10_000, 28
SHEET = 5  # images in a row and a column
GREYS = 63  # levels of the images that are kept
SEEDS, TIMED = range(1, 4), 30  # steps of seed 0, which compares the engines' times and nothing else


def cells(quick: bool) -> list[dict]:
    """Methods by seeds."""
    steps = dict.fromkeys((0, 1), 3) if quick else {0: TIMED} | dict.fromkeys(SEEDS, 600)
    return [
        {"method": method, "weight": weight, "steps": steps[seed], "seed": seed}
        for seed in steps
        for method, (_, weight) in METHODS.items()
    ]


def images() -> Tensor:
    """Standardised images [N, 1, 28, 28]."""
    return data.load("fashion-mnist", IMAGES).x


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
    real, seed = images(), config["seed"]
    slope = models.Activation("leaky_relu")
    layers = models.Conv(16, 4, 2, 1), slope, models.Conv(32, 4, 2, 1), slope, models.Flatten(), models.Linear(1)
    penalty, weight = METHODS[config["method"]]
    pairs = {}
    for engine in engines:
        critic = models.build(layers, real.shape[1:], seed)
        pairs[engine] = gan.players(critic, generator(seed + 1), engine, penalty, weight, config["steps"])
    gan.play(list(pairs.values()), real, config["steps"], seed, rows=ROWS)
    noise = torch.randn(gan.TESTED, gan.NOISE, generator=torch.Generator().manual_seed(1000 + seed))
    return {engine: _outcome(*pair, noise, real, seed) for engine, pair in pairs.items()}


def _outcome(critic, drawer, noise, real, seed):
    drawn = loop.outputs(drawer.model, noise)
    halved = F.avg_pool2d(drawn, 2).flatten(1)
    outcome = {
        "frechet": gan.frechet(*(gan.features("fashion-mnist", x) for x in (_real, halved))),
        "covered": gan.covered("fashion-mnist", halved),
        "seconds_per_step": machine.spread(critic.processor_seconds),
    }
