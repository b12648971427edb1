"""Pictures of results files, redrawn at any time by `python -m benchmarks plot RESULTS.json`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from . import BadArgument, overhead, zoo_table
from .machine import spread
from .report import COMPILED, OURS, best, microseconds, ratio, rivals, summary

AHEAD, BEHIND, GREY = "#2a7f4f", "#b5382f", "#8a8a8a"
ENGINE_COLOURS = {"gradreg_fast": AHEAD, "autograd": "#1f4e9c", "none": GREY}
PART_COLOURS = ("#1f4e9c", "#2a7f4f", "#8db3e8", "#d98a1f", "#7bbf95", "#7d6bb3")
MARKERS = {
    "autograd": ("o", "#1f4e9c"),
    "autograd-channels-last": ("s", "#5b8fd9"),
    "autograd-batched": ("D", "#8db3e8"),
    "jacobian_regularizer": ("v", "#7d6bb3"),
    "torch.func": ("^", "#3aa6a6"),
    "inductor": ("P", "#d98a1f"),
    "inductor-autograd": ("X", "#e8b766"),
    "cuda-graph": ("*", "#555555"),
    "jax": ("p", "#c44f9a"),
    COMPILED: ("|", AHEAD),
}

MODEL_MARKERS = {"functional": ("o", AHEAD), "convert": ("D", "#7bbf95"), "inductor": ("X", "#d98a1f")}


def draw(path: Path) -> Path:
    """Draws the picture that belongs to a results file beside it.

    Raises:
        BadArgument: if the file holds no results.
    """
    try:
        results = json.loads(path.read_text())
        figure = FIGURES[results["kind"]](results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArgument(f"RESULTS.json must be a file that another command wrote: {path}: {error!r}") from error
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Saves the figure beside a results file."""
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=130)
    plt.close(figure)
    return picture


def style(*axes: Axes) -> None:
    """Two spines, and lines across behind the data."""
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)


def intervals(axes: Axes, x: Sequence[float], ends: Sequence[tuple], style: str, colour: str, label: str) -> None:
    """A line through the means at x, with bars from the lower to the upper ends."""
    low, middle, high = zip(*ends, strict=True)
    axes.plot(x, middle, style, color=colour, label=label, markersize=4)
    if math.isfinite(max(high)):
        axes.vlines(x, low, high, color=colour, linewidth=1)


def steps(axes: Axes, rows: Sequence) -> None:
    """Milliseconds of a step with each engine: the median over the cells of medians, and their quartiles."""
    names = [engine for engine in ENGINE_COLOURS if any(row.engine == engine for row in rows)]
    for column, engine in enumerate(names):
        medians = [1e3 * row.outcome["seconds_per_step"][1] for row in rows if row.engine == engine]
        low, middle, high = spread(medians)
        bars = [[middle - low], [high - middle]]
        axes.bar(column, middle, color=ENGINE_COLOURS[engine], alpha=0.7, yerr=bars, capsize=4)
    axes.set_xticks(range(len(names)), [engine if engine != "none" else "no penalty" for engine in names], fontsize=8)
    axes.set_ylabel("ms of processor time a step, median and quartiles", fontsize=9)


def plain_ticks(axis: Axis) -> None:
    """Numbers such as 0.2 on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def speed(results: dict) -> Figure:
    """Time and peak memory of every peer over ours, a line for each case."""
    cases = results["cases"]
    figure, (time, memory) = plt.subplots(
        1, 2, sharey=True, figsize=(15, 2.6 + 0.42 * len(cases)), width_ratios=(3, 2), layout="constrained"
    )
    for row, case in enumerate(cases):
        peers = case["peers"]
        times = {name: ratio(peers, name) for name in (*rivals(peers), COMPILED)}
        timed = {name: quartiles for name, quartiles in times.items() if quartiles}
        _line(time, row, timed, best(peers, rivals(peers)))
        _line(memory, row, ratios := _memory_ratios(peers), min(ratios, key=lambda name: ratios[name][1], default=None))
    labels = [f"{case['name']}  ({case['rows']} rows)\n{_under(case['peers'])}" for case in cases]
    time.set_yticks(range(len(cases)), labels, fontsize=8)
    time.set_ylim(len(cases) - 0.4, -0.6)
    _ratio_axis(time, "time of a step, peer / gradreg_fast")
    _ratio_axis(memory, "peak memory of a step, peer / gradreg_fast")
    shown = [name for name in MARKERS if any(ratio(case["peers"], name) for case in cases)]
    handles = [time.scatter([], [], marker=MARKERS[name][0], c=MARKERS[name][1], label=name) for name in shown]
    handles += [time.barh(0, 0, color=AHEAD, alpha=0.4, label="best peer: gradreg_fast needs less")]
    handles += [time.barh(0, 0, color=BEHIND, alpha=0.4, label="best peer: gradreg_fast needs more")]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"Loss + penalty + all gradients\n{_where(results['environment'])}", fontsize=10)
    return figure


def _memory_ratios(peers):
    ours = peers.get(OURS, {}).get("memory_bytes")
    used = {name: peers[name].get("memory_bytes") for name in rivals(peers)}
    return {name: [bytes / ours] * 3 for name, bytes in used.items() if bytes and ours}


def _under(peers):
    line = summary(peers)
    if line["seconds"] is None:
        return "not timed"
    over_plain = f", {line['over_plain'][1]:.2g}x the step without penalty" if line["over_plain"] else ""
    return f"{line['seconds'][1] * 1e3:.3g} ms{over_plain}"


def _line(axes, row, ratios, nearest):
    if nearest is None:
        return
    low, middle, high = ratios[nearest]
    colour = AHEAD if middle > 1 else BEHIND
    axes.barh(row, middle - 1, left=1, height=0.62, color=colour, alpha=0.4)
    axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
    number = f"{middle:.2f}" if middle < 10 else f"{middle:.0f}"
    place = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    leftmost = min(low, 1, *(value for _, value, _ in ratios.values()))
    axes.annotate(number, (leftmost, row), **place, fontsize=8, color=colour, fontweight="bold")
    for name, (_, value, _) in ratios.items():
        marker, peer_colour = MARKERS[name]
        thickness = 2 if name == COMPILED else 0
        axes.scatter(value, row, marker=marker, color=peer_colour, s=26, zorder=3, linewidths=thickness)


def _ratio_axis(axes: Axes, label: str, meaning: str = "gradreg_fast needs less") -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low / 1.15, 0.6), max(high, 1.7))  # room for the numbers
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.2, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 5) for step in steps if low < step * 10.0**power < high]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{label}\n(right of 1x: {meaning})", fontsize=9)


def _where(environment):
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    threads = environment["threads"]
    device = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
    commit = f", commit {environment['commit']}" if environment["commit"] else ""
    return f"{device}, {threads} thread{'s' * (threads > 1)}; {versions}{commit}"


def tiny_step(results: dict) -> Figure:
    """Microseconds of each whole step, the compiled one in its parts."""
    seconds = results["seconds"]
    figure, axes = plt.subplots(figsize=(11, 3.6), layout="constrained")
    for row, name in enumerate(overhead.STEPS):
        low, median, high = (1e6 * value for value in spread(seconds[name]))
        if name != overhead.COMPILED:
            axes.barh(row, median, height=0.62, color=GREY, alpha=0.5)
        axes.plot([low, high], [row, row], color="black", linewidth=1.5)
        axes.annotate(microseconds(seconds[name]), (high, row), xytext=(6, 0), textcoords="offset points", va="center")
    left = 0.0
    for colour, (name, each) in zip(PART_COLOURS, overhead.parts(seconds).items(), strict=True):
        width = 1e6 * spread(each)[1]
        axes.barh(row, width, left=left, height=0.62, color=colour, label=f"{name}: {microseconds(each)}")
        left += width
    axes.set_yticks(range(len(overhead.STEPS)), overhead.STEPS)
    axes.invert_yaxis()
    axes.set_xlabel("µs, median (quartiles)")
    axes.margins(x=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(
        f"Loss + penalty + all gradients, 8 rows through 8-8-1\n{_where(results['environment'])}", fontsize=10
    )
    return figure


def models(results: dict) -> Figure:
    """Time and peak memory of eager's step over those of ours and Inductor's, a line for each architecture."""
    lines = [line for line in zoo_table.rows(results) if line["eager_ms"]]
    figure, panels = plt.subplots(
        1, 2, sharey=True, figsize=(13, 2.4 + 0.27 * len(lines)), width_ratios=(3, 2), layout="constrained"
    )
    for axes, kind, label in zip(panels, ("time", "memory"), ("time", "peak memory"), strict=True):
        for name, (marker, colour) in MODEL_MARKERS.items():
            shown = [(row, line) for row, line in enumerate(lines) if line.get(f"{name}_{kind}")]
            places, values = [row for row, _ in shown], [line[f"{name}_{kind}"] for _, line in shown]
            axes.scatter(
                values, places, marker=marker, color=colour, s=30, zorder=3, label=zoo_table.NAMES[name].strip("`")
            )
            if kind == "time":
                lows, highs = ([line[f"{name}_{end}"] for _, line in shown] for end in ("low", "high"))
                axes.hlines(places, lows, highs, color=colour, linewidth=1)
        _ratio_axis(axes, f"{label} of a step, eager / each", "less than eager")
        axes.set_yticks(
            range(len(lines)),
            [f"{line['architecture']}  {zoo_table.milliseconds(line)} ms" for line in lines],
            fontsize=8,
        )
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    figure.suptitle(
        f"Loss + penalty + all gradients, beside eager double backward\n{_where(results['environment'])}", fontsize=10
    )
    return figure


def train(results: dict) -> Figure:
    """Loss curves, test accuracy and seconds per step of every engine."""
    engines, config = results["engines"], results["config"]
    figure, (losses, accuracy, seconds) = plt.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=(2, 1, 1), layout="constrained"
    )
    for engine in sorted(engines, key=list(ENGINE_COLOURS).index, reverse=True):
        dashed = engine == "gradreg_fast"
        losses.plot(
            *_smooth(engines[engine]["losses"][0]),
            label=engine,
            color=ENGINE_COLOURS[engine],
            linewidth=1.4 if dashed else 3,
            linestyle="--" if dashed else "-",
            alpha=1 if dashed else 0.5,
        )
    losses.set(xlabel="step", ylabel="loss with penalty, first seed", yscale="log")
    difference = results["largest_loss_difference"]
    if difference is not None:
        losses.set_title(f"gradreg_fast and autograd: first 50 steps within {difference:.1e}", fontsize=9)
    losses.legend(frameon=False, fontsize=9)
    for column, (engine, figures) in enumerate(engines.items()):
        values = [100 * value for value in figures["test_accuracy"]]
        low, middle, high = (1e3 * value for value in figures["seconds_per_step"])
        colour = ENGINE_COLOURS[engine]
        accuracy.scatter([column] * len(values), values, color=colour, alpha=0.5, s=30)
        accuracy.plot([column - 0.25, column + 0.25], [statistics.mean(values)] * 2, color=colour, linewidth=3)
        seconds.bar(column, middle, color=colour, alpha=0.7, yerr=[[middle - low], [high - middle]], capsize=4)
    accuracy.set_ylabel("test accuracy in %: seeds, and their mean", fontsize=9)
    seconds.set_ylabel("ms a step, median and quartiles", fontsize=9)
    if results["speedup"]:
        seconds.set_title(f"autograd / gradreg_fast: {results['speedup'][1]:.2f}", fontsize=9)
    names = [engine if engine != "none" else "no penalty" for engine in engines]
    for axes in (accuracy, seconds):
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.6, len(names) - 0.4)
    style(losses, accuracy, seconds)
    title = f"{config['model']} on {results['samples']} samples of {config['data']}, {config['penalty']}"
    figure.suptitle(f"{title}, weight {results['weight']:g}\n{_where(results['environment'])}", fontsize=10)
    return figure


def _smooth(values, points=120):
    """Steps, and means over equal stretches of them, so that a long curve stays a line."""
    stretch = -(-len(values) // points)
    starts = range(0, len(values), stretch)
    return list(starts), [statistics.mean(values[i : i + stretch]) for i in starts]


FIGURES = {"speed": speed, "models": models, "train": train, "overhead": tiny_step}
