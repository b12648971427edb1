"""The four sweeps over a graph. The engine knows nothing of particular operations, a rule nothing of the network.

For a loss ``L(y, g)`` with ``g = J^T c``, the gradient is the reverse sweep of the dual program ``(x, xdot) -> (y, J
xdot)`` at ``xdot = dL/dg``; the adjoints of its tangents are the cotangents that computing g already produced. So:

1. `linearize`: up, values;
2. `Linearization.pull`: down, cotangents;
3. `Linearization.push`: up, tangents; where a tangent meets the kept cotangent, the node leaves its second-order terms;
4. `Linearization.adjoint`: down, an ordinary backward sweep with those terms added on the way.

Pull and push may also trade places (push first, then pull and meet): the terms are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from gradreg_fast.graph import Graph, Node
from gradreg_fast.rules.base import BatchProduct, NodeGradients, add_values

NO_GRADIENTS = NodeGradients([], (), (), {})
"""Of a node without parameters."""


class Terms:
    """What a backward pass accumulates: parameter gradients and second-order terms of the values' adjoints.

    Attributes:
        wanted: which slots' gradients somebody asked for.
        needs: what follows from that for values and nodes.
        second: for each node, the sums of what `Rule.curvature` returned, or None.
    """

    def __init__(self, graph: Graph, wanted: tuple[bool, ...], x_wanted: bool) -> None:
        self.wanted = wanted
        self.needs = graph.needs(wanted, x_wanted)
        self.second: list[tuple[Tensor | None, ...] | None] = [None] * len(graph.nodes)
        self._totals: list[Tensor | None] = [None] * len(wanted)
        self._later: dict[int, BatchProduct] = {}

    @property
    def totals(self) -> list[Tensor | None]:
        """Gradient of each slot, or None."""
        while self._later:
            slot, product = self._later.popitem()
            NodeGradients(self._totals, (slot,), self.wanted, {}).add(0, product.evaluate)
        return self._totals

    def of(self, node: Node) -> NodeGradients:
        """The node's view of the parameter gradients."""
        return NodeGradients(self._totals, node.slots, self.wanted, self._later) if node.slots else NO_GRADIENTS

    def add_second(self, i: int, terms: tuple[Tensor | None, ...]) -> None:
        """Add fresh second-order terms of node i."""
        if self.second[i] is not None:
            pairs = zip(self.second[i], terms, strict=True)
            terms = tuple(b if a is None else a if b is None else a.add_(b) for a, b in pairs)
        if any(term is not None for term in terms):
            self.second[i] = terms


class Arrivals:
    """What has come down to each value: sums of cotangents, or of adjoints.

    Attributes:
        sums: by value.
        fresh: the values whose sum is a tensor that nobody else has.
        pieces: the values to whose sum `Rule.pull_into` may add.
    """

    def __init__(self, given: dict[int, Tensor]) -> None:
        self.sums = dict(given)
        self.fresh: set[int] = set()
        self.pieces: set[int] = set()

    def add(self, value: int, term: Tensor, fresh: bool, piece: bool) -> None:
        """Add a term, which may be fresh, or a piece, itself."""
        before = self.sums.get(value)
        self.sums[value] = term if before is None else before + term
        if before is not None:
            self.pieces.discard(value)
        if fresh or before is not None:
            self.fresh.add(value)
        if piece:
            self.pieces.add(value)


def linearize(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Linearization]:
    """Sweep 1: evaluate the graph at x.

    Returns:
        The output's value and the linearization at x.
    """
    values: list = [None] * len(graph.nodes)
    saved: list = [None] * len(graph.nodes)
    shapes: list = [None] * len(graph.nodes)
    values[0], shapes[0] = x, x.shape
    tensors = list(tensors)
    for i, node in enumerate(graph.nodes):
        if node is None:
            continue
        inputs = [values[j] for j in node.inputs]
        extras = [values[j] for j in node.extras]
        if node.updated:
            extras += select(node.updated, tensors)
        values[i], saved[i] = node.rule.forward(inputs, select(node.slots, tensors), extras)
        shapes[i] = getattr(values[i], "shape", None)
        if i in graph.computed:
            tensors[graph.computed[i]] = values[i]
        for j in graph.released[i]:
            values[j] = None
    like = values[graph.seed].new_empty(0)
    tensors = [tensor if slot in graph.read_again else None for slot, tensor in enumerate(tensors)]
    return values[graph.output], Linearization(graph, tensors, saved, shapes, like, x if graph.homogeneous else None)


@dataclass
class Linearization:
    """A graph evaluated at a point: what the three other sweeps need.

    Attributes:
        graph: the network.
        tensors: the slots' tensors.
        saved: what each node's rule kept.
        shapes: each value's shape.
        like: an empty tensor with the seed's dtype and device.
        x: the input, if the graph is homogeneous.
    """

    graph: Graph
    tensors: list[Tensor | None]
    saved: list
    shapes: list
    like: Tensor
    x: Tensor | None = None

    @cached_property
    def parameters(self) -> list[tuple[Tensor | None, ...]]:
        """Each node's parameters."""
        return [() if node is None else select(node.slots, self.tensors) for node in self.graph.nodes]

    def flops(self, i: int) -> int:
        """Operations of node i's products in one forward."""
        node = self.graph.nodes[i]
        return node.rule.flops(self.parameters[i], self.shapes[i], [self.shapes[j] for j in node.inputs])

    def pull(
        self,
        seeds: dict[int, Tensor],
        bottom: int = 0,
        *,
        keep: Sequence[bool] | None = None,
        tangents: dict[int, tuple[Tensor, ...]] | None = None,
        terms: Terms | None = None,
    ) -> tuple[Tensor | None, dict]:
        """Sweep 2: cotangent stacks from the seeds down to the value `bottom`.

        Args:
            seeds: cotangent stacks ``[K, B, ...]`` by value.
            bottom: where to stop.
            keep: for each node, whether a later `push` is to meet its cotangent; None: keep nothing.
            tangents: kept by an earlier `push`; their second-order terms are added to `terms`.
            terms: see `tangents`.

        Returns:
            The cotangent of `bottom` and what was kept, by node.
        """
        cotangents, kept = Arrivals(seeds), {}
        for i in range(max(seeds), bottom, -1):
            node, u = self.graph.nodes[i], cotangents.sums.pop(i, None)
            if u is None or not self.graph.dependent[i]:
                continue
            rule, parameters = node.rule, self.parameters[i]
            keeps, meets = keep is not None and keep[i], tangents is not None and i in tangents
            if i in cotangents.fresh and not keeps and not meets:
                rule = rule.overwriting
            added = rule.makes_pieces and node.inputs[0] in cotangents.pieces
            if added and rule.pull_into(self.saved[i], u, cotangents.sums[node.inputs[0]]):
                continue
            pulled, meeting = rule.pull_keeping(self.saved[i], parameters, u)
            if keeps:
                kept[i] = meeting
            if meets and terms.needs.meeting[i]:
                terms.add_second(i, rule.curvature(self.saved[i], parameters, meeting, tangents[i], terms.of(node)))
            own = rule.fresh and not (keeps and rule.meets_below)
            for j, cotangent in zip(node.inputs, pulled, strict=True):
                cotangents.add(j, cotangent, own, rule.makes_pieces)
        return cotangents.sums.get(bottom), kept

    def push(
        self,
        seeds: dict[int, Tensor],
        top: int | None = None,
        *,
        keep: Sequence[bool] | None = None,
        cotangents: dict | None = None,
        terms: Terms | None = None,
        scale: Tensor | None = None,
        final: bool = False,
    ) -> tuple[Tensor | None, dict]:
        """Sweep 3: tangent stacks from the seeds up to the value `top`.

        Args:
            seeds: tangent stacks ``[K, B, ...]`` by value.
            top: where to stop; None: behind the last meeting.
            keep: for each node, whether a later `pull` is to meet its tangent; None: keep nothing.
            cotangents: kept by an earlier `pull`, consumed; their second-order terms are added to `terms`.
            terms: see `cotangents`.
            scale: ``[B]``: ``d = scale u`` everywhere, so that the meeting gives all of the parameters' gradients, of
                ``<u, J (xdot + scale x)>``. From a homogeneous graph's input on, this sum is pushed instead of xdot.
            final: no sweep over these nodes follows: what they saved is freed on the way.

        Returns:
            The tangent of `top` and what was kept, by node.
        """
        tangents, kept, fresh = dict(seeds), {}, set()
        sources, released = self.graph.sources, self.graph.released
        members = len(next(iter(seeds.values())))
        affine = scale is not None and self.x is not None and 0 in seeds
        if affine:
            tangents[0] = add_values(seeds[0], scale, self.x)
        last_meeting = max((i for i in cotangents or () if terms.needs.meeting[i]), default=0)
        for i in range(min(seeds) + 1, (last_meeting if top is None else top) + 1):
            node = self.graph.nodes[i]
            if i in seeds or not sources[i] or not tangents.keys() >= sources[i]:
                continue
            rule, parameters = node.rule, self.parameters[i]
            xdots = tuple([tangents[j] if j in tangents else self.zeros(j, members) for j in node.inputs])
            if keep is not None and keep[i]:
                kept[i] = xdots
                fresh.difference_update(node.inputs)
            further = top is not None or i < last_meeting
            meeting = cotangents is not None and i in cotangents and terms.needs.meeting[i]
            given = self.saved[i], parameters
            if not meeting and fresh.issuperset(node.inputs) and set(node.inputs).issubset(released[i]):
                rule = rule.overwriting
            if affine:
                if meeting:
                    rule.affine_gradient(*given, cotangents.pop(i), xdots, scale, terms.of(node))
                tangent = rule.push_affine(*given, xdots, scale) if further else None
            elif not meeting:
                tangent = rule.push(*given, xdots) if further else None
            elif scale is None:
                fresh.difference_update(node.inputs)  # products may wait for them
                second, tangent = rule.meet(*given, cotangents.pop(i), xdots, terms.of(node), further)
                terms.add_second(i, second)
            else:
                tangent = rule.meet_proportional(*given, cotangents.pop(i), xdots, scale, terms.of(node), further)
            if further:
                tangents[i] = tangent
                if rule.fresh:
                    fresh.add(i)
            if final:
                self.saved[i] = None
            for j in released[i]:
                tangents.pop(j, None)
        return tangents.get(top), kept

    def adjoint(self, adjoints: dict[int, Tensor], terms: Terms) -> Tensor | None:
        """Sweep 4: ordinary adjoints from the given ones and the second-order terms down to what somebody asked for.

        Args:
            adjoints: ``[B, ...]`` by value.
            terms: second-order terms, consumed; parameter gradients are added.

        Returns:
            The input's adjoint, or None where it is zero or nobody asked.
        """
        needed, needed_below = terms.needs.adjoint, terms.needs.below
        arrived = Arrivals(adjoints)
        for i in range(len(self.graph.nodes) - 1, 0, -1):
            node, d, second = self.graph.nodes[i], arrived.sums.pop(i, None), terms.second[i]
            terms.second[i] = None
            if not needed[i] or (d is None and second is None):
                continue
            further = needed_below[i]
            if further and node.rule.makes_pieces and node.inputs[0] in arrived.pieces:
                total = arrived.sums[node.inputs[0]].unsqueeze(0)
                if node.rule.pull_into(self.saved[i], d.unsqueeze(0), total):
                    continue
            rule = node.rule.overwriting if i in arrived.fresh else node.rule
            below = rule.descend(self.saved[i], self.parameters[i], d, second, terms.of(node), further)
            self.saved[i] = None
            for j, adjoint in zip(node.inputs, below, strict=True) if further else ():
                if adjoint is not None and needed[j]:
                    arrived.add(j, adjoint, rule.fresh, rule.makes_pieces)
        return arrived.sums.get(0)

    def zeros(self, value: int, members: int) -> Tensor:
        """A stack of tangents of a value that does not depend on the input."""
        return self.like.new_zeros(()).expand(members, *self.shapes[value])


def select(slots: Sequence[int | None], tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The tensors in these slots; None in an absent one."""
    return tuple([None if slot is None else tensors[slot] for slot in slots]) if slots else ()
