"""Mixed precision: a graph whose nodes cast as PyTorch's autocast would, and compute in one dtype each.

PyTorch casts at every call, by the call's name. Here the graph says it once: under autocast a node that casts stands in
the place of each that PyTorch would cast for, and the sweeps themselves run without autocast. So all four know the
dtypes of the first, wherever the backward pass is called, and no rule sees two dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial, reduce, wraps

import torch
from torch import Tensor

from gradreg_fast.graph import Graph
from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.attention import Attention
from gradreg_fast.rules.base import Rule, at_least_single
from gradreg_fast.rules.cast import Cast, is_floating
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.linear import Linear
from gradreg_fast.rules.norm import BatchNormEval, BatchNormTrain, GroupNorm, LayerNorm, Standardise
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.rules.pointwise import PReLU
from gradreg_fast.rules.product import Bilinear, Einsum, MatrixProduct
from gradreg_fast.rules.reduce import Deviation, LogSumExp, Norm, Sum
from gradreg_fast.rules.shape import LinearMap, To
from gradreg_fast.rules.softmax import Softmax

# How PyTorch's calls behave under autocast, by rule (its ATen/autocast_mode.h); all others promote their operands and
# keep the dtype.
LOWER = (Linear, Conv, MatrixProduct, Einsum, Attention, PReLU)  # in autocast's dtype
INSIDE = (BatchNormTrain, BatchNormEval, Standardise)  # in float32, the result in the input's dtype
SINGLE = {"cpu": (), "cuda": (Softmax, LayerNorm, GroupNorm, Sum, Norm, LogSumExp)}  # in float32, and so is the result
TRIED = (Activation, LinearMap)  # single or not by the function that they hold: found out by calling it


def region(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast region that we are in, for tensors of this device; None outside of any."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind in SINGLE and torch.is_autocast_enabled(kind) else None


def regions() -> tuple[torch.dtype | None, ...]:
    """`region` of every kind of device."""
    if not torch._C._is_any_autocast_enabled():
        return (None,) * len(SINGLE)
    return tuple(region(torch.device(kind)) for kind in SINGLE)


def with_casts(graph: Graph, x: Tensor) -> Graph:
    """The graph with casts, if autocast is on for this input; remembered."""
    low = region(x.device)
    if low is None or graph.whole:  # autograd runs it in the region
        return graph
    key = "autocast", x.device.type, low
    if key not in graph.plans:
        nodes = list(graph.nodes)
        for i, node in enumerate(nodes):
            if node and (node.inputs or isinstance(node.rule, Opaque)):
                head = i == graph.seed and i != graph.output
                nodes[i] = replace(node, rule=_casting(node.rule, len(node.inputs), x.device.type, low, head))
        graph.plans[key] = replace(graph.rewritten(nodes), low=low)
    return graph.plans[key]


def without_autocast(sweeps):
    """Run a function of sweeps over such graphs outside of any region: their nodes cast."""

    @wraps(sweeps)
    def wrapper(*arguments, **keywords):
        with torch._C._DisableAutocast():
            return sweeps(*arguments, **keywords)

    return wrapper


def _casting(rule: Rule, inputs: int, kind: str, low: torch.dtype, head: bool) -> Rule:
    if isinstance(rule, Opaque):
        return _in_region(rule, kind, low)
    if isinstance(rule, To):
        return rule
    if head:
        return Cast(rule, _single)
    if isinstance(rule, GroupNorm) and rule.groups is None:  # instances' own statistics
        return Cast(rule, _inside)
    if isinstance(rule, SINGLE[kind]) and not isinstance(rule, Deviation):
        return Cast(rule, _single)
    if isinstance(rule, INSIDE):
        return Cast(rule, _inside)
    if isinstance(rule, LOWER) and not isinstance(rule, Bilinear):
        return Cast(rule, partial(_lower, low))
    if isinstance(rule, TRIED):
        return Cast(rule, partial(_tried, kind, low, rule, {}))
    return Cast(rule, _promoted)


def _in_region(rule: Opaque, kind: str, low: torch.dtype) -> Opaque:
    """The rule with its function in the region; autograd remembers the casts."""

    def function(inputs, parameters, extras):
        with torch.autocast(kind, low, cache_enabled=False):
            return rule.function(inputs, parameters, extras)

    rule_there = copy(rule)
    rule_there.function = function
    return rule_there


# The policies: of floating-point inputs, parameters and extras, the dtypes of a node's calculus and of its result.


def _promoted(inputs: Sequence, parameters: Sequence, extras: Sequence) -> tuple[torch.dtype, torch.dtype]:
    tensors = [t for t in (*inputs, *parameters) if is_floating(t)]
    dtype = reduce(torch.promote_types, [t.dtype for t in tensors if t.dim()] or [t.dtype for t in tensors])
    return dtype, dtype


def _lower(low: torch.dtype, inputs, parameters, extras):
    dtype, _ = _promoted(inputs, parameters, extras)
    dtype = dtype if dtype == torch.float64 else low  # autocast leaves float64 alone
    return dtype, dtype


def _single(inputs, parameters, extras):
    dtype, _ = _promoted(inputs, parameters, extras)
    return at_least_single(dtype), at_least_single(dtype)


def _inside(inputs, parameters, extras):
    result = inputs[0].dtype
    if any(is_floating(t) and t.dtype == result for t in extras):  # running statistics in half precision
        return result, result
    return at_least_single(result), result


def _tried(kind: str, low: torch.dtype, rule: Rule, found: dict, inputs, parameters, extras):
    dtype = inputs[0].dtype
    if at_least_single(dtype) == dtype:
        return dtype, dtype
    if dtype not in found:
        with torch.autocast(kind, low):
            found[dtype] = rule.forward([inputs[0].clone()], parameters, extras)[0].dtype
    return found[dtype], found[dtype]
