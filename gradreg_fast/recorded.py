"""A graph as an operation that autograd records, and whose input gradient it may record too.

``y = recorded(graph, x, tensors)`` keeps what sweep 1 leaves behind. A backward pass through y is an ordinary one. With
``create_graph=True`` the gradient of x is sweep 2, an operation of its own (`_Pull`); and the backward pass through
that hands its adjoint to the one through y, which comes after it and runs sweeps 3 and 4 for both. So user code of the
usual form, ``torch.autograd.grad(y, x, c, create_graph=True)`` and then ``backward``, takes the four sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gradreg_fast import contraction
from gradreg_fast.autocast import without_autocast
from gradreg_fast.backend import current
from gradreg_fast.context import (
    closed_form,
    laid_out_like,
    requested,
    restore,
    save,
    wanted_now,
)
from gradreg_fast.engine import Linearization, Terms, linearize
from gradreg_fast.estimate import seconds_saved
from gradreg_fast.graph import Graph
from gradreg_fast.mlp import HALVES, kernel_for
from gradreg_fast.passes import with_kernels
from gradreg_fast.planner import adjoints_are_cotangents
from gradreg_fast.rules.attention import Attention
from gradreg_fast.rules.base import Rule, elements, has_numbers, per_sample
from gradreg_fast.rules.cast import uncast
from gradreg_fast.rules.pointwise import Kinked

LEAST_COMPILED = 5e6  # a forward's products from which a compiled network with one output is ahead


def pays(graph: Graph, x: Tensor) -> bool:
    """Whether the closed form is to be used for this input.

    Whether it saves time is known after the first call with an input of this shape. A backend that was chosen is used.
    """
    return graph.plans.get(_cost_key(x), True) or current() != "auto"


def _cost_key(x: Tensor) -> tuple:
    return "pays", x.shape, x.dtype, x.device, _without_double_backward()


def _without_double_backward() -> tuple[type[Rule], ...]:
    """What PyTorch cannot differentiate twice, or not in all forms, as it is set now: never left to it."""
    fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()  # CPUs', too
    return (Attention, Kinked) if fused else (Kinked,)


def saves_time(linearization: Linearization) -> bool:
    """Whether the closed form is to be preferred to autograd at this input: on a CPU, not where it is slower."""
    if linearization.like.device.type != "cpu":
        return True
    rules = (uncast(node.rule) for node in linearization.graph.nodes if node and node.inputs)
    return any(isinstance(rule, _without_double_backward()) for rule in rules) or seconds_saved(linearization) > 0


def recorded(graph: Graph, x: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """The network's output, differentiable twice with respect to x, and then once more with respect to everything.

    Args:
        graph: the network.
        x: input ``[B, ...]`` that requires a gradient.
        tensors: the graph's.

    Returns:
        y.
    """
    mlp = kernel_for(graph, x, tensors)
    if mlp is not None and mlp.outputs(tensors) == 1 and x.dtype not in HALVES:
        y, _ = _OneOutput.apply(mlp, mlp.rows(x), *tensors)
        if has_numbers(x):
            products = 2 * len(x) * sum(tensors[slot].numel() for slot in mlp.weights)
            graph.plans[_cost_key(x)] = products > LEAST_COMPILED
        return mlp.returned(y)
    key = _cost_key(x)
    note = partial(graph.plans.__setitem__, key) if has_numbers(x) and key not in graph.plans else None
    y, _ = _Value.apply(with_kernels(graph, x, tensors), wanted_now(tensors), note, x, *tensors)
    return y


class _Value(torch.autograd.Function):
    """y, and a tensor without elements by which each `_Pull` depends on y's own backward pass.

    `note` is told whether the closed form saves time, if it is given.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, graph, wanted, note, x, *tensors):
        ctx.set_materialize_grads(False)
        y, linearization = linearize(graph, x, tensors)
        link = x.new_empty(0)
        ctx.wanted, ctx.handed = wanted, {}
        if note is not None:
            note(saves_time(linearization))
        save(ctx, (graph, wanted, note, x, *tensors), linearization, link)
        return laid_out_like(y, x), link

    @staticmethod
    @without_autocast
    def backward(ctx, ybar, _):
        handed = ctx.handed.pop(torch._C._current_graph_task_id(), None)
        x_wanted, *wanted = requested(ctx, 3)
        pull = torch.is_grad_enabled() and handed is None and x_wanted
        xbar, totals = None, [None] * len(wanted)
        if not pull or any(wanted):
            xbar, *totals = closed_form(partial(_adjoint, handed))(ctx, ybar)
        if pull:
            linearization, link = restore(ctx)
            xbar = _Pull.apply(linearization, ctx.wanted, link, ybar)
        return None, None, None, xbar, *totals


def _adjoint(handed: Handed | None, ctx, ybar: Tensor | None) -> tuple[Tensor | None, ...]:
    """Sweep 4 for y's adjoint and for what pulls handed over: the gradients of x and of the slots."""
    linearization, _ = restore(ctx)
    x_wanted, *wanted = requested(ctx, 3)
    handed = handed or Handed(Terms(linearization.graph, tuple(wanted), x_wanted), [])
    terms, directions = handed.terms, handed.directions
    adjoints = {} if ybar is None else {linearization.graph.output: ybar}
    xbar = None
    for direction in directions:  # the network is piecewise linear with one output: d is u, scaled
        scale = None
        if direction is directions[0] and ybar is not None:
            scale, adjoints = ybar.reshape(-1), {}  # [B]
            xbar = direction.pulled[0] * per_sample(scale, direction.pulled[0]) if x_wanted else None
        final = direction is directions[-1]
        linearization.push({0: direction.tangent}, cotangents=direction.kept, terms=terms, scale=scale, final=final)
    rest = linearization.adjoint(adjoints, terms)
    return rest if xbar is None else xbar, *terms.totals


@dataclass
class Handed:
    """What the backward passes through pulls leave to the one through y.

    Attributes:
        terms: second-order terms and parameter gradients.
        directions: what is still to be pushed.
    """

    terms: Terms
    directions: list[Direction]


@dataclass
class Direction:
    """A tangent to push where adjoints are cotangents, scaled.

    Attributes:
        tangent: ``[1, B, ...]``.
        kept: the cotangents of a unit seed, by node.
        pulled: that of the input, ``[1, B, ...]``.
    """

    tangent: Tensor
    kept: dict
    pulled: Tensor


class _Pull(torch.autograd.Function):
    """``J^T c``."""

    @staticmethod
    @without_autocast
    def forward(ctx, linearization, wanted, link, cotangent):
        ctx.set_materialize_grads(False)
        graph = linearization.graph
        ctx.proportional = adjoints_are_cotangents(linearization)
        seed = contraction.unit_seeds(linearization, graph.seed) if ctx.proportional else cotangent.unsqueeze(0)
        kept_nodes = graph.needs(wanted, x_wanted=True).meeting
        pulled, kept = linearization.pull({graph.seed: seed}, keep=kept_nodes)
        if pulled is None:
            pulled = link.new_zeros(1, *linearization.shapes[0])
        g = pulled[0]
        if ctx.proportional:
            g = (g * per_sample(cotangent.reshape(-1), g)).to(g.dtype)
        save(ctx, (linearization, wanted, link, cotangent), linearization, kept, pulled, cotangent)
        return g if ctx.proportional else g.contiguous()

    @staticmethod
    @without_autocast
    @closed_form
    def backward(ctx, gbar):
        linearization, kept, pulled, cotangent = restore(ctx)
        link_wanted, cotangent_wanted = requested(ctx, 2)
        if gbar is None:
            return (None,) * 4
        tangent, cotangent_bar = gbar.unsqueeze(0), None
        handed = _handed(ctx.next_functions[0][0], linearization.graph) if link_wanted else None
        if ctx.proportional:
            if cotangent_wanted:
                cotangent_bar = elements(pulled * tangent).sum(2).view_as(cotangent)
            if handed:
                scaled = tangent * per_sample(cotangent.reshape(-1), gbar)
                handed.directions.append(Direction(scaled, kept, pulled))
        else:
            top = linearization.graph.seed if cotangent_wanted else None
            meetings = {"cotangents": kept, "terms": handed.terms} if handed else {}
            pushed, _ = linearization.push({0: tangent}, top, **meetings)
            cotangent_bar = pushed[0] if cotangent_wanted and pushed is not None else None
        link_bar = linearization.like.new_zeros(0) if link_wanted else None
        return None, None, link_bar, cotangent_bar


def _handed(value_node, graph: Graph) -> Handed:
    """Where the backward pass that is running hands things to the one through y."""
    task = torch._C._current_graph_task_id()
    if task not in value_node.handed:
        x_wanted, *wanted = requested(value_node, 3)
        value_node.handed[task] = Handed(Terms(graph, tuple(wanted), x_wanted), [])
    return value_node.handed[task]


class _OneOutput(torch.autograd.Function):
    """y ``[B, 1]`` and its input gradient ``[B, d]``, of a fully connected network by compiled kernels.

    Samples do not meet, so that ``J^T c`` is each sample's gradient times its c: an ordinary product of the second
    result, whose backward pass comes back here.
    """

    @staticmethod
    def forward(ctx, mlp, x, *tensors):
        ctx.set_materialize_grads(False)
        y, g, _, kept = mlp.forward_pull(x, None, None, tensors, 1, keep=True)
        g = g[0]
        ctx.mlp, ctx.is_tensor = mlp, [False, True, *(tensor is not None for tensor in tensors)]
        ctx.save_for_backward(x, kept, g, *(tensors[slot] for slot in mlp.weights))
        return y, g

    @staticmethod
    def backward(ctx, ybar, gbar):
        x_wanted, *wanted = requested(ctx, 1)
        pull = torch.is_grad_enabled() and gbar is None and x_wanted
        xbar = ctx.saved_tensors[2] * ybar if pull else None
        totals = [None] * len(wanted)
        if not pull or any(wanted):
            last, _, *totals = closed_form(partial(_one_output_adjoint, (x_wanted and not pull, False, *wanted)))(
                ctx, ybar, gbar
            )
            xbar = xbar if pull else last
        return None, xbar, *totals


def _one_output_adjoint(wanted: Sequence[bool], ctx, ybar: Tensor | None, gbar: Tensor | None) -> list[Tensor | None]:
    """Sweeps 3 and 4: the gradients of x, of the cotangent that is none, and of the slots."""
    x, kept, _, *weights = ctx.saved_tensors
    adjoints = ybar, None if gbar is None else gbar.unsqueeze(0), None
    return ctx.mlp.push_adjoint(x, None, None, kept, weights, 1, adjoints, wanted)
