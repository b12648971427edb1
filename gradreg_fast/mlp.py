"""Networks that are wholly fully connected, for the compiled operations that carry a tile of rows through two sweeps.

A rule's five functions are too fine for such kernels; so here an operation takes the place of the engine's sweeps 1 and
2, and another that of 3 and 4. The graph that the network was found in is their reference in PyTorch lines: the same
question, the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradreg_fast import measured, planner
from gradreg_fast.backend import KERNELS, available, current, insists
from gradreg_fast.context import closed_form, differentiable, requested
from gradreg_fast.graph import Graph
from gradreg_fast.rules import activation
from gradreg_fast.rules.base import Rule, has_numbers, is_plain, unit_stack
from gradreg_fast.rules.cast import uncast
from gradreg_fast.rules.linear import Linear
from gradreg_fast.rules.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from gradreg_fast.rules.shape import Reshape

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

LOSSES: dict[type[Rule], int] = {CrossEntropy: 1, MeanSquaredError: 2, BinaryCrossEntropy: 3}
"""A loss's number in csrc/cpu/mlp.h; 0 is none."""

STRAIGHT = (0, 1, 2)  # kinds without curvature

MAX_DEPTH = 64  # as in csrc/cpu/mlp.h

HALVES = (torch.bfloat16, torch.float16)  # computed in float32 from end to end on a CPU

# The widest layer for which the kernels' own products were ahead, by dtype, on one thread: 1.1 to 3 times. Beyond, they
# let PyTorch multiply (csrc/cpu/mlp.h), except in half precision, whose products on some processors are hard to beat.
CROSSOVER = {torch.float32: 512, torch.float64: 256, torch.float16: 512, torch.bfloat16: 128}

LIBRARY_ROWS = 128  # as in csrc/cpu/mlp.cpp: the rows of a tile, of which each thread should have one

GRAM_SAVINGS = {"cpp": 6e7, "cuda": 2e9}  # operations; fewer do not pay for leaving the kernels (cuda: by count)

# On CUDA devices, the widest network that kernels take by themselves where nothing was measured (measured.py): whole
# tiles of rows go through two sweeps up to WIDEST_TOGETHER, beyond that each layer's product has its sweep's epilogue.
# How far that pays follows from bytes and operations (csrc/cuda/layerwise.cuh): the library multiplies faster, and from
# some width that is worth more than its passes cost.
WIDEST_BY_COUNT = {torch.float32: 160, torch.float64: 64, torch.float16: 224, torch.bfloat16: 224}
MAX_DEPTH_ON_CUDA = 32

# Multiplications of a layer's largest product, up to which launches bind. By count, for an H100: PyTorch's lines need
# some 15 launches a layer more, at least 40 us; as much longer take six products of ours at half the library's rate
# (float32), or a third (16 bits, float64: without the latest tensor instructions).
LAUNCH_BOUND = {torch.float32: 2e8, torch.float64: 8e7, torch.float16: 1e9, torch.bfloat16: 1e9}


@dataclass(frozen=True)
class Mlp:
    """A network of fully connected layers, each with an activation or none.

    Attributes:
        before: reshapes of the input.
        weights: slots of the layers' weights.
        biases: slots of their biases; None for none.
        kinds: numbers of their activations.
        settings: two numbers a layer.
        after: reshapes of the output.
        loss: number of the loss on top; 0 for none.
        target: slot of the loss's target.
        curvature_free: piecewise linear, loss included.
        low: the output's dtype under autocast, where all else is float32; None outside.
    """

    before: tuple[Callable[[Tensor], Tensor], ...]
    weights: tuple[int, ...]
    biases: tuple[int | None, ...]
    kinds: tuple[int, ...]
    settings: tuple[float, ...]
    after: tuple[Callable[[Tensor], Tensor], ...]
    loss: int
    target: int | None
    curvature_free: bool
    low: torch.dtype | None

    @cached_property
    def places(self) -> tuple[int | None, ...]:
        """Of x, the cotangent and each layer's weight and bias among what gradients are wanted of; None for no bias."""
        slots = (slot for pair in zip(self.weights, self.biases, strict=True) for slot in pair)
        return 0, 1, *(None if slot is None else 2 + slot for slot in slots)

    @cached_property
    def highest_bend(self) -> int:
        """The last layer whose activation has curvature; -1 for none."""
        return max((layer for layer, kind in enumerate(self.kinds) if kind not in STRAIGHT), default=-1)

    def outputs(self, tensors: Sequence[Tensor | None]) -> int:
        """How many outputs a sample has, or the loss on top of them."""
        return 1 if self.loss else tensors[self.weights[-1]].shape[0]

    def prefers_gram(self, x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
        """Whether ``||g||^2`` is much cheaper from the first layer's Gram matrix, which the kernels do not form."""
        n, d = tensors[self.weights[0]].shape
        saved = planner.swept_flops(x.shape[0], n, d) - planner.gram_flops(x.shape[0], n, d)
        return self.low is None and saved > GRAM_SAVINGS[KERNELS[x.device.type]] and current() == "auto"

    def stacks_units(self, x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
        """Whether ``||J||_F^2`` is one stack through the kernels: on CUDA, with no narrower layer, no closed form."""
        matrices = [tensors[slot] for slot in self.weights]
        outputs, *hidden = [len(weight) for weight in reversed(matrices)]
        if not _on_cuda(x) or self.loss or len(hidden) < 2 or outputs > min(hidden):
            return False
        return insists(x.device) or worthwhile(x, matrices, self.low or x.dtype, outputs)

    def units(self, x: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """A unit cotangent for each output: ``[K, B, ...]``."""
        return unit_stack(self.output_shape(x, tensors), x)

    def output_shape(self, x: Tensor, tensors: Sequence[Tensor | None]) -> torch.Size:
        """Of what the network returns."""
        return _through(self.after, x.new_empty(x.shape[0], len(tensors[self.weights[-1]]), device="meta")).shape

    def rows(self, x: Tensor) -> Tensor:
        """The input as ``[B, d]``."""
        return _through(self.before, x)

    def returned(self, y: Tensor) -> Tensor:
        """The output ``[B, n]`` as the network returns it."""
        y = _through(self.after, y)
        return y if self.low is None else y.to(self.low)

    def value_and_vjp(
        self, x: Tensor, cotangent: Tensor | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """y and ``g^k = J^T c^k``, differentiable once more.

        Args:
            x: ``[B, ...]``.
            cotangent: ``[K, B, ...]``, shaped like the output; None for ones.
            tensors: the graph's.

        Returns:
            y ``[B, ...]`` and g ``[K, B, ...]``.
        """
        y, g = self._apply(x, cotangent, None, tensors, measured=False)
        return y, g if x.dim() == 2 else g.reshape(len(g), *x.shape)

    def value_and_sqnorm(
        self, x: Tensor, cotangent: Tensor | None, offset: Tensor | None, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """y and ``sum_k ||J^T c^k - offset^k||^2``, differentiable once more but for the cotangent and the offset.

        Args:
            x: ``[B, ...]``.
            cotangent: ``[K, B, ...]``, shaped like the output; None for ones.
            offset: ``[K, B, ...]``; None for zero.
            tensors: the graph's.

        Returns:
            y ``[B, ...]`` and the norms ``[B]``.
        """
        if offset is not None:
            offset = offset.reshape(len(offset), x.shape[0], math.prod(x.shape[1:]))
        return self._apply(x, cotangent, offset, tensors, measured=True)

    def _apply(self, x, cotangent, offset, tensors, measured):
        if x.dtype in HALVES and not _on_cuda(x):
            single = [None if t is None else t.float() for t in (x, cotangent, offset)]
            tensors = [t.float() if t is not None and t.is_floating_point() else t for t in tensors]
            y, result = self._apply(*single, tensors, measured)
            return y.to(x.dtype), result if measured else result.to(x.dtype)
        stack = 1 if cotangent is None else len(cotangent)
        if cotangent is not None:
            cotangent = cotangent.to(x.dtype).reshape(stack, x.shape[0], tensors[self.weights[-1]].shape[0])
        x = self.rows(x)
        if any(map(differentiable, (x, cotangent, *tensors))):
            y, result = _Sweeps.apply(self, measured, offset, x, cotangent, *tensors)
        else:
            y, g, norms, _ = self.forward_pull(x, cotangent, offset, tensors, stack, keep=False)
            result = norms if measured else g
        return self.returned(y), result

    def forward_pull(
        self,
        x: Tensor,
        cotangent: Tensor | None,
        offset: Tensor | None,
        tensors: Sequence[Tensor | None],
        stack: int,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sweeps 1 and 2.

        Args:
            x: ``[B, d]``.
            cotangent: ``[K, B, n]``; None for ones.
            offset: ``[K, B, d]``, subtracted from g; None for zero.
            tensors: the graph's.
            stack: K.
            keep: whether `push_adjoint` follows.

        Returns:
            y ``[B, n]``, g ``[K, B, d]``, its squared norms ``[B]`` and what `push_adjoint` needs.
        """
        weights = [tensors[slot] for slot in self.weights]
        biases = [None if slot is None else tensors[slot] for slot in self.biases]
        return torch.ops.gradreg_fast.mlp_forward_pull(
            x,
            cotangent,
            self.target_of(tensors),
            offset,
            weights,
            biases,
            self.kinds,
            self.settings_for(x),
            self.loss,
            stack,
            self.unit_seed(weights, stack),
            keep,
        )

    def push_adjoint(
        self,
        x: Tensor,
        cotangent: Tensor | None,
        target: Tensor | None,
        kept: Tensor,
        weights: Sequence[Tensor],
        stack: int,
        adjoints: tuple[Tensor | None, Tensor | None, Tensor | None],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Sweeps 3 and 4.

        Args:
            x: as given to `forward_pull`.
            cotangent: as given to it.
            target: `target_of` what was given to it.
            kept: as returned by it.
            weights: of each layer.
            stack: as given to it.
            adjoints: of y and g, and of the norms: with these the second is g itself; None where nothing depends on it.
            wanted: whether to compute the gradients of x, of the cotangent and of the tensor in each slot.

        Returns:
            These gradients; None where not wanted, or zero.
        """
        flags = [place is not None and wanted[place] for place in self.places]
        flags[1] = flags[1] and adjoints[1] is not None
        if adjoints[0] is None and not self.loss:  # only the curvature of an activation above reaches a bias or x
            flags[0] = flags[0] and self.highest_bend >= 0
            for layer in range(self.highest_bend + 1, len(self.kinds)):
                flags[3 + 2 * layer] = False
        results = iter(
            torch.ops.gradreg_fast.mlp_push_adjoint(
                x,
                cotangent,
                target,
                kept,
                weights,
                self.kinds,
                self.settings_for(x),
                self.loss,
                stack,
                self.unit_seed(weights, stack),
                *adjoints,
                flags,
            )
        )
        gradients: list[Tensor | None] = [None] * len(wanted)
        for place, flag in zip(self.places, flags, strict=True):
            if flag:
                gradients[place] = next(results)
        return gradients

    def settings_for(self, x: Tensor) -> tuple[float, ...]:
        """With PyTorch's own word on whether float32 products may be TF32's, where kernels have both."""
        if not _on_cuda(x) or x.dtype != torch.float32:
            return self.settings
        return (*self.settings, float(torch.backends.cuda.matmul.fp32_precision == "tf32"))

    def unit_seed(self, weights: Sequence[Tensor], stack: int) -> bool:
        """Whether adjoints are cotangents, scaled: one output, piecewise linear; kept are those of a unit seed."""
        return self.curvature_free and stack == 1 and weights[-1].shape[0] == 1

    def target_of(self, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """The loss's target as kernels take it: class indices ``[B]`` or values ``[B, n]``."""
        if not self.loss:
            return None
        target, last = tensors[self.target], tensors[self.weights[-1]]
        if not target.is_floating_point() and self.loss == LOSSES[CrossEntropy]:
            return target.long()
        return target.to(last.dtype).view(-1, len(last))

    def takes_target(self, x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
        """Whether the loss's target, if there is one, fits; if not, PyTorch lines say what is wrong."""
        if not self.loss:
            return True
        target, shape = tensors[self.target], self.output_shape(x, tensors)
        if shape[:1] != (x.shape[0],):
            return False
        if self.loss != LOSSES[CrossEntropy]:
            return target.shape == shape or target.numel() == shape.numel() == x.shape[0]
        if target.is_floating_point():
            return len(shape) == 2 and target.shape == shape
        indices = len(shape) == 2 and target.shape == shape[:1] and target.dtype != torch.bool
        if _on_cuda(x):  # no waiting for the device: a class that is not there gives NaN
            return indices
        return indices and (not has_numbers(target) or not target.numel() or target.max().item() < shape[1])

    def takes(self, cotangent: Tensor, x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
        """Whether this is a stack of cotangents that fits; if not, PyTorch lines say what is wrong."""
        return (
            not self.loss
            and cotangent.shape[1:] == self.output_shape(x, tensors)
            and cotangent.dtype == (self.low or x.dtype)
            and cotangent.device == x.device
        )


class _Sweeps(torch.autograd.Function):
    """y and g, or the squared norms of g if `measured`."""

    @staticmethod
    def forward(ctx, mlp, measured, offset, x, cotangent, *tensors):
        ctx.set_materialize_grads(False)
        ctx.mlp, ctx.measured, ctx.stack = mlp, measured, 1 if cotangent is None else len(cotangent)
        ctx.is_tensor = [False, False, *[tensor is not None for tensor in (offset, x, cotangent, *tensors)]]
        y, g, norms, kept = mlp.forward_pull(x, cotangent, offset, tensors, ctx.stack, keep=True)
        weights = [tensors[slot] for slot in mlp.weights]
        ctx.save_for_backward(x, cotangent, mlp.target_of(tensors), kept, g if measured else None, *weights)
        return y, norms if measured else g

    @staticmethod
    @closed_form
    def backward(ctx, ybar, bar):
        x, cotangent, target, kept, g, *weights = ctx.saved_tensors
        wanted = requested(ctx, 3)
        if ybar is None and bar is None:
            return (None,) * (3 + len(wanted))
        adjoints = (ybar, None if bar is None else g, bar) if ctx.measured else (ybar, bar, None)
        gradients = ctx.mlp.push_adjoint(x, cotangent, target, kept, weights, ctx.stack, adjoints, wanted)
        return None, None, None, *gradients


def _through(functions: Sequence[Callable[[Tensor], Tensor]], tensor: Tensor) -> Tensor:
    for function in functions:
        tensor = function(tensor)
    return tensor


def kernel_for(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> Mlp | None:
    """The network as kernels take it, if one serves this graph at this input and the backend's choice allows it."""
    mlp = mlp_of(graph)
    if mlp is None or x.device.type not in KERNELS or x.dtype not in CROSSOVER:
        return None
    if current() == "torch":
        return None
    matrices = [tensors[slot] for slot in mlp.weights]
    rows = mlp.rows(x)
    if rows.dim() != 2 or rows.shape[0] != x.shape[0] or rows.shape[1] != matrices[0].shape[1]:
        return None  # the PyTorch lines say what is wrong
    if mlp.low and (_on_cuda(x) or x.dtype != torch.float32):
        return None  # the kernels compute in float32, as for half precisions on a CPU
    if not all(tensor.dtype == x.dtype and is_plain(tensor) for tensor in (x, *matrices)):
        return None
    if _on_cuda(x) and len(matrices) > MAX_DEPTH_ON_CUDA:
        return None
    if not insists(x.device) and not worthwhile(x, matrices, mlp.low or x.dtype):
        return None
    return mlp if available(x.device) and mlp.takes_target(x, tensors) else None


def _on_cuda(x: Tensor) -> bool:
    """Whether its kernels are CUDA's."""
    return KERNELS.get(x.device.type) == "cuda"


def worthwhile(x: Tensor, matrices: Sequence[Tensor], dtype: torch.dtype, stack: int = 1) -> bool:
    """Whether the kernels are faster than the PyTorch lines, by the measured tables, with so many cotangents."""
    if _on_cuda(x):
        table = WIDEST_BY_COUNT | measured.WIDTHS.get(torch.cuda.get_device_capability(x.device), {})
        multiplications = x.shape[0] * stack * max(weight.numel() for weight in matrices)
        return widest(matrices) <= table[dtype] or multiplications <= LAUNCH_BOUND[dtype]
    if widest(matrices) <= CROSSOVER[dtype]:
        return True
    threads = torch.get_num_threads()  # kernels divide rows among them, PyTorch's products anything
    return dtype not in HALVES and (threads == 1 or x.shape[0] >= LIBRARY_ROWS * threads)


def widest(matrices: Sequence[Tensor]) -> int:
    """The largest width of any layer, input included."""
    return max([max(weight.shape) for weight in matrices])


def kind_of(rule: Rule) -> tuple[int, tuple[float, float]] | None:
    """An activation's number and settings for the kernels; None if they do not know it."""
    if type(rule) not in KINDS:
        return None
    number, settings_of = KINDS[type(rule)]
    exact = type(rule) is activation.GELU and rule.approximate == "none"
    return number - exact, tuple(map(float, settings_of(rule)))


def mlp_of(graph: Graph) -> Mlp | None:
    """The network if it is wholly fully connected; found once a graph."""
    if "mlp" not in graph.plans:
        graph.plans["mlp"] = _find_mlp(graph)
    return graph.plans["mlp"]


def _find_mlp(graph: Graph) -> Mlp | None:
    before, weights, biases, kinds, settings, after = [], [], [], [], [], []
    activated = True
    nodes = graph.nodes[1:]
    if any(node.inputs != (i,) or node.extras or node.updated for i, node in enumerate(nodes)):
        return None
    loss = 0
    if graph.seed != graph.output:
        loss = LOSSES.get(type(uncast(nodes[-1].rule)), -1)
        nodes, head = nodes[:-1], nodes[-1]
    for node in nodes:
        rule = uncast(node.rule)
        kind = type(rule)
        if kind is Reshape:
            (after if weights else before).append(rule.function)
            activated = True
        elif kind is Linear and not after:
            weights.append(node.slots[0])
            biases.append(node.slots[1])
            kinds.append(0)
            settings += [0.0, 0.0]
            activated = False
        elif kind in KINDS and not activated:
            kinds[-1], settings[-2:] = kind_of(rule)
            activated = True
        else:
            return None
    slots = [slot for slot in (*weights, *biases) if slot is not None]
    once = len(set(slots)) == len(slots)
    ends = graph.output == len(nodes) and graph.seed == len(graph.nodes) - 1 and loss >= 0
    if not (ends and once and 0 < len(weights) <= MAX_DEPTH):
        return None
    target = head.slots[0] if loss else None
    parts = (tuple(part) for part in (before, weights, biases, kinds, settings, after))
    return Mlp(*parts, loss, target, graph.curvature_free, graph.low)
