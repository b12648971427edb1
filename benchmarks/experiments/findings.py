"""What came out, told: an experiment's findings with its speed-up, its picture, and the page of all of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from . import NAMES, cells, load
from .claims import AGAINST, CLAIMS, MIXED, NOTED, SUPPORTS, UNDECIDED, Finding

RESULTS = Path(__file__).parents[1] / "results" / "experiments"
PAGE = RESULTS.with_name("EXPERIMENTS.md")

HEAD = """# Experiments: do penalties on input gradients help?

Written by `python -m benchmarks experiment report` from the results in [experiments/](experiments). Of the two papers
only the abstracts were at hand: the claims are our reading of them, the networks, data sizes and schedules are ours,
and no number is quoted from either. What is given as `mean (low to high)` is a 95% confidence interval over the
repetitions (Student's t), of errors and ratios that of the geometric mean. A finding "supports" the claim, or does not,
where the interval lies wholly on one side, and is "undecided" where it does not; "mixed" sums up several. Failures stay
in. Times are processor time, because the machine was shared.
"""
COUNTED = (SUPPORTS, AGAINST, UNDECIDED, MIXED)


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
    """Writes `EXPERIMENTS.md` from the committed results of the experiments that are complete."""
    tested = {claim: [] for claim in CLAIMS}
    for name in filter(_complete, NAMES):
        tested[load(name).CLAIM].append(name)
    summary = [f"| where | the claim | {' | '.join(COUNTED)} | experiments |", "|---" * (3 + len(COUNTED)) + "|"]
    sections = []
    for claim, names in tested.items():
        where, sentence = CLAIMS[claim]
        if names:
            verdicts = [each.verdict for name in names for each in of(load(name), _rows(name))]
            counts = " | ".join(str(verdicts.count(each)) for each in COUNTED)
            links = ", ".join(f"[{name}](#{name})" for name in names)
            summary.append(f"| {where} | {sentence} | {counts} | {links} |")
            sections += [f"## {sentence}\n\n{where}\n", *map(_section, names)]
    PAGE.write_text("\n".join([HEAD, *summary, "", *sections]))
    return PAGE


def _complete(name):
    cells_done = {cells.key(row.config) for row in _rows(name)}
    return len(cells_done) == len(load(name).cells(False))


def _rows(name):
    return cells.Results(_path(name)).rows(load(name).cells(False))


def _path(name):
    return RESULTS / f"{name}.jsonl"


def _section(name):
    experiment, results, rows = load(name), cells.Results(_path(name)), _rows(name)
    asked, _, how = experiment.__doc__.partition("\n")
    environment = results.commands()[-1]["environment"]
    commands = "`, then `".join(dict.fromkeys(each["command"] for each in results.commands()))
    commits = ", ".join(dict.fromkeys(str(each["environment"]["commit"]) for each in results.commands()))
    lines = [
        f"### {name}\n\n{asked}\n",
        f"{how.strip()}\n",
        f"`{commands}` ({len(rows)} rows; {environment['cpu']}, {environment['threads']} thread"
        f"{'s' * (environment['threads'] > 1)}, torch {environment['versions']['torch']}, commit {commits})\n",
        "| what came out | the claim |",
        "|---|---|",
        *(f"| {each.text} | {each.verdict} |" for each in of(experiment, rows)),
        f"\n![{asked}](experiments/{name}.png)\n",
    ]
    return "\n".join(lines)
