"""Convolutions and what follows them as nodes for compiled kernels, where those are faster.

A block stands for a convolution, the activation behind it and, on the CPU, the pooling behind that, as far as they are
there; on CUDA devices, for a row of convolutions with their activations. It is a node like any other, and no sweep
knows of it. The graph without blocks is its reference in PyTorch lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gradreg_fast import measured
from gradreg_fast.backend import KERNELS, available, current, insists, require
from gradreg_fast.fuse import read_by
from gradreg_fast.graph import Graph, Node, PlainValue
from gradreg_fast.mlp import STRAIGHT, kind_of
from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.base import has_symbols, is_plain
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.conv_block import AVERAGE, MAX, MAX_FIRST, NONE, ConvBlock
from gradreg_fast.rules.conv_products import ConvProducts, Layer
from gradreg_fast.rules.merge import Add, Affine, Dropout
from gradreg_fast.rules.norm import BatchNormEval, BatchNormTrain
from gradreg_fast.rules.pool import AveragePool, MaxPool, Windows

Shape = tuple[int, ...]

# What the kernels take by themselves, from all four sweeps of a layer in units of the PyTorch lines' time: float32, one
# thread, 32 samples, kernels 1 to 7, 8 to 32 pixels wide, several activations.
# - Inputs times outputs at most this, by dtype. With pooling 0.3 to 0.7 up to 128, 0.85 to 1.0 at 256, 0.9 to 1.1 at
#   512, 1.1 to 1.2 at 1024; in float64 0.4 to 0.7 up to 4096.
MOST_CHANNELS = {torch.float32: 256, torch.float64: 4096}
# - Without pooling, sums of a sample at most this: larger tiles leave the second-level cache, where 0.6 to 0.8 becomes
#   0.8 to 1.7.
MOST_SUMS = 8192
# - Sums of a row, which are computed side by side, at least this: fewer wait for each other.
LEAST_IN_A_ROW = 8

DTYPES = {
    "cpp": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}

NO_WINDOWS = Windows((1, 1), (1, 1), (0, 0))


@dataclass(frozen=True)
class Run:
    """Nodes that a block can stand for.

    Attributes:
        nodes: their numbers: a convolution, then what alone reads the node before.
        layer: the convolution and its activation.
        block: makes the CPU's rule, given whether images are to be channels last.
    """

    nodes: tuple[int, ...]
    layer: Layer
    block: Callable[[bool], ConvBlock]


def with_blocks(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> Graph:
    """The graph with blocks where kernels serve this input, and the backend's choice allows it; remembered."""
    choice, kernels = current(), KERNELS.get(x.device.type)
    if choice == "torch" or kernels is None or x.dim() != 4 or graph.low is not None:
        return graph
    if kernels == "cuda" and not insists(x.device) and not _measured(x):
        return graph
    convolutions = [tensor for run in runs_of(graph, kernels) for tensor in _parameters(graph, run, tensors)]
    if has_symbols(x.shape):
        return graph  # which is faster depends on it
    if not convolutions or any(not _is_like(tensor, x) for tensor in (x, *convolutions)) or not available(x.device):
        return graph
    key = (kernels, x.shape, x.dtype, choice, torch.get_num_threads(), *(tensor.shape for tensor in convolutions))
    if key not in graph.plans:
        graph.plans[key] = _rewritten(graph, x, tensors, always=insists(x.device))
    return graph.plans[key]


def _parameters(graph: Graph, run: Run, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    slots = graph.nodes[run.nodes[0]].slots
    return [tensors[slot] for slot in slots if slot is not None]


def _is_like(tensor: Tensor, x: Tensor) -> bool:
    """Whether kernels can read this tensor's memory as numbers like those of x."""
    return is_plain(tensor) and tensor.dtype == x.dtype and x.dtype in DTYPES[KERNELS[x.device.type]]


def _rewritten(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None], always: bool) -> Graph:
    shapes = shapes_of(graph, x.shape, tensors)
    nodes, chosen, kernels = list(graph.nodes), [], KERNELS[x.device.type]
    for run in runs_of(graph, kernels):
        first, last = nodes[run.nodes[0]], run.nodes[-1]
        images, weight = shapes[first.inputs[0]], tensors[first.slots[0]]
        sums, result = shapes[run.nodes[0]], shapes[last]
        if images is None or images[1] != weight.shape[1] or min(*sums[2:], *result[2:]) < 1:
            continue  # PyTorch's lines say what is wrong, if anything is
        if not always and kernels == "cuda" and max(images[1], sums[1]) > _measured(x):
            continue
        if not always and kernels == "cpp" and not is_faster(weight, images, sums, pools=sums != result):
            continue
        chosen.append(run)
    if not chosen:
        return graph
    # PyTorch's convolutions are channels last; layouts side by side cost more than either
    others = kernels == "cuda" or sum(isinstance(node.rule, Conv) for node in nodes if node) > len(chosen)
    for runs in _chains(graph, chosen) if kernels == "cuda" else [[run] for run in chosen]:
        first, slots = nodes[runs[0].nodes[0]], [slot for run in runs for slot in nodes[run.nodes[0]].slots]
        rule = ConvProducts([run.layer for run in runs]) if kernels == "cuda" else runs[0].block(others)
        for i in (i for run in runs for i in run.nodes):
            nodes[i] = nothing(nodes[i])
        nodes[runs[-1].nodes[-1]] = replace(first, rule=rule, slots=tuple(slots))
    return graph.rewritten(nodes)


def _chains(graph: Graph, runs: list[Run]) -> list[list[Run]]:
    """Runs that follow each other, with nothing else that reads the values between them."""
    chains: list[list[Run]] = []
    ends: dict[int, list[Run]] = {}  # chains by the value that they make
    for run in runs:
        (value,) = graph.nodes[run.nodes[0]].inputs
        alone = value != graph.seed and read_by(graph, value, run.nodes[0])
        chain = ends.pop(value, None) if alone else None
        if chain is None:
            chains.append(chain := [])
        chain.append(run)
        ends[run.nodes[-1]] = chain
    return chains


def nothing(node: Node) -> Node:
    """What stands where a node was that became part of another."""
    return Node(node.name, PlainValue(lambda: None), ())


def is_faster(weight: Tensor, images: Shape, sums: Shape, pools: bool) -> bool:
    """Whether the kernels are ahead of the PyTorch lines.

    Args:
        weight: of the convolution.
        images: shape of its input.
        sums: shape of its output.
        pools: whether the block ends in a pooling.
    """
    if min(shape[1] * shape[3] for shape in (images, sums)) < LEAST_IN_A_ROW:
        return False
    if not pools and math.prod(sums[1:]) > MOST_SUMS:
        return False
    places = require().lanes(weight.element_size()) * torch.get_num_threads()
    filled = images[0] / (max(1, math.ceil(images[0] / places)) * places)  # idle lanes and threads hold kernels back
    return images[1] * sums[1] <= MOST_CHANNELS[weight.dtype] * filled**3


def _measured(x: Tensor) -> int:
    """Up to how many channels CUDA kernels are ahead."""
    return measured.CHANNELS.get(torch.cuda.get_device_capability(x.device), {}).get(x.dtype, 0)


def runs_of(graph: Graph, kernels: str = "cpp") -> list[Run]:
    """What blocks of these kernels can stand for; found once a graph."""
    key = ("runs", kernels)
    if key not in graph.plans:
        starts = [i for i, node in enumerate(graph.nodes) if node and type(node.rule) is Conv]
        runs = [_run(graph, i, kernels) for i in starts]
        graph.plans[key] = [run for run in runs if run is not None]
    return graph.plans[key]


def _run(graph: Graph, start: int, kernels: str) -> Run | None:
    """The longest run that starts with this convolution."""
    conv = graph.nodes[start].rule
    computed = any(slot in graph.computed.values() for slot in graph.nodes[start].slots)
    if conv.groups != 1 or len(conv.stride) != 2 or computed:
        return None
    if kernels == "cuda" and any(s > 1 < d for s, d in zip(conv.stride, conv.dilation, strict=True)):
        return None
    measured = {j for node in graph.nodes if node for j in node.extras}
    nodes, activation, pooling, windows = [start], None, NONE, NO_WINDOWS
    while True:
        i = nodes[-1]
        readers = graph.consumers[i]
        if len(readers) != 1 or i in (graph.output, graph.seed) or i in measured:
            break
        rule = graph.nodes[readers[0]].rule
        if isinstance(rule, Activation) and activation is None and kind_of(rule) is not None and pooling != AVERAGE:
            activation = rule
            pooling = MAX_FIRST if pooling == MAX else pooling
        elif kernels == "cuda":
            break
        elif isinstance(rule, (MaxPool, AveragePool)) and pooling == NONE and rule.whole:
            pooling, windows = MAX if isinstance(rule, MaxPool) else AVERAGE, rule.shape
        else:
            break
        nodes.append(readers[0])
    kind, settings = (0, (0.0, 0.0)) if activation is None else kind_of(activation)
    phi = kind, settings, kind in STRAIGHT
    return Run(tuple(nodes), Layer(conv, *phi), partial(ConvBlock, conv, *phi, pooling, windows))


def shapes_of(graph: Graph, x: Shape, tensors: Sequence[Tensor | None]) -> list[Shape | None]:
    """The shapes of a graph's values where they are images, made by rules that say so; else None."""
    shapes: list[Shape | None] = [tuple(x)]
    for node in graph.nodes[1:]:
        below = [shapes[j] for j in node.inputs]
        known = below and all(shape == below[0] is not None for shape in below)
        shapes.append(_image_shape(node, below[0], tensors) if known else None)
    return shapes


def _image_shape(node: Node, x: Shape, tensors: Sequence[Tensor | None]) -> Shape | None:
    rule = node.rule
    if isinstance(rule, (Activation, Add, Affine, Dropout, BatchNormEval, BatchNormTrain)):
        return x
    if type(rule) is Conv and len(x) == 4:
        return tuple(rule.output_shape(x, tensors[node.slots[0]]))
    if isinstance(rule, (MaxPool, AveragePool)) and rule.shape is not None and len(x) == 4:
        return (*x[:2], *rule.shape.counts(x[2:]))
    return None
