"""What came out, told: an experiment's findings with its speed-up, its picture, and the page of all of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from . import NAMES, cells, load
from .claims import CLAIMS, NOTED, Finding

RESULTS = Path(__file__).parents[1] / "results" / "experiments"
PAGE = RESULTS.with_name("EXPERIMENTS.md")

HEAD = """# Experiments: do penalties on input gradients help?

Written by `python -m benchmarks experiment report` from the results in [experiments/](experiments). Of the two papers
only the abstracts were at hand: the claims are our reading of them, the networks, data sizes and schedules are ours,
and no number is quoted from either. Intervals are 95% confidence intervals (Student's t) over the repetitions, of
errors and ratios those of the geometric mean: "supports it" and "does not support it" mean that the interval lies
wholly on one side, "mixed" that it does not. Failures stay in. Times are processor time, because the machine was
shared.
"""


def of(experiment: ModuleType, rows: list[cells.Row]) -> list[Finding]:
    """The experiment's findings, then what the engines' time was."""
    return [*experiment.findings(rows), *_speed(rows)]


def _speed(rows):
    quartiles = cells.speedup(rows)
    if not quartiles:
        return []
    low, middle, high = quartiles
    ours, plain = cells.median_step(rows, "gradreg_fast"), cells.median_step(rows, "none")
    text = (
        f"Processor time of a penalised step, autograd / gradreg_fast: {middle:.2f} (quartiles over the cells "
        f"{low:.2f} to {high:.2f}). Median step of gradreg_fast {1e3 * ours:.2f} ms"
    )
    return [Finding(text + (f", without penalty {1e3 * plain:.2f} ms." if plain else "."), NOTED)]


def draw(experiment: ModuleType, rows: list[cells.Row], path: Path) -> Path:
    """Draws the experiment's picture beside its results."""
    from .. import plot

    return plot.save(experiment.draw(rows), path)


def write_page() -> Path:
    """Writes `EXPERIMENTS.md` from the committed results."""
    parts = [HEAD]
    source = None
    for claim, (where, sentence) in CLAIMS.items():
        tested = [name for name in NAMES if claim == load(name).CLAIM and _path(name).is_file()]
        if not tested:
            continue
        if where != source:
            parts.append(f"## {where}\n")
            source = where
        parts += [f"### {sentence}\n", *map(_section, tested)]
    PAGE.write_text("\n".join(parts))
    return PAGE


def _path(name):
    return RESULTS / f"{name}.jsonl"


def _section(name):
    experiment, results = load(name), cells.Results(_path(name))
    rows = results.rows(experiment.cells(False))
    asked, _, how = experiment.__doc__.partition("\n")
    command = results.commands()[-1]
    environment = command["environment"]
    commits = ", ".join(dict.fromkeys(str(each["environment"]["commit"]) for each in results.commands()))
    lines = [
        f"#### {name}: {asked}\n",
        f"{how.strip()}\n",
        f"`{command['command']}` ({len(rows)} rows; {environment['cpu']}, {environment['threads']} thread"
        f"{'s' * (environment['threads'] > 1)}, torch {environment['versions']['torch']}, commit {commits})\n",
        "| what came out | the claim |",
        "|---|---|",
        *(f"| {each.text} | {each.verdict} |" for each in of(experiment, rows)),
        f"\n![{asked}](experiments/{name}.png)\n",
    ]
    return "\n".join(lines)
