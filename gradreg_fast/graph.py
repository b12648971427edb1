"""A network as data: values numbered in order of computation, each made by a rule from earlier ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.merge import Dropout
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.undo import remember


@dataclass(frozen=True)
class Node:
    """How one value is made.

    Attributes:
        name: as in the traced network, for reports and errors.
        rule: the operation.
        inputs: numbers of the values that it is differentiated with respect to; none where x has no influence.
        slots: its parameters' and buffers' places in `Graph.slots`; None for an absent one (no bias).
        extras: numbers of the plain values (sizes, masks) that it is called with, and of those whose size it reads.
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

    def __str__(self) -> str:
        return self.attribute

    def tensor(self, before: Sequence = (), given: Sequence[Tensor] = ()) -> Tensor | None:
        """The tensor there now."""
        owner = self.owner()
        found = owner._parameters.get(self.attribute)
        return getattr(owner, self.attribute) if found is None else found


@dataclass(frozen=True)
class Reweighted(Slot):
    """A weight that PyTorch's own hooks make before each forward (the older weight and spectral norm)."""

    def tensor(self, before: Sequence = (), given: Sequence[Tensor] = ()) -> Tensor:
        """The weight, made anew."""
        owner = self.owner()
        for hook in owner._forward_pre_hooks.values():
            if hook.name == self.attribute:
                hook(owner, None)
        return getattr(owner, self.attribute)


@dataclass(frozen=True)
class Given:
    """An argument of the model that is not differentiated.

    Attributes:
        index: its number among them.
    """

    index: int

    def __str__(self) -> str:
        return "a further argument"

    def tensor(self, before: Sequence, given: Sequence[Tensor]) -> Tensor:
        """The argument."""
        return given[self.index]


@dataclass(frozen=True)
class Upstream:
    """What does not depend on the input: made by plain autograd before each sweep 1, from slots before this one.

    Attributes:
        function: called with their values.
        sources: their numbers.
    """

    function: Callable
    sources: tuple[int, ...]

    def __str__(self) -> str:
        return "a further argument, or what is made of it"

    def tensor(self, before: Sequence, given: Sequence[Tensor]) -> object:
        """The value: a tensor wherever a node reads it."""
        return self.function(*(before[source] for source in self.sources))


@dataclass(frozen=True)
class Computed:
    """A constant that sweep 1 computes from values (a mask, an index): no gradient flows through it.

    Attributes:
        index: the number of the plain value.
    """

    index: int

    def __str__(self) -> str:
        return "a constant"

    def tensor(self, before: Sequence, given: Sequence[Tensor]) -> None:
        """None: it is not known yet."""


@dataclass(frozen=True)
class Graph:
    """Values 0 (the network's input), 1, ... in order of computation.

    Attributes:
        nodes: node i makes value i; node 0 is None. Nodes without inputs make plain values, or what depends on
            parameters alone.
        slots: the parameters and buffers of all nodes, each once, the further arguments, and what is made of these.
        output: the value that the network returns.
        seed: the value whose cotangent is given: the output, or a head on top of it (loss, softmax).
        changing: the modules whose buffers a forward may change, beside the slots that nodes say they update.
        structure: what the model returns, with a `Value` in the place of the output; None for the output itself.
        low: the dtype of the autocast region that its nodes cast for; None if they do not.
        plans: the planner's memory.
    """

    nodes: tuple[Node | None, ...]
    slots: tuple[Slot | Given | Upstream | Computed, ...]
    output: int
    seed: int
    changing: tuple[weakref.ref[nn.Module], ...] = ()
    structure: object = None
    low: torch.dtype | None = None
    plans: dict = field(default_factory=dict, compare=False, repr=False)
    _with_head: dict = field(default_factory=dict, compare=False, repr=False)
    _needs: dict = field(default_factory=dict, compare=False, repr=False)

    def tensors(self, x: Tensor, given: Sequence[Tensor] = ()) -> list[Tensor | None]:
        """The slots' tensors for a call, in the order of the slots; None in those that no node reads.

        What the call may change is remembered, should it fail.
        """
        if self.updated or self.changing or self.draws:
            updated = [self.slots[slot].tensor() for slot in self.updated]
            buffers = [buffer for module in self.changing for buffer in module().buffers()]
            remember([*updated, *buffers], x.device if self.draws else None)
        if self.only_attributes:
            return [slot.tensor() for slot in self.slots]
        values: list = []
        for slot in self.slots:
            values.append(slot.tensor(values, given))
        return [value if i in self.read_again or i in self.updated else None for i, value in enumerate(values)]

    @cached_property
    def only_attributes(self) -> bool:
        """Whether all slots are parameters and buffers."""
        return all(type(slot) is Slot for slot in self.slots)

    @cached_property
    def dependent(self) -> list[bool]:
        """For each value, whether it depends on the network's input."""
        dependent = [True]
        for node in self.nodes[1:]:
            dependent.append(any(dependent[j] for j in node.inputs))
        return dependent

    @cached_property
    def sources(self) -> list[frozenset[int]]:
        """For each node, those of its inputs that depend on the network's input."""
        return [frozenset(j for j in node.inputs if self.dependent[j]) if node else frozenset() for node in self.nodes]

    @cached_property
    def computed(self) -> dict[int, int]:
        """The slots that sweep 1 fills, by value."""
        return {slot.index: number for number, slot in enumerate(self.slots) if isinstance(slot, Computed)}

    @cached_property
    def whole(self) -> WholeModel | None:
        """The model itself, if autograd runs it as a whole and there is nothing on top of it."""
        rule = self.nodes[-1].rule if len(self.nodes) == 2 else None
        return rule if isinstance(rule, WholeModel) else None

    @cached_property
    def has_rules(self) -> bool:
        """Whether any node is more than autograd's."""
        return any(not isinstance(node.rule, Opaque) for node in self.nodes if node and node.inputs)

    def rewritten(self, nodes: Sequence[Node | None]) -> Graph:
        """The same network with other nodes."""
        return replace(self, nodes=tuple(nodes), plans={}, _with_head={}, _needs={})

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
    def draws(self) -> bool:
        """Whether the forward may draw random numbers."""
        upstream = any(isinstance(slot, Upstream) for slot in self.slots)
        return upstream or any(isinstance(node.rule, (Opaque, Dropout)) for node in self.nodes if node)

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
    def homogeneous(self) -> bool:
        """Whether all nodes are, up to the seed: tangents may carry multiples of the values along."""
        return self.curvature_free and all(
            node.rule.homogeneous and all(self.dependent[j] for j in node.inputs)
            for node, dependent in zip(self.nodes, self.dependent, strict=True)
            if node and dependent
        )

    @cached_property
    def couples_samples(self) -> bool:
        """Whether some sample's output may depend on another sample."""
        return any(node.rule.couples_samples for node in self.nodes if node and node.inputs)

    def needs(self, wanted: tuple[bool, ...], x_wanted: bool) -> Needs:
        """What a backward pass has to do for these gradients; the same object for the same question."""
        key = (wanted, x_wanted)
        if key not in self._needs:
            adjoint, below, meeting = ([False] * len(self.nodes) for _ in range(3))
            adjoint[0] = x_wanted
            for i, node in enumerate(self.nodes):
                if node:
                    own = any(slot is not None and wanted[slot] for slot in node.slots)
                    below[i] = any(adjoint[j] for j in node.inputs)
                    adjoint[i] = own or below[i]
                    meeting[i] = own or (below[i] and not node.rule.curvature_free)
            self._needs[key] = Needs(adjoint, below, meeting)
        return self._needs[key]


@dataclass(frozen=True)
class Needs:
    """What a set of wanted gradients needs.

    Attributes:
        adjoint: for each value, whether its adjoint leads to a wanted gradient.
        below: for each node, whether the adjoint of any of its inputs does.
        meeting: for each node, whether its tangent and cotangent have something to leave behind.
    """

    adjoint: list[bool]
    below: list[bool]
    meeting: list[bool]


class PlainValue(Rule):
    """A node that computes a plain value, such as a size or a mask, from values, parameters and other plain values."""

    def __init__(self, function) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        """The value; nothing is saved."""
        return self.function(*extras, *parameters), ()


class WholeModel(Opaque):
    """A model that autograd runs as a whole.

    Args:
        function: as an `Opaque` has it, with leaves for parameters.
        direct: called as ``direct(x, tensors)`` with the graph's tensors, the model's own parameters first.
        reason: why.

    Attributes:
        for_all_sizes: the model may have a graph for inputs of one size.
    """

    for_all_sizes = False

    def __init__(self, function: Callable, direct: Callable, reason: str) -> None:
        super().__init__(function, reason)
        self.direct = direct


def whole_model(model: nn.Module, rule: WholeModel, names: list[str], given: int) -> Graph:
    """The graph of one node that is the model itself, called with so many further arguments."""
    slots = (*(slot_of(model, name) for name in names), *map(Given, range(given)))
    nodes = (None, Node("model", rule, (0,), tuple(range(len(slots)))))
    return Graph(nodes, slots, output=1, seed=1, changing=(weakref.ref(model),))


def slot_of(module: nn.Module, name: str) -> Slot:
    """The slot of a parameter or buffer by its dotted name."""
    path, _, attribute = name.rpartition(".")
    return Slot(weakref.ref(module.get_submodule(path)), attribute)
