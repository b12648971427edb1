"""All rules: importing this fills the tables `FUNCTIONS` and `MODULES`, each rule file's part by itself."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import ModuleType

import torch
from torch.nn import functional

from gradreg_fast.rules import (
    activation,
    attention,
    choice,
    constant,
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
from gradreg_fast.rules.call import (
    FUNCTIONS,
    MODULES,
    NAMED,
    Call,
    Constant,
    Parameter,
    Plain,
    Several,
    Value,
    collect,
    entry_of,
    filling,
)

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
    choice,
    shape,
    constant,
)

SPELLINGS = {
    getattr: "T",
    operator.getitem: "x[...]",
    **dict.fromkeys((operator.add, operator.iadd), "+"),
    **dict.fromkeys((operator.sub, operator.isub), "-"),
    **dict.fromkeys((operator.mul, operator.imul), "*"),
    **dict.fromkeys((operator.truediv, operator.itruediv), "/"),
    **dict.fromkeys((operator.pow, operator.ipow), "**"),
    operator.matmul: "@",
    operator.gt: ">",
    operator.lt: "<",
    operator.ge: ">=",
    operator.le: "<=",
    operator.eq: "==",
    operator.ne: "!=",
    functional.logsigmoid: "logsigmoid",
    torch.special.expit: "special.expit",
}

__all__ = [
    "FUNCTIONS",
    "MODULES",
    "NAMED",
    "Call",
    "Constant",
    "Parameter",
    "Plain",
    "Several",
    "Value",
    "collect",
    "entry_of",
    "filling",
    "table",
]


def table() -> str:
    """What has a rule, as Markdown: a line for each rule file, from the tables themselves."""
    lines = ["| | modules of `torch.nn`, and others | functions, methods and operators |", "|---|---|---|"]
    for file in FILES:
        title = file.__doc__.partition("\n")[0].partition(":")[0].rstrip(".")
        modules = {kind.__name__ for kind, entry in MODULES.items() if defined_in(entry, file)}
        modules |= {name for name, entry in NAMED.items() if defined_in(entry, file)}
        functions = {spelled(target) for target, entry in FUNCTIONS.items() if defined_in(entry, file)}
        cells = (", ".join(f"`{name}`" for name in sorted(names)) for names in (modules, functions))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def defined_in(entry: Callable, file: ModuleType) -> bool:
    """Whether an entry is one of a rule file's."""
    return getattr(entry, "func", entry).__module__ == file.__name__


def spelled(target: Callable | str) -> str:
    """A function's or method's name; an in-place form has that of the plain one."""
    if target in SPELLINGS:
        return SPELLINGS[target]
    return (target if isinstance(target, str) else target.__name__).strip("_").replace("linalg_", "linalg.")
