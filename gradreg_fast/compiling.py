"""Our functions inside ``torch.compile(fullgraph=True)``, and under ``torch.func.vmap`` over a model's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

from gradreg_fast.ensembles import each_member, is_mapped

FUNCTIONS: dict[str, Callable] = {}
"""What `compilable` was given, by name."""


def compilable(function: Callable) -> Callable:
    """Let ``torch.compile`` take a function of a model and tensors as one step of its trace.

    Dynamo cannot follow how a model becomes a graph, and need not: it has to see which tensors go in and come out. The
    tracer below it records the operations of all four sweeps. For `vmap` see `gradreg_fast.ensembles`.
    """
    name = function.__qualname__
    FUNCTIONS[name] = function

    @wraps(function)
    def wrapper(*args, **kwargs):
        if torch.compiler.is_dynamo_compiling():
            from gradreg_fast import traced  # imports Dynamo

            return traced.call(name, *args, **kwargs)
        if is_mapped(args[0] if args else kwargs.get("model")):
            return each_member(function, args, kwargs)
        return function(*args, **kwargs)

    return wrapper
