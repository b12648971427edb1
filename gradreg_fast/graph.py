"""A network as data: values numbered in order of computation, each made by a rule from earlier ones."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.opaque import Opaque


@dataclass(frozen=True)
class Node:
    """How one value is made.

    Attributes:
        name: as in the traced network, for reports and errors.
        rule: the operation.
        inputs: numbers of the values that it is differentiated with respect to.
        slots: its parameters' and buffers' places in `Graph.slots`; None for an absent one (no bias).
        extras: numbers of the plain Python values (sizes) that it is called with.
        updated: slots of buffers that its forward changes, and no other sweep reads (running statistics).
    """

    name: str
    rule: Rule
    inputs: tuple[int, ...]
    slots: tuple[int | None, ...] = ()
    extras: tuple[int, ...] = ()
    updated: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer, found by attribute at every call, so that replaced tensors are never stale."""

    owner: weakref.ref[nn.Module]
    attribute: str

    def tensor(self) -> Tensor | None:
        """The tensor there now."""
        owner = self.owner()
        found = owner._parameters.get(self.attribute)
        return getattr(owner, self.attribute) if found is None else found


@dataclass(frozen=True)
class Graph:
    """Values 0 (the network's input), 1, ... in order of computation.

    Attributes:
        nodes: node i makes value i; node 0 is None. Nodes without inputs make plain Python values.
        slots: the parameters and buffers of all nodes, each once.
        output: the value that the network returns.
        seed: the value whose cotangent is given: the output, or a head on top of it (loss, softmax).
        plans: the planner's memory.
    """

    nodes: tuple[Node | None, ...]
    slots: tuple[Slot, ...]
    output: int
    seed: int
    plans: dict = field(default_factory=dict, compare=False, repr=False)
    _with_head: dict = field(default_factory=dict, compare=False, repr=False)
    _needs: dict = field(default_factory=dict, compare=False, repr=False)

    def tensors(self) -> list[Tensor | None]:
        """The slots' tensors."""
        return [slot.tensor() for slot in self.slots]

    def with_head(self, rule: Rule, tensors: int = 0) -> Graph:
        """This graph with one more node on its output, which becomes the seed; the same object for the same rule.

        A function of the user's, opaque, may be a new one every step and is not remembered.
        """
        if rule in self._with_head:
            return self._with_head[rule]
        slots = tuple(range(len(self.slots), len(self.slots) + tensors))
        node = Node(type(rule).__name__, rule, (self.output,), slots)
        graph = replace(self, nodes=(*self.nodes, node), seed=len(self.nodes), plans={}, _with_head={}, _needs={})
        if not isinstance(rule, Opaque):
            self._with_head[rule] = graph
        return graph

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For each value, the nodes that are differentiated with respect to it, once per use."""
        consumers = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs if node else ():
                consumers[j].append(i)
        return consumers

    @cached_property
    def read_again(self) -> frozenset[int]:
        """The slots whose tensors the sweeps behind the forward read."""
        return frozenset(slot for node in self.nodes if node for slot in node.slots if slot is not None)

    @cached_property
    def updated(self) -> frozenset[int]:
        """The slots whose tensors the forward changes."""
        return frozenset(slot for node in self.nodes if node for slot in node.updated if slot is not None)

    @cached_property
    def released(self) -> list[list[int]]:
        """For each node, the values that nobody reads after it (the output and the seed stay)."""
        last = {}
        for i, node in enumerate(self.nodes):
            for j in (*node.inputs, *node.extras) if node else ():
                last[j] = i
        released = [[] for _ in self.nodes]
        for value, i in last.items():
            if value not in (self.output, self.seed):
                released[i].append(value)
        return released

    @cached_property
    def cuts(self) -> list[int]:
        """Values that every path from the input to the seed passes, in order: input first, seed last."""
        cuts, reach = [], 0
        for i, node in enumerate(self.nodes):
            if node is None or node.inputs:
                if reach <= i:
                    cuts.append(i)
                reach = max([reach, *self.consumers[i]])
        return [i for i in cuts if i <= self.seed]

    @cached_property
    def curvature_free(self) -> bool:
        """Piecewise linear from the input to the seed."""
        return all(node.rule.curvature_free for node in self.nodes if node and node.inputs)

    @cached_property
    def couples_samples(self) -> bool:
        """Whether some sample's output may depend on another sample."""
        return any(node.rule.couples_samples for node in self.nodes if node and node.inputs)

    def needs(self, wanted: tuple[bool, ...], x_wanted: bool) -> Needs:
        """What a backward pass has to do for these gradients; the same object for the same question."""
        key = (wanted, x_wanted)
        if key not in self._needs:
            adjoint, meeting = [False] * len(self.nodes), [False] * len(self.nodes)
            adjoint[0] = x_wanted
            for i, node in enumerate(self.nodes):
                if node and node.inputs:
                    own = any(slot is not None and wanted[slot] for slot in node.slots)
                    below = any(adjoint[j] for j in node.inputs)
                    adjoint[i] = own or below
                    meeting[i] = own or (below and not node.rule.curvature_free)
            self._needs[key] = Needs(adjoint, meeting)
        return self._needs[key]


@dataclass(frozen=True)
class Needs:
    """What a set of wanted gradients needs.

    Attributes:
        adjoint: for each value, whether its adjoint leads to a wanted gradient.
        meeting: for each node, whether its tangent and cotangent have something to leave behind.
    """

    adjoint: list[bool]
    meeting: list[bool]


class PlainValue(Rule):
    """A node that computes a plain Python value, such as a size, from values and other plain values."""

    def __init__(self, function) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        """The value; nothing is saved."""
        return self.function(*extras), ()


def whole_model(model: nn.Module, rule: Rule, names: list[str]) -> Graph:
    """The graph of one node that is the model itself."""
    slots = tuple(slot_of(model, name) for name in names)
    nodes = (None, Node("model", rule, (0,), tuple(range(len(slots)))))
    return Graph(nodes, slots, output=1, seed=1)


def slot_of(module: nn.Module, name: str) -> Slot:
    """The slot of a parameter or buffer by its dotted name."""
    path, _, attribute = name.rpartition(".")
    return Slot(weakref.ref(module.get_submodule(path)), attribute)
