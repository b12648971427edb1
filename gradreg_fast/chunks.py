"""Bounding memory: a few samples at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

from gradreg_fast.convert import graph_of
from gradreg_fast.engine import linearize
from gradreg_fast.graph import Graph
from gradreg_fast.signature import ONE_TENSOR, Bound, bind_call

PER_SAMPLE = ("x", "cotangent", "target", "target_gradient")


def chunkable(function: Callable) -> Callable:
    """Give a function ``(model, x, ...) -> (y, values)`` the keyword argument ``chunk_size``.

    With a number n, n samples go through it at a time, and once more in the backward pass (``save="recompute"``):
    memory is that of n samples (times the cotangents of an exact Jacobian norm) beside the arguments and results, and
    the numbers are the same to rounding; random projections are drawn chunk by chunk. It needs a model that treats each
    sample by itself: `BatchNorm` in eval mode, no node that autograd runs, no tensors among ``model_args`` and
    ``model_kwargs``.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args, chunk_size: int | None = None, **kwargs):
        if chunk_size is None:
            return function(*args, **kwargs)
        if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer or None, got {chunk_size!r}")
        given = {**signature.bind(*args, **kwargs).arguments, "save": "recompute"}
        _check_samples_are_separate(given)
        reduction = given.pop("reduction", "mean" if "reduction" in signature.parameters else "none")
        whole = {"reduction": "none"} if "reduction" in signature.parameters else {}
        split = {name: _split(given.pop(name), chunk_size) for name in PER_SAMPLE if given.get(name) is not None}
        parts = [dict(zip(split, members, strict=True)) for members in zip(*split.values(), strict=True)]
        ys, values = zip(*(function(**given, **whole, **part) for part in parts), strict=True)
        return torch.cat(ys), reduced(_joined(values), reduction)

    further = inspect.Parameter("chunk_size", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="int | None")
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), further])
    return wrapper


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Values ``[B]`` reduced over the batch; the mean of no samples is zero."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" and values.shape[0] else values.sum()


def _split(samples: Tensor | tuple | dict, size: int) -> list:
    if isinstance(samples, dict):
        return [dict(zip(samples, part, strict=True)) for part in _split(tuple(samples.values()), size)]
    if isinstance(samples, tuple):
        return [*zip(*(member.split(size) for member in samples), strict=True)]
    return [*samples.split(size)]


def _joined(values: tuple) -> object:
    first = values[0]
    if isinstance(first, dict):
        return {name: torch.cat([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(map(torch.cat, zip(*values, strict=True)))
    return torch.cat(values)


def _check_samples_are_separate(given: dict) -> None:
    """Raise unless the model's output of a sample is known to depend on that sample alone."""
    model, x = given["model"], given["x"]
    call, tensors = ONE_TENSOR, []
    if isinstance(model, Bound):
        model, call, tensors = model.model, model.signature, model.given
    elif isinstance(model, nn.Module) and (isinstance(x, (tuple, dict)) or {"model_args", "model_kwargs"} & {*given}):
        bound, x = bind_call(model, x, "x", None, given.get("model_args", ()), given.get("model_kwargs") or {})
        call, tensors = bound.signature, bound.given
    if not isinstance(model, nn.Module) or not isinstance(x, Tensor) or x.dim() == 0:
        return  # refused elsewhere
    if tensors:
        raise ValueError(
            "chunk_size must be None where tensors are among model_args or model_kwargs: nobody knows whether their "
            "rows are the samples'"
        )
    reason = _coupling(graph_of(model, call), x)
    if reason:
        raise ValueError(f"chunk_size must be None for a model whose samples may depend on one another: {reason}")


def _coupling(graph: Graph, x: Tensor) -> str | None:
    """What couples samples, or may; None if nothing does."""
    key = "coupling", x.shape
    if key not in graph.plans:
        graph.plans[key] = _find_coupling(graph, x)
    return graph.plans[key]


def _find_coupling(graph: Graph, x: Tensor) -> str | None:
    if graph.whole:
        return graph.whole.reason
    with torch.no_grad():  # shapes alone
        tensors = [tensor.to("meta") if isinstance(tensor, Tensor) else tensor for tensor in graph.tensors(x)]
        _, linearization = linearize(graph, x.to("meta"), tensors)
    for node in graph.nodes:
        if node and node.inputs and node.rule.couples(len(linearization.shapes[node.inputs[0]])):
            return f"{node.name} ({type(node.rule).__name__})"
    return None
