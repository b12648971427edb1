"""Whether penalties on input gradients help: claims of two papers, and the fields that use such penalties.

An experiment is a module of this package, named in `NAMES`, with

- a docstring whose first line says what is asked, and `CLAIM`, the key of what it tests in `claims.CLAIMS`;
- `NEEDS`: packages beyond the extra `bench`, and files, that it needs, each with what installs it;
- `cells(quick) -> list[dict]`: the configurations, made of what JSON holds; the quick ones need packages alone.
  `weight` is the penalty's; where it is 0 or missing, there is no penalty, and the engine is "none". `seed` numbers
  the repetitions;
- `run(config, engines) -> {engine: outcome}`: trains one cell with these engines, in lockstep (`loop`); what came out
  of each, made of what JSON holds. Its `seconds_per_step` (`machine.spread` of processor time) give speed-ups;
- `draw(rows) -> Figure`: one picture that is understood without the text;
- `findings(rows) -> list[Finding]`: what came out, with its uncertainty, and whether it supports the claim.

`cells.py` runs what is missing and keeps each cell as it ends, so that a run that was stopped goes on.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

NAMES = (
    "small_data",
    "robustness",
    "resnet",
    "synthetic_1d",
    "synthetic_nd",
    "surrogates",
    "gan",
    "complexity",
    "linear",
    "forces",
    "distance",
    "critics",
)


def load(name: str) -> ModuleType:
    """The experiment's module."""
    return import_module(f".{name}", __package__)


def missing(name: str, quick: bool = False) -> list[str]:
    """What would have to be installed before the experiment can run."""
    return [install for need, install in load(name).NEEDS.items() if not _is_here(need, quick)]


def _is_here(need, quick):
    return quick or Path(need).exists() if need.startswith("/") else find_spec(need) is not None
