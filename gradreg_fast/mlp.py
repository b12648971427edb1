"""Networks that are wholly fully connected, for the compiled operations that carry a tile of rows through two sweeps.

A rule's five functions are too fine for such kernels; so here an operation takes the place of the engine's sweeps 1 and
2, and another that of 3 and 4. The graph that the network was found in is their reference in PyTorch lines: the same
question, the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradreg_fast.backend import available, current
from gradreg_fast.graph import Graph
from gradreg_fast.rules import activation
from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.linear import Linear

KINDS: dict[type[Rule], tuple[int, Callable[[Rule], tuple[float, float]]]] = {
    activation.ReLU: (1, lambda rule: (0.0, 0.0)),
    activation.LeakyReLU: (2, lambda rule: (rule.negative_slope, 0.0)),
    activation.Softplus: (3, lambda rule: (rule.beta, rule.threshold)),
    activation.Tanh: (4, lambda rule: (0.0, 0.0)),
    activation.Sigmoid: (5, lambda rule: (0.0, 0.0)),
    activation.SiLU: (6, lambda rule: (0.0, 0.0)),
    activation.GELU: (8, lambda rule: (0.0, 0.0)),
    activation.Sine: (9, lambda rule: (rule.frequency, 0.0)),
}
"""An activation's number in csrc/common/activation.h and its settings; 0 is the identity, 7 the GELU that is exact."""

STRAIGHT = (0, 1, 2)  # kinds without curvature

MAX_DEPTH = 64  # as in csrc/cpu/mlp.h

# The widest layer that the kernels take by themselves, by dtype. In float32, one thread, they were ahead of the PyTorch
# lines at 64 and 128, and at 256 level or ahead with half the memory; in float64, whose activations are computed one by
# one, the bound is a guess.
CROSSOVER = {torch.float32: 256, torch.float64: 64}


@dataclass(frozen=True)
class Mlp:
    """A network of fully connected layers, each with an activation or none.

    Attributes:
        weights: slots of the layers' weights.
        biases: slots of their biases; None for none.
        kinds: numbers of their activations.
        settings: two numbers a layer.
        curvature_free: piecewise linear.
    """

    weights: tuple[int, ...]
    biases: tuple[int | None, ...]
    kinds: tuple[int, ...]
    settings: tuple[float, ...]
    curvature_free: bool

    def forward_pull(
        self, x: Tensor, cotangent: Tensor | None, tensors: Sequence[Tensor | None], stack: int, *, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sweeps 1 and 2.

        Args:
            x: ``[B, d]``.
            cotangent: ``[K, B, n]``; None for ones.
            tensors: the graph's.
            stack: K.
            keep: whether `push_adjoint` follows.

        Returns:
            y ``[B, n]``, g ``[K, B, d]`` and what `push_adjoint` needs.
        """
        weights = [tensors[slot] for slot in self.weights]
        biases = [None if slot is None else tensors[slot] for slot in self.biases]
        unit_seed = self.unit_seed(weights, stack)
        return torch.ops.gradreg_fast.mlp_forward_pull(
            x, cotangent, weights, biases, self.kinds, self.settings, stack, unit_seed, keep
        )

    def push_adjoint(
        self,
        x: Tensor,
        cotangent: Tensor | None,
        kept: Tensor,
        weights: Sequence[Tensor],
        stack: int,
        adjoints: tuple[Tensor | None, Tensor | None],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Sweeps 3 and 4.

        Args:
            x: as given to `forward_pull`.
            cotangent: as given to it.
            kept: as returned by it.
            weights: of each layer.
            stack: as given to it.
            adjoints: of y and g; None where nothing depends on them.
            wanted: whether to compute the gradients of x, of the cotangent and of the tensor in each slot.

        Returns:
            These gradients; None where not wanted, or zero.
        """
        slots = [slot for pair in zip(self.weights, self.biases, strict=True) for slot in pair]
        # where nothing depends on y, only the curvature of an activation above reaches a bias or x
        bent = [layer for layer, kind in enumerate(self.kinds) if kind not in STRAIGHT]
        highest = len(self.kinds) if adjoints[0] is not None else max(bent, default=-1)
        reached = [True, True] * (highest + 1) + [True, False] * (len(self.kinds) - highest - 1)
        flags = [wanted[0] and highest >= 0, wanted[1] and adjoints[1] is not None]
        flags += [slot is not None and wanted[2 + slot] and there for slot, there in zip(slots, reached, strict=False)]
        results = torch.ops.gradreg_fast.mlp_push_adjoint(
            x,
            cotangent,
            kept,
            weights,
            self.kinds,
            self.settings,
            stack,
            self.unit_seed(weights, stack),
            *adjoints,
            flags,
        )
        results = iter(results)
        gradients: list[Tensor | None] = [None] * len(wanted)
        for place, flag in zip((0, 1, *(2 + (slot or 0) for slot in slots)), flags, strict=True):
            if flag:
                gradients[place] = next(results)
        return gradients

    def outputs(self, tensors: Sequence[Tensor | None]) -> int:
        """How many outputs a sample has."""
        return len(tensors[self.weights[-1]])

    def takes(self, cotangent: object, x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
        """Whether this is a stack of cotangents as `forward_pull` wants it; if not, PyTorch lines say what is wrong."""
        return (
            isinstance(cotangent, Tensor)
            and cotangent.shape[1:] == (len(x), self.outputs(tensors))
            and cotangent.dtype == x.dtype
            and cotangent.device == x.device
        )

    def unit_seed(self, weights: Sequence[Tensor], stack: int) -> bool:
        """Whether adjoints are cotangents, scaled: one output, piecewise linear; kept are those of a unit seed."""
        return self.curvature_free and stack == 1 and len(weights[-1]) == 1


def kernel_for(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> Mlp | None:
    """The network as kernels take it, if one serves this graph at this input and the backend's choice allows it."""
    mlp = mlp_of(graph)
    if mlp is None or x.device.type != "cpu" or x.dim() != 2 or x.dtype not in CROSSOVER:
        return None
    matrices = [tensors[slot] for slot in mlp.weights]
    if any(weight.dtype != x.dtype for weight in matrices) or x.shape[1] != matrices[0].shape[1]:
        return None  # the PyTorch lines say what is wrong
    if any(type(tensor) is not torch.nn.Parameter and type(tensor) is not Tensor for tensor in (x, *matrices)):
        return None
    choice = current()
    if choice == "torch" or (choice == "auto" and widest(matrices) > CROSSOVER[x.dtype]):
        return None
    return mlp if available() else None


def widest(matrices: Sequence[Tensor]) -> int:
    """The largest width of any layer, input included."""
    return max(max(weight.shape) for weight in matrices)


def mlp_of(graph: Graph) -> Mlp | None:
    """The network if it is wholly fully connected; found once a graph."""
    if "mlp" not in graph.plans:
        graph.plans["mlp"] = _find_mlp(graph)
    return graph.plans["mlp"]


def _find_mlp(graph: Graph) -> Mlp | None:
    weights, biases, kinds, settings = [], [], [], []
    activated = True
    for i, node in enumerate(graph.nodes):
        if node is None:
            continue
        if node.inputs != (i - 1,) or node.extras or node.updated:
            return None
        if type(node.rule) is Linear:
            weights.append(node.slots[0])
            biases.append(node.slots[1])
            kinds.append(0)
            settings += [0.0, 0.0]
            activated = False
        elif type(node.rule) in KINDS and not activated:
            kind, settings_of = KINDS[type(node.rule)]
            exact = type(node.rule) is activation.GELU and node.rule.approximate == "none"
            kinds[-1] = kind - exact
            settings[-2:] = map(float, settings_of(node.rule))
            activated = True
        else:
            return None
    slots = [slot for slot in (*weights, *biases) if slot is not None]
    once = len(set(slots)) == len(slots)
    ends = graph.seed == graph.output == len(graph.nodes) - 1
    if not (ends and once and 0 < len(weights) <= MAX_DEPTH):
        return None
    return Mlp(tuple(weights), tuple(biases), tuple(kinds), tuple(settings), graph.curvature_free)
