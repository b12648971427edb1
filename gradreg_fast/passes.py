"""Nodes whose sweeps are single passes over memory, by compiled kernels around the products of libraries.

Only on CUDA devices: there PyTorch's lines start several kernels for what one pass can do. The graph with PyTorch's
lines is their reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradreg_fast.backend import KERNELS, available
from gradreg_fast.graph import Graph
from gradreg_fast.mlp import kind_of
from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.activation_passes import ActivationPasses
from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.norm import BatchNormTrain, GroupNorm, LayerNorm, RootMeanSquareNorm
from gradreg_fast.rules.norm_passes import BatchNormPasses, GroupNormPasses, LayerNormPasses, RootMeanSquarePasses

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NORMALISATIONS: dict[type[Rule], Callable[[Rule], Rule]] = {
    BatchNormTrain: lambda rule: BatchNormPasses(rule.eps, rule.momentum),
    GroupNorm: lambda rule: GroupNormPasses(rule.groups, rule.eps),
    LayerNorm: lambda rule: LayerNormPasses(rule.shape, rule.eps),
    RootMeanSquareNorm: lambda rule: RootMeanSquarePasses(rule.shape, rule.eps),
}


def with_passes(graph: Graph, x: Tensor) -> Graph:
    """The graph with passes where kernels serve this input, and the backend's choice allows it; remembered."""
    if KERNELS.get(x.device.type) != "cuda" or x.dtype not in DTYPES or not available(x.device):
        return graph
    if "passes" not in graph.plans:
        nodes = tuple(node and replace(node, rule=_pass_for(node.rule)) for node in graph.nodes)
        graph.plans["passes"] = replace(graph, nodes=nodes, plans={}, _with_head={}, _needs={})
    return graph.plans["passes"]


def _pass_for(rule: Rule) -> Rule:
    if isinstance(rule, Activation) and (phi := kind_of(rule)) is not None:
        return ActivationPasses(rule, *phi)
    return NORMALISATIONS.get(type(rule), lambda rule: rule)(rule)
