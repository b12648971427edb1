"""Which contraction computes ``||J||_F^2`` with the fewest operations, chosen from the shapes alone.

At any value m that every path passes, ``J = U V`` with ``U = dy/dm [K, n]`` and ``V = dm/dx [n, D]``, so that
``||J||_F^2 = <U^T U, V V^T>``: n unit cotangents pulled from m to the input and n unit tangents pushed from m to the
output do, whatever K and D are. With m the output this is the stack of K cotangents; the narrowest m is often best.

At the ends, the first and the last fully connected layers need not be passed: with ``G = W W^T``, ``||W^T u||^2 =
u^T G u`` costs n^2 a row instead of n d, and ``||W v||^2 = v^T W^T W v`` likewise.

One hidden layer between them, ``J = W2 diag(s) W1``, has the closed form ``s^T ((W1 W1^T) o (W2^T W2)) s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch

from gradreg_fast.engine import Linearization
from gradreg_fast.rules.activation import Activation
from gradreg_fast.rules.base import has_symbols
from gradreg_fast.rules.linear import Linear
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.rules.shape import Reshape

CPU_STACK_BYTES = (
    2**20
)  # a chunk's widest stack stays in a core's cache; above 32 MB the allocator page-faults each time


@dataclass(frozen=True)
class Plan:
    """How to compute the squared norm.

    Attributes:
        cut: the value m where unit seeds start, or the seed with its given cotangents.
        bottom: where the pull ends: the input, or the first layer's output (then its Gram matrix measures).
        top: where the push ends: the seed, or the last layer's input.
        closed_form: one hidden layer, no sweeps at all; `bottom` and `top` are its two sides.
        flops: the estimate that it was chosen by: value and gradients, without the plain network's three products.
        active: compiled kernels take each sample's active units alone; see `gradreg_fast.active`.
        chunk: how many cotangents there are at a time, pulled again in the backward pass; None: all, and kept.
    """

    cut: int
    bottom: int
    top: int
    closed_form: bool
    flops: float
    active: bool = False
    chunk: int | None = None


def plan(linearization: Linearization, stack: int | None, chunk: int | None = None) -> Plan:
    """The cheapest plan for these shapes; remembered by the graph.

    Args:
        linearization: the graph at its input.
        stack: how many cotangents are given, or None for the exact norm of the whole Jacobian.
        chunk: how many cotangents there may be at a time; None for any number.
    """
    graph, shape = linearization.graph, linearization.shapes[0]
    if has_symbols(shape):  # a tracer's: right for all sizes, cheapest for one
        return _cheapest(linearization, stack, chunk)
    key = (shape, stack, chunk, linearization.like.dtype)
    if key not in graph.plans:
        graph.plans[key] = _cheapest(linearization, stack, chunk)
    return graph.plans[key]


def _cheapest(linearization: Linearization, stack: int | None, chunk: int | None) -> Plan:
    plans = candidates(linearization, stack)
    if chunk is not None:
        seed = linearization.graph.seed
        plans = [replace(plan, chunk=chunk) if plan.cut == seed else plan for plan in plans]
        plans = [plan for plan in plans if plan.chunk or plan.closed_form or width(linearization, plan.cut) <= chunk]
    return min(plans, key=lambda plan: plan.flops)


def candidates(linearization: Linearization, stack: int | None) -> list[Plan]:
    """All plans that are right for this graph."""
    graph = linearization.graph
    if not batch_stays_first(linearization):
        rows = width(linearization, graph.seed) if stack is None else stack
        return [_swept(linearization, graph.seed, 0, graph.seed, rows)]
    first, last = first_linear(linearization), last_linear(linearization)
    bottoms = [0] if first is None else [0, first]
    if stack is not None:
        return [_swept(linearization, graph.seed, bottom, graph.seed, stack) for bottom in bottoms]
    opaque = any(node and node.inputs and isinstance(node.rule, Opaque) for node in graph.nodes)
    cuts = [graph.seed] if couples_samples(linearization) or opaque else graph.cuts
    tops = [graph.seed] if last is None else [graph.seed, last]
    plans = [
        _swept(linearization, cut, bottom, top, width(linearization, cut))
        for cut, bottom, top in product(cuts, bottoms, tops)
        if bottom <= cut <= top and (cut > 0 or bottom == 0)
    ]
    if first is not None and last is not None and hidden_activation(linearization, first, last):
        plans.append(_closed_form(linearization, first, last))
    return plans


def batch_stays_first(linearization: Linearization) -> bool:
    """Whether no reshape and no broadcast has moved the batch's dimension: row b of every value is sample b."""
    graph, shapes = linearization.graph, linearization.shapes
    return all(
        shape[:1] == shapes[0][:1] and all(len(node.inputs) == 1 or len(shapes[j]) == len(shape) for j in node.inputs)
        for node, shape in zip(graph.nodes, shapes, strict=True)
        if node and node.inputs
    )


def couples_samples(linearization: Linearization) -> bool:
    """Whether some sample's output may depend on another sample."""
    shapes = linearization.shapes
    return any(
        node.rule.couples(len(shapes[node.inputs[0]])) for node in linearization.graph.nodes if node and node.inputs
    )


def adjoints_are_cotangents(linearization: Linearization) -> bool:
    """Whether each sample has one output, piecewise linear in that sample alone: adjoints are cotangents, scaled."""
    graph = linearization.graph
    return (
        graph.seed == graph.output
        and graph.curvature_free
        and not couples_samples(linearization)
        and width(linearization, graph.seed) == 1
        and batch_stays_first(linearization)
    )


def width(linearization: Linearization, value: int) -> int:
    """Elements a sample has of this value."""
    return math.prod(linearization.shapes[value][1:])


def known_shapes(linearization: Linearization) -> list[torch.Size | None]:
    """The values' shapes in numbers: for a tracer's symbols, those of the tracer's example, without a condition."""

    def known(size):
        return size.node.hint if isinstance(size, torch.SymInt) else size

    if not has_symbols(linearization.shapes[0]):
        return linearization.shapes
    return [None if shape is None else torch.Size(map(known, shape)) for shape in linearization.shapes]


def chunk_size(linearization: Linearization, bottom: int) -> int | None:
    """How many cotangents to sweep at a time so that the widest stack stays in cache; None: all at once."""
    if linearization.like.device.type != "cpu":
        return None
    shapes = [shape for shape in known_shapes(linearization)[bottom:] if shape is not None]
    widest = max(shape.numel() for shape in shapes) * linearization.like.element_size()
    return max(1, CPU_STACK_BYTES // max(1, widest))


def first_linear(linearization: Linearization) -> int | None:
    """The output of a fully connected layer that alone reads the input, if that is how the graph starts."""
    graph, value = linearization.graph, 0
    while value != graph.seed and len(graph.consumers[value]) == 1:
        (i,) = graph.consumers[value]
        rule = graph.nodes[i].rule
        if isinstance(rule, Linear):
            return i if _gram_keeps_precision(linearization, i) else None
        if not isinstance(rule, Reshape):
            return None
        value = i
    return None


def last_linear(linearization: Linearization) -> int | None:
    """The input of a fully connected layer that makes the seed, if that is how the graph ends."""
    graph = linearization.graph
    node = graph.nodes[graph.seed]
    if node is None or not isinstance(node.rule, Linear) or not _gram_keeps_precision(linearization, graph.seed):
        return None
    (value,) = node.inputs
    return value if value in graph.cuts else None


def hidden_activation(linearization: Linearization, first: int, last: int) -> bool:
    """Whether a single elementwise node lies between the first layer's output and the last one's input."""
    node = linearization.graph.nodes[last]
    vectors = len(linearization.shapes[first]) == 2
    return vectors and node is not None and node.inputs == (first,) and isinstance(node.rule, Activation)


def _gram_keeps_precision(linearization: Linearization, i: int) -> bool:
    """Gram matrices square the condition number: not in half precision."""
    return linearization.parameters[i][0].dtype in (torch.float32, torch.float64)


def _swept(linearization: Linearization, cut: int, bottom: int, top: int, rows: int) -> Plan:
    """Each of `rows` seeds takes three products a layer (pull, push, weight gradient), each Gram end two and two."""
    graph, shapes = linearization.graph, known_shapes(linearization)

    def layer(i: int) -> int:
        node = graph.nodes[i]
        if node is None or not node.inputs:
            return 0
        return node.rule.flops(linearization.parameters[i], shapes[i], [shapes[j] for j in node.inputs])

    flops = 3.0 * rows * sum(layer(i) for i in range(bottom + 1, top + 1) if i != cut or cut != graph.seed)
    if bottom:
        weight = linearization.parameters[bottom][0]
        flops += gram_flops(rows * shapes[bottom].numel() // len(weight), *weight.shape)
    if top != graph.seed:
        weight = linearization.parameters[graph.seed][0]
        positions = shapes[top].numel() // weight.shape[1]
        flops += gram_flops(0 if cut == top else rows * positions, weight.shape[1], weight.shape[0])
    if cut != graph.seed:  # V V^T and U^T U, and their products with the other side in the backward pass
        flops += 4.0 * rows**2 * ((shapes[bottom].numel() if cut != bottom else 0) + shapes[top].numel())
    return Plan(cut, bottom, top, False, flops)


def swept_flops(rows: int, n: int, d: int) -> float:
    """The three products of a layer from d to n: pull, push, weight gradient."""
    return 6.0 * rows * n * d


def gram_flops(rows: int, n: int, d: int) -> float:
    """Gram matrix n x n of vectors with d elements, its product with the rows, and the gradients of both."""
    return 4.0 * n * n * (d + rows)


def _closed_form(linearization: Linearization, first: int, last: int) -> Plan:
    graph = linearization.graph
    below = linearization.parameters[first][0]
    above = linearization.parameters[graph.seed][0]
    rows = known_shapes(linearization)[first][0]
    return Plan(
        first, first, last, True, gram_flops(rows, *below.shape) + gram_flops(0, above.shape[1], above.shape[0])
    )
