"""Rewrites of a graph that give the same numbers with less work."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from gradreg_fast.graph import Computed, Graph, Node
from gradreg_fast.rules.activation import Activation, ReLU
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.linear import Linear
from gradreg_fast.rules.merge import Affine
from gradreg_fast.rules.pool import MaxPool


def fuse(graph: Graph) -> Graph:
    """The graph after all rewrites."""
    return in_place(pool_first(without_identities(graph)))


def without_identities(graph: Graph) -> Graph:
    """Readers of what a node hands on unchanged (dropout at rest, say) take it from where that comes from."""
    source = list(range(len(graph.nodes)))
    for i, node in enumerate(graph.nodes):
        if node and type(node.rule) is Affine and node.rule.aliases and i != graph.output:
            source[i] = source[node.inputs[0]]
    kept = [i for i, own in enumerate(source) if own == i]
    place = {i: number for number, i in enumerate(kept)}
    number = [place[i] for i in source]

    def moved(node: Node | None) -> Node | None:
        if node is None:
            return None
        inputs, extras = (tuple(number[j] for j in values) for values in (node.inputs, node.extras))
        return replace(node, inputs=inputs, extras=extras)

    nodes = [moved(graph.nodes[i]) for i in kept]
    slots = tuple(Computed(number[slot.index]) if isinstance(slot, Computed) else slot for slot in graph.slots)
    return replace(graph.rewritten(nodes), slots=slots, output=number[graph.output], seed=number[graph.seed])


def pool_first(graph: Graph) -> Graph:
    """``maxpool(relu(z))`` as ``relu(maxpool(z))``: exactly the same, on a quarter of the elements.

    Also for derivatives: where a window's maximum is positive both name the same winner, elsewhere both give zero.
    """
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if node is None or not isinstance(node.rule, MaxPool):
            continue
        (j,) = node.inputs
        below = nodes[j]
        if below is not None and isinstance(below.rule, ReLU) and read_by(graph, j, i):
            nodes[j] = replace(node, inputs=below.inputs)
            nodes[i] = replace(below, inputs=(j,))
    return graph.rewritten(nodes)


def in_place(graph: Graph) -> Graph:
    """Activations that keep nothing but their result, computed in the memory of a product that nobody else reads."""
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if node is None or not isinstance(node.rule, Activation) or not node.rule.keeps_result:
            continue
        (j,) = node.inputs
        if nodes[j] is not None and isinstance(nodes[j].rule, (Linear, Conv, MaxPool)) and read_by(graph, j, i):
            rule = copy(node.rule)
            rule.in_place = True
            nodes[i] = replace(node, rule=rule)
    return graph.rewritten(nodes)


def read_by(graph: Graph, value: int, reader: int) -> bool:
    """Whether this node alone reads the value, or its size."""
    read = any(value in node.extras for node in graph.nodes if node)
    return graph.consumers[value] == [reader] and value != graph.output and not read
