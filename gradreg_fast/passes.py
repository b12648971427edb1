"""Nodes whose sweeps are single passes over memory, by compiled kernels around the products of libraries.

PyTorch's lines take several passes, on CUDA devices each a kernel to start, for what one pass can do. The graph with
them is the reference. On a CPU PyTorch's own activations are single passes, too, but read more and never work in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradreg_fast.backend import KERNELS, available, insists
from gradreg_fast.blocks import nothing, with_blocks
from gradreg_fast.fuse import read_by
from gradreg_fast.graph import Graph, Node
from gradreg_fast.mlp import kind_of, mlp_of
from gradreg_fast.rules.activation import Activation, Sine
from gradreg_fast.rules.activation_passes import ActivationPasses
from gradreg_fast.rules.average_pool_passes import AveragePoolPasses
from gradreg_fast.rules.base import Rule, has_symbols
from gradreg_fast.rules.max_pool_passes import MOST_PLACES, MaxPoolPasses
from gradreg_fast.rules.norm import BatchNormTrain, GroupNorm, LayerNorm, RootMeanSquareNorm
from gradreg_fast.rules.norm_passes import BatchNormPasses, GroupNormPasses, LayerNormPasses, RootMeanSquarePasses
from gradreg_fast.rules.pool import EVERYTHING, AveragePool, MaxPool, Windows

DTYPES = {
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cpp": (torch.float32, torch.float64),
}
NORMALISATIONS: dict[type[Rule], Callable[[Rule], Rule]] = {
    BatchNormTrain: lambda rule: BatchNormPasses(rule.eps, rule.momentum),
    GroupNorm: lambda rule: GroupNormPasses(rule.groups, rule.eps),
    LayerNorm: lambda rule: LayerNormPasses(rule.shape, rule.eps),
    RootMeanSquareNorm: lambda rule: RootMeanSquarePasses(rule.shape, rule.eps),
}
ON_CPU = (BatchNormTrain, LayerNorm, RootMeanSquareNorm)
"""Normalisations that the CPU's kernels know."""
LEAST_ON_CPU = 1 << 16
"""Numbers of an input from which passes of piecewise linear activations and of poolings repay their calls; four images
of 48 x 48 are too few. Those of smooth activations always do: their second derivatives take PyTorch several calls."""

MOST_WINDOWS = {"cpp": 2, "cuda": 3}
"""That a number may be in, on average, where activations join averages: reading it, and telling its slope, in each of
nine (3 x 3 windows, one step apart) takes twice as long on a CPU as passes of their own, in 2.25 as long."""


def with_kernels(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> Graph:
    """The graph with blocks and passes where kernels serve this input, and the backend's choice allows it."""
    return with_passes(with_blocks(graph, x, tensors), x)


def with_passes(graph: Graph, x: Tensor) -> Graph:
    """The graph with passes where kernels serve this input, and the backend's choice allows it; remembered."""
    kernels = KERNELS.get(x.device.type)
    if kernels is None or x.dtype not in DTYPES[kernels] or not available(x.device):
        return graph
    if kernels == "cpp" and torch.is_autocast_enabled("cpu"):
        return graph  # activations are in lower precision than x
    if kernels == "cpp" and mlp_of(graph) is not None:
        return graph  # what mlp.py leaves of these goes by active units (active.py), which reads activations
    small = kernels == "cpp" and not insists(x.device) and _is_small(x)
    key = "passes", kernels, small
    if key not in graph.plans:
        nodes = [node and replace(node, rule=_pass_for(node.rule, kernels, small)) for node in graph.nodes]
        _join_maxima(graph, nodes)
        _join_averages(graph, nodes, MOST_WINDOWS[kernels])
        graph.plans[key] = graph.rewritten(nodes)
    return graph.plans[key]


def _join_maxima(graph: Graph, nodes: list[Node | None]) -> None:
    """Give maxima over windows to the piecewise linear activation that alone reads them."""
    for i, node in enumerate(graph.nodes):
        if node is None or not isinstance(node.rule, Activation) or not node.rule.curvature_free:
            continue
        (j,), phi = node.inputs, kind_of(node.rule)
        below = nodes[j]
        if phi and below and isinstance(below.rule, MaxPoolPasses) and j != graph.seed and read_by(graph, j, i):
            nodes[i] = replace(below, rule=MaxPoolPasses(below.rule.windows, *phi))
            nodes[j] = nothing(below)


def _join_averages(graph: Graph, nodes: list[Node | None], most_windows: int) -> None:
    """Give activations to the average over windows that alone reads them."""
    for i, node in enumerate(graph.nodes):
        if node is None or not isinstance(node.rule, AveragePool) or not _joins(node.rule.shape, most_windows):
            continue
        (j,) = node.inputs
        below = nodes[j]
        if below and isinstance(below.rule, ActivationPasses) and j != graph.seed and read_by(graph, j, i):
            nodes[i] = replace(below, rule=AveragePoolPasses(node.rule, *below.rule.phi))
            nodes[j] = nothing(below)


def _joins(windows: Windows | None, most_windows: int) -> bool:
    if windows is None or windows is EVERYTHING:
        return windows is EVERYTHING
    return math.prod(windows.size) <= most_windows * math.prod(windows.stride)


def _is_small(x: Tensor) -> bool:
    return not has_symbols(x.shape) and x.numel() < LEAST_ON_CPU


def _pass_for(rule: Rule, kernels: str, small: bool) -> Rule:
    if type(rule) in NORMALISATIONS and (kernels == "cuda" or type(rule) in ON_CPU):
        return NORMALISATIONS[type(rule)](rule)
    if small and (rule.curvature_free or not isinstance(rule, Activation)):
        return rule
    if kernels == "cpp" and isinstance(rule, Sine):
        return rule  # the kernels compute sines anew in every sweep, 0.75 to 1.08 times as fast as PyTorch's lines
    if isinstance(rule, Activation) and (phi := kind_of(rule)) is not None:
        return ActivationPasses(rule, *phi)
    if isinstance(rule, MaxPool) and rule.shape is not None and math.prod(rule.shape.size) <= MOST_PLACES:
        return MaxPoolPasses(rule.shape, 0, (0.0, 0.0))
    return rule
