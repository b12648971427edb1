"""Trading a second forward for memory: nothing is kept for the backward pass, which computes it again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint

from gradreg_fast.signature import Bound
from gradreg_fast.wrappers import still_gathered


def recomputable(function: Callable) -> Callable:
    """Give a function of tensors the keyword argument ``save``.

    With ``"all"``, the default, it keeps for its backward pass what that needs; with ``"recompute"`` it keeps its
    arguments alone and is called once more in the backward pass, with the same random numbers: sweeps 1 and 2 twice,
    for the memory of none. Running statistics are updated once.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args, save: str = "all", **kwargs):
        if save == "all":
            return function(*args, **kwargs)
        if save != "recompute":
            raise ValueError(f"save must be 'all' or 'recompute', got {save!r}")
        given = signature.bind(*args, **kwargs).arguments
        model, generator = given["model"], given.get("generator")
        start = None if generator is None else generator.get_state()
        calls = []

        def call(*args, **kwargs):
            calls.append(None)
            if len(calls) == 1:
                return function(*args, **kwargs)
            with _unchanged(model.model if isinstance(model, Bound) else model, generator, start):
                return function(*args, **kwargs)

        return checkpoint(call, *args, use_reentrant=False, **kwargs)

    save = inspect.Parameter("save", inspect.Parameter.KEYWORD_ONLY, default="all", annotation="str")
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), save])
    return wrapper


@contextmanager
def _unchanged(model: nn.Module, generator: torch.Generator | None, state: torch.Tensor | None) -> Iterator[None]:
    """Let a generator draw from an earlier state and leave it as it was; let the model change copies of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = None if generator is None else generator.get_state()
    if generator is not None:
        generator.set_state(state)
    try:
        with still_gathered(model), _reparametrize_module(model, buffers, tie_weights=True):
            yield
    finally:
        if generator is not None:
            generator.set_state(before)
