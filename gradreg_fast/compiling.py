"""Our functions inside ``torch.compile(fullgraph=True)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

FUNCTIONS: dict[str, Callable] = {}
"""What `compilable` was given, by name."""


def compilable(function: Callable) -> Callable:
    """Let ``torch.compile`` take a function of a model and tensors as one step of its trace.

    Dynamo cannot follow how a model becomes a graph, and need not: it has to see which tensors go in and come out. The
    tracer below it records the operations of all four sweeps.
    """
    name = function.__qualname__
    FUNCTIONS[name] = function

    @wraps(function)
    def wrapper(*args, **kwargs):
        if not torch.compiler.is_dynamo_compiling():
            return function(*args, **kwargs)
        from gradreg_fast import traced  # imports Dynamo

        return traced.call(name, *args, **kwargs)

    return wrapper
