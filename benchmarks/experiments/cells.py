"""The cells of an experiment: which engines run them, and the file that keeps each as it ends."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from .. import machine

CHOICES = ("all", "gradreg_fast", "autograd", "none")


class Row(NamedTuple):
    """What came out of one cell with one engine."""

    config: dict
    engine: str
    outcome: dict


def engines(config: dict, choice: str) -> tuple[str, ...]:
    """The engines of a cell; of "all", autograd takes part for the first seed, which is enough to compare the two."""
    if not config.get("weight"):
        return ("none",) if choice in ("all", "none") else ()
    if choice == "all":
        return ("gradreg_fast", "autograd") if config.get("seed", 0) == 0 else ("gradreg_fast",)
    return (choice,) if choice != "none" else ()


class Results:
    """A file of JSON lines: rows, and before those of each invocation its command and environment."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def rows(self, configs: list[dict]) -> list[Row]:
        """What is there of these cells, in their order."""
        found = defaultdict(list)
        for line in self.lines:
            if "config" in line:
                found[key(line["config"])].append(Row(**line))
        return [row for config in configs for row in found[key(config)]]

    def commands(self) -> list[dict]:
        """The command and environment of every invocation that wrote here."""
        return [line for line in self.lines if "command" in line]

    def append(self, *lines: dict) -> None:
        """Adds lines; whenever the run is stopped, the file is whole."""
        self.lines += lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        beside.replace(self.path)


def run(experiment: ModuleType, configs: list[dict], choice: str, results: Results, advance: Callable) -> None:
    """Runs what the file lacks of the cells, and adds it as each ends, when `advance()` is called."""
    known = {(key(row.config), row.engine) for row in results.rows(configs)}
    lacking = [
        tuple(name for name in engines(config, choice) if (key(config), name) not in known) for config in configs
    ]
    if any(lacking):
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        results.append({"command": command, "environment": machine.environment(torch.get_num_threads(), "cpu")})
    for config, names in zip(configs, lacking, strict=True):
        if names:
            ended = experiment.run(config, names)
            results.append(*({"config": config, "engine": name, "outcome": each} for name, each in ended.items()))
        advance()


def key(config: dict) -> str:
    """What tells a cell from the others."""
    return json.dumps(config, sort_keys=True)


def outcomes(rows: list[Row], measure: str | Callable, **config) -> list:
    """The measure (a name, or a function of the outcome) of every cell with these values in its configuration.

    Of a cell that autograd ran too, gradreg_fast's outcome is taken, which autograd repeats.
    """
    chosen: dict[str, Row] = {}  # in the order of the cells, so that those of two weights are pairs
    for row in rows:
        matches = all(row.config.get(name) == value for name, value in config.items())
        if matches and (key(row.config) not in chosen or row.engine != "autograd"):
            chosen[key(row.config)] = row
    return [row.outcome[measure] if isinstance(measure, str) else measure(row.outcome) for row in chosen.values()]


def timed_and_tested(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Those of seed 0, where it compares the engines' times and nothing else, and the others."""
    return [row for row in rows if not row.config["seed"]], [row for row in rows if row.config["seed"]]


def values(rows: list[Row], name: str) -> list:
    """The values that a part of the configurations takes, in order of appearance."""
    return list(dict.fromkeys(row.config[name] for row in rows if name in row.config))


def speedup(rows: list[Row]) -> list[float] | None:
    """Quartiles over the cells of autograd's median seconds a step over gradreg_fast's."""
    seconds = {(key(row.config), row.engine): row.outcome.get("seconds_per_step") for row in rows}
    pairs = (
        (each, seconds.get((config, "gradreg_fast")))
        for (config, engine), each in seconds.items()
        if engine == "autograd"
    )
    ratios = [theirs[1] / ours[1] for theirs, ours in pairs if theirs and ours]
    return machine.spread(ratios) if ratios else None


def median_step(rows: list[Row], engine: str) -> float | None:
    """The median over the cells of the median seconds a step."""
    medians = [
        row.outcome["seconds_per_step"][1] for row in rows if row.engine == engine and "seconds_per_step" in row.outcome
    ]
    return statistics.median(medians) if medians else None
