"""Does a penalty at few points of a line control the gradient between them, and does SGD find where it cannot?

Networks are fitted to three functions from few random points of [-1, 1] with the mean squared error and the squared
derivative at the points (`jacobian_frobenius`, FrobReg); the derivative is then measured at the points and on a fine
grid between them. Two hidden layers, Adam, 600 steps of the whole data. In theory the penalty controls nothing: a
staircase of 2 (N - 1) rectified units, flat at every point and steep between, has neither error nor penalty. SGD
(momentum, 1,800 steps) starts such a network from random weights, and from the staircase with 1% noise on its weights.
Intervals are over functions and four seeds.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import loop, machine, models, plot
from ..penalties import Batch
from .cells import Row, outcomes, values
from .claims import NOTED, Finding, interval, ratio, said, verdict

CLAIM = "controlled"
NEEDS: dict[str, str] = {}

FUNCTIONS = {
    "sine": lambda x: torch.sin(4 * x),
    "kink": lambda x: 2 * x.abs() - 1,
    "step": lambda x: torch.tanh(8 * x),
}
POINTS, WIDTH, STAIRCASE_POINTS = 10, 64, 10
WEIGHTS = (1e-3, 1e-2, 1e-1)
SHOWN = 1e-2  # the weight that the findings tell of
ORIGINS = {"staircase": "the noisy staircase", "random": "random weights"}
GRID = 1001
WEIGHT_COLOURS = ("#8a8a8a", "#e8a33b", "#b5382f", "#4b1d52")
COLOURS = ("#1f4e9c", "#2a7f4f", "#d98a1f", "#c44f9a")
SLOPE = 0.2  # of the distance between two points, where the staircase climbs


def cells(quick: bool) -> list[dict]:
    """Weights by sizes of the data and widths; then the staircases."""
    seeds, steps = ((1,), 20) if quick else ((1, 2, 3, 4), 600)
    functions = list(FUNCTIONS)[: 1 if quick else None]
    sizes = [(points, WIDTH, "tanh") for points in (POINTS, 5, 20, 40)]
    sizes += [(POINTS, width, "tanh") for width in (8, 256)] + [(POINTS, WIDTH, "relu")]
    fits = [
        {"points": points, "width": width, "activation": activation, "weight": weight, "steps": steps}
        for points, width, activation in sizes[: 2 if quick else None]
        for weight in (0, *WEIGHTS)
    ]
    stairs = [
        {"start": start, "weight": weight, "steps": 3 * steps}
        for start in ("staircase", "random")
        for weight in (0, 1e-2, 1e-1)
    ]
    return [
        {"function": function, **cell, "seed": seed}
        for cell in fits + stairs
        for function in functions
        for seed in seeds
    ]


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Fits the function, and measures its derivative."""
    function, points = FUNCTIONS[config["function"]], config.get("points", STAIRCASE_POINTS)
    generator = torch.Generator().manual_seed(config["seed"])
    x = (2 * torch.rand(points, 1, generator=generator) - 1).sort(0).values
    batch, steps = Batch(x, function(x)), config["steps"]
    optimise = loop.sgd(1e-2, steps) if "start" in config else loop.adam(1e-2, steps)
    runs = {}
    for engine in engines:
        model = _network(config, batch)
        loss = loop.objective(engine, "jacobian_frobenius", model, F.mse_loss, config["weight"])
        runs[engine] = loop.Run(model, loss, optimise)
    loop.lockstep(list(runs.values()), [batch] * steps)
    shown = config["function"] == "sine" and config["seed"] == 1 and points == POINTS
    return {engine: _outcome(run, batch, function, shown) for engine, run in runs.items()}


def _network(config, batch):
    torch.manual_seed(config["seed"])
    if "start" not in config:
        layers = models.mlp(config["width"], config["width"], 1, activation=config["activation"])
        return models.build(layers, (1,), config["seed"])
    units = 2 * (len(batch.x) - 1)
    model = nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1))
    if config["start"] == "staircase":
        set_staircase(model, batch.x, batch.target)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * parameter.abs().mean() * torch.randn_like(parameter)
    return model


@torch.no_grad()
def set_staircase(model: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """Makes the network take the values y at the sorted points x [N, 1], with derivative zero there."""
    gap, climb = x.diff(dim=0).T, y.diff(dim=0).T  # [1, N - 1]
    half = SLOPE / 2 * gap
    middle = (x[1:] + x[:-1]).T / 2
    steep = climb / (2 * half)
    scale = steep.abs().sqrt().clamp_min(1e-3)  # as much in the first layer as in the second
    first, _, last = model
    first.weight.copy_(torch.cat([scale, scale], 1).T)
    first.bias.copy_(-(torch.cat([middle - half, middle + half], 1) * torch.cat([scale, scale], 1))[0])
    last.weight.copy_(torch.cat([steep / scale, -steep / scale], 1))
    last.bias.copy_(y[0])


def derivative(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The network's values and derivatives at x [N, 1]."""
    x = x.clone().requires_grad_()
    y = model(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def _outcome(run, batch, function, shown):
    between = torch.linspace(batch.x.min().item(), batch.x.max().item(), GRID)[:, None]
    _, at = derivative(run.model, batch.x)
    y, away = derivative(run.model, between)
    outcome = {
        "at": at.square().mean().sqrt().item(),
        "between": away.square().mean().sqrt().item(),
        "largest": away.abs().max().item(),
        "error": (y - function(between)).square().mean().sqrt().item(),
        "error_at": (run.model(batch.x) - batch.target).square().mean().sqrt().item(),
        "seconds_per_step": machine.spread(run.processor_seconds),
    }
    if shown:
        keep = slice(None, None, 5)
        curve = {"x": between[keep, 0], "y": y[keep, 0], "slope": away[keep, 0], "points": batch.x[:, 0]}
        outcome["curve"] = {name: [round(value, 4) for value in each.tolist()] for name, each in curve.items()}
    return outcome


def _fits(rows, **config):
    return [row for row in rows if "width" in row.config and all(row.config[k] == v for k, v in config.items())]


def _stairs(rows, start):
    return [row for row in rows if row.config.get("start") == start]


def _reduction(rows, measure, weight):
    """The measure over its value without penalty, from the same function, points and first weights."""
    return ratio(outcomes(rows, measure, weight=weight), outcomes(rows, measure, weight=0))


def findings(rows: list[Row]) -> list[Finding]:
    """Reduction at and between the points, error, and what becomes of the staircases."""
    found = []
    for points, width, activation in _sizes(rows):
        of_size = _fits(rows, points=points, width=width, activation=activation)
        at, between = (_reduction(of_size, name, SHOWN) for name in ("at", "between"))
        best = min(WEIGHTS, key=lambda weight: _reduction(of_size, "error", weight)[1])
        text = (
            f"{points} points, {activation} width {width}, weight {SHOWN:g}: the derivative is {said(at)} times that "
            f"without penalty at the points, {said(between)} times between them. Error there, with the best weight "
            f"({best:g}): {said(_reduction(of_size, 'error', best))} times."
        )
        found.append(Finding(text, verdict(between)))
    for start, origin in ORIGINS.items():
        of_start = _stairs(rows, start)
        for weight in values(of_start, "weight"):
            slopes = outcomes(of_start, lambda outcome: (outcome["at"], outcome["between"]), weight=weight)
            share = interval([at / between for at, between in slopes if between])
            left = interval(outcomes(of_start, "error_at", weight=weight))
            flat = sum(not between for _, between in slopes)
            text = (
                f"SGD from {origin}, {_weight(weight)}: derivative at the points over that between them {said(share)} "
                f"(the staircase itself: 0); error at the points {said(left)}."
                + f" Left out of the former: {flat} of {len(slopes)} runs, which diverged and ended as a constant."
                * bool(flat)
            )
            tells = start == "random" and weight
            found.append(Finding(text, verdict(share, 0.5, less_is_better=False) if tells else NOTED))
    return found


def _weight(weight):
    return f"weight {weight:g}" if weight else "no penalty"


def _sizes(rows):
    return list(dict.fromkeys((r.config["points"], r.config["width"], r.config["activation"]) for r in _fits(rows)))


def draw(rows: list[Row]) -> Figure:
    """Curves of one function; derivative at and between the points over the weight; the staircase before and after."""
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    (curves, slopes, stairs), (sizes, widths, errors) = axes
    tanh = _fits(rows, activation="tanh")
    shown = {
        row.config["weight"]: row.outcome["curve"]
        for row in _fits(tanh, points=POINTS, width=WIDTH)
        if "curve" in row.outcome
    }
    for colour, (weight, curve) in zip(WEIGHT_COLOURS, shown.items(), strict=True):
        curves.plot(curve["x"], curve["y"], color=colour, label=_weight(weight))
        slopes.plot(curve["x"], [abs(slope) for slope in curve["slope"]], color=colour)
    curves.set(title=f"tanh networks {WIDTH} wide, fitted to {POINTS} points of sin(4x)", xlabel="x", ylabel="network")
    slopes.set(title="size of their derivatives (dotted: the points)", xlabel="x", ylabel="|derivative|")
    for start, origin in ORIGINS.items():
        for row in _stairs(rows, start):
            if "curve" in row.outcome and row.engine == "gradreg_fast" and row.config["weight"] == WEIGHTS[-1]:
                stairs.plot(row.outcome["curve"]["x"], row.outcome["curve"]["y"], label=f"from {origin}")
    stairs.set(title=f"rectified units, weight {WEIGHTS[-1]:g}: where SGD ends", xlabel="x", ylabel="network")
    points = torch.tensor(shown[0]["points"])
    for panel in (curves, stairs):
        panel.scatter(points, FUNCTIONS["sine"](points), color="black", s=22, zorder=3, label="data")
        panel.legend(frameon=False, fontsize=8)
    for point in points:
        slopes.axvline(point, color="black", linewidth=0.7, linestyle=":")
    for panel, name, fixed in ((sizes, "points", {"width": WIDTH}), (widths, "width", {"points": POINTS})):
        for colour, value in zip(COLOURS, sorted(values(_fits(tanh, **fixed), name)), strict=False):
            of_value = _fits(tanh, **fixed, **{name: value})
            what = f"{value} points" if name == "points" else f"width {value}"
            _over_weight(panel, of_value, "at", colour, "o-", f"{what}: at the points")
            _over_weight(panel, of_value, "between", colour, "s--", f"{what}: between them")
            if name == "points":
                _over_weight(errors, of_value, "error", colour, "o-", what)
        other = " and ".join(f"{key} {value}" for key, value in fixed.items())
        panel.set_title(f"derivative (root mean square), tanh, {other}")
    errors.set_title(f"error between the points, tanh, width {WIDTH}")
    for panel in (sizes, widths, errors):
        panel.axhline(1, color="black", linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel="weight of the penalty")
        panel.set_ylabel("with the penalty / without\nmean over functions and seeds, 95% confidence", fontsize=8)
        plot.plain_ticks(panel.yaxis)
        panel.legend(frameon=False, fontsize=7, ncols=2)
    plot.style(*axes.flat)
    figure.suptitle("Penalising the derivative at the training points: is it controlled between them?")
    return figure


def _over_weight(axes, rows, measure, colour, style, label):
    ends = [_reduction(rows, measure, weight) for weight in WEIGHTS]
    plot.intervals(axes, WEIGHTS, ends, style, colour, label)
