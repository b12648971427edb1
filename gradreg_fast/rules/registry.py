"""All rules: importing this fills the tables `FUNCTIONS` and `MODULES`, each rule file's part by itself."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from gradreg_fast.rules import (
    activation,
    attention,
    conv,
    index,
    linear,
    merge,
    norm,
    pad,
    pointwise,
    pool,
    product,
    reduce,
    resample,
    shape,
    softmax,
)
from gradreg_fast.rules.call import FUNCTIONS, MODULES, Call, Parameter, Plain, Several, Value, collect, fill

FILES = (
    linear,
    conv,
    attention,
    norm,
    activation,
    pointwise,
    softmax,
    pool,
    resample,
    pad,
    merge,
    product,
    reduce,
    index,
    shape,
)

__all__ = ["FUNCTIONS", "MODULES", "Call", "Parameter", "Plain", "Several", "Value", "collect", "fill", "table"]


def table() -> str:
    """What has a rule, as Markdown: a line for each rule file, from the tables themselves."""
    lines = ["| | modules | functions | methods |", "|---|---|---|---|"]
    for file in FILES:
        title = file.__doc__.partition("\n")[0].partition(":")[0].rstrip(".")
        modules = {kind.__name__ for kind, entry in MODULES.items() if defined_in(entry, file)}
        targets = [target for target, entry in FUNCTIONS.items() if defined_in(entry, file)]
        functions = {target.__name__ for target in targets if not isinstance(target, str)}
        methods = {target for target in targets if isinstance(target, str)}
        lines.append(f"| {title} | {' | '.join(', '.join(sorted(names)) for names in (modules, functions, methods))} |")
    return "\n".join(lines)


def defined_in(entry: Callable, file: ModuleType) -> bool:
    """Whether an entry is one of a rule file's."""
    return getattr(entry, "func", entry).__module__ == file.__name__
