"""What will run where, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradreg_fast import active, functional, planner
from gradreg_fast.autocast import with_casts, without_autocast
from gradreg_fast.convert import graph_of, original_of
from gradreg_fast.engine import Linearization, linearize
from gradreg_fast.estimate import seconds_saved
from gradreg_fast.graph import Graph
from gradreg_fast.mlp import kernel_for
from gradreg_fast.passes import with_kernels
from gradreg_fast.recorded import saves_time
from gradreg_fast.rules.cast import uncast
from gradreg_fast.rules.conv_block import ConvBlock
from gradreg_fast.rules.conv_products import ConvProducts
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.signature import NONE, bind_call
from gradreg_fast.verify import everything_restored

WHOLE_JACOBIAN = ("jacobian_frobenius", "contractive", "jacobian_softmax", "jacobian_sqnorm")


@dataclass(frozen=True)
class Row:
    """One node.

    Attributes:
        name: as in the traced network.
        operation: its rule, or "autograd".
        backend: "kernel", "PyTorch" or "autograd".
        products: operations of its matrix products in one forward.
        kept: bytes that it keeps for the sweeps behind the forward, parameters aside.
        reason: why it has no rule.
    """

    name: str
    operation: str
    backend: str
    products: int
    kept: int
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` says; prints as a table, a rich one where rich prints it.

    Attributes:
        title: model, penalty and input.
        rows: one for each node.
        savings: what makes the step cheaper than autograd's, in words.
        units: matrix products of a whole step (task loss, penalty, all gradients), in those of one forward.
        autograd_units: those of autograd's step.
        drop_in: what `convert` does with the model; empty where that is not estimated.
    """

    title: str
    rows: tuple[Row, ...]
    savings: tuple[str, ...]
    units: float
    autograd_units: float
    drop_in: str = ""

    @property
    def with_rule(self) -> float:
        """The share of nodes with a rule."""
        return sum(row.backend != "autograd" for row in self.rows) / max(1, len(self.rows))

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows, formatted."""
        return [
            (row.name, row.operation, row.backend, _amount(row.products), _amount(row.kept) + "B", row.reason)
            for row in self.rows
        ]

    def summary(self) -> list[str]:
        """The lines below the table."""
        autograd = sum(row.backend == "autograd" for row in self.rows)
        estimate = f"{self.units:.1f} forwards' products a step, autograd {self.autograd_units:.1f}"
        return [
            f"{len(self.rows) - autograd} of {len(self.rows)} nodes have a rule",
            f"kept between the sweeps: {_amount(sum(row.kept for row in self.rows))}B",
            f"estimate: {estimate}" if self.units else "estimate: none, no node with a rule has matrix products",
            *(f"saving: {saving}" for saving in self.savings),
            *([f"convert: {self.drop_in}"] if self.drop_in else []),
        ]

    def __str__(self) -> str:
        table = [HEADINGS, *self.cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return "\n".join([self.title, "", *lines, "", *self.summary()])

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table

        table = Table(*HEADINGS, title=self.title)
        for row, cells in zip(self.rows, self.cells(), strict=True):
            table.add_row(*cells, style={"autograd": "yellow", "kernel": "green"}.get(row.backend))
        return Group(table, *self.summary())


HEADINGS = ("node", "operation", "runs by", "products", "keeps", "no rule because")


def explain(
    model: nn.Module,
    x: Tensor | tuple | dict,
    penalty: str = "r1",
    *,
    output: object = None,
    model_args: tuple = NONE,
    model_kwargs: Mapping | None = None,
) -> Explanation:
    """Say what runs where and why: for each node of the model its rule, or why autograd runs it, and what it costs.

    The model is run once on x, and left as it was.

    Args:
        model: the network, in the mode that matters.
        x: input ``[B, ...]``, or several.
        penalty: the name of a penalty of `gradreg_fast.functional`; it decides the form of the norm.
        output: which result counts; as for the penalties.
        model_args: the model's further arguments; as for the penalties.
        model_kwargs: likewise, by name.

    Returns:
        The explanation; print it.

    Raises:
        ValueError: if there is no penalty of that name.

    >>> critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(), nn.Linear(64, 1))
    >>> explanation = explain(critic, torch.randn(8, 2), "r1")
    >>> [row.operation for row in explanation.rows]
    ['Linear', 'LeakyReLU', 'Linear']
    >>> explanation.units, explanation.autograd_units
    (4.0, 6.0)
    """
    if penalty not in (*functional.PENALTIES, "value_and_vjp", "jacobian_sqnorm"):
        raise ValueError(f"penalty must be one of {', '.join(functional.PENALTIES)}, got {penalty!r}")
    model = original_of(model)
    bound, joint = bind_call(model, x, "x", output, model_args, model_kwargs or {})
    with everything_restored(model), torch.no_grad():
        graph = with_casts(graph_of(model, bound.signature, examples=(joint, bound.given)), joint)
        tensors = graph.tensors(joint, bound.given)
        network = kernel_for(graph, joint, tensors)
        compiled = network is not None and (penalty not in WHOLE_JACOBIAN or network.outputs(tensors) == 1)
        graph = graph if compiled else with_kernels(graph, joint, tensors)
        _, linearization = without_autocast(linearize)(graph, joint, tensors)
    rows = tuple(_row(linearization, i, compiled) for i, node in enumerate(graph.nodes) if node and node.inputs)
    savings, units, autograd_units = _estimate(linearization, penalty, compiled)
    title = f"{type(model).__name__}, {penalty}, x {' x '.join(map(str, joint.shape))} {joint.dtype}"
    one_output = network is not None and network.outputs(tensors) == 1  # a compiled operation of its own
    estimated = linearization.like.device.type == "cpu" and not (one_output or graph.whole)
    drop_in = _drop_in(linearization) if estimated else ""
    return Explanation(title, rows, tuple(savings), units, autograd_units, drop_in)


def _drop_in(linearization: Linearization) -> str:
    saved = seconds_saved(linearization)
    amount = f"{abs(saved) * 1e3:.1f} ms a step {'saved' if saved > 0 else 'lost'}, by estimate"
    return f"closed form ({amount})" if saves_time(linearization) else f"left to autograd ({amount})"


def _row(linearization: Linearization, i: int, compiled: bool) -> Row:
    node = linearization.graph.nodes[i]
    opaque, kernel = isinstance(node.rule, Opaque), compiled or uncast(node.rule).compiled
    parameters = linearization.parameters[i]
    return Row(
        node.name,
        "autograd" if opaque else type(uncast(node.rule)).__name__,
        "autograd" if opaque else "kernel" if kernel else "PyTorch",
        linearization.flops(i),
        _bytes(linearization.saved[i], parameters),
        node.rule.reason if opaque else "",
    )


def _estimate(linearization: Linearization, penalty: str, compiled: bool) -> tuple[list[str], float, float]:
    """What is saved, and the products of our step and autograd's in those of one forward."""
    graph, savings = linearization.graph, []
    forward = sum(linearization.flops(i) for i, node in enumerate(graph.nodes) if node and node.inputs)
    if graph.whole:
        return [f"none: autograd runs the model ({graph.whole.reason}), its submodules are converted one by one"], 0, 0
    if compiled:
        savings.append("the whole network is two compiled operations a step; its activations stay in the cache")
    blocks = sum(isinstance(node.rule, (ConvBlock, ConvProducts)) for node in graph.nodes if node)
    if blocks:
        savings.append(f"{blocks} convolution blocks (with activation and pooling) are compiled operations")
    passes = sum(uncast(node.rule).compiled for node in graph.nodes if node) - blocks
    if passes:
        savings.append(f"{passes} normalisations, activations and poolings are compiled operations, one pass a sweep")
    outputs = planner.width(linearization, graph.seed)
    units, autograd_units = 6.0, 6.0
    if penalty in WHOLE_JACOBIAN and outputs > 1:
        plan = planner.plan(linearization, None)
        plan = plan if compiled else active.preferred(linearization, plan)
        savings += _of_plan(graph, plan, outputs)
        units = 3 + plan.flops / forward if forward else 0
        autograd_units = 3.0 + 3 * outputs
    elif planner.adjoints_are_cotangents(linearization):
        savings.append("piecewise linear with one output: task and penalty share their products, 4 instead of 6")
        units = 4.0
    elif graph.curvature_free:
        savings.append("piecewise linear: the penalty leaves no second-order terms; 4 products of 6 where it is alone")
    return savings, units if forward else 0.0, autograd_units


def _of_plan(graph: Graph, plan: planner.Plan, outputs: int) -> list[str]:
    if plan.closed_form:
        return ["one hidden layer: the norm has a closed form that depends on neither the inputs nor the outputs"]
    savings = []
    if plan.active:
        savings.append("ReLU network: of each sample only the active units are multiplied, by compiled kernels")
    elif plan.cut != graph.seed:
        name = graph.nodes[plan.cut].name if plan.cut else "the input"
        savings.append(f"the Jacobian is contracted where the network is narrowest, at {name}")
    else:
        savings.append(f"the {outputs} cotangents are one stack, swept in chunks that stay in the cache")
    if plan.bottom:
        savings.append("the first layer is measured by its Gram matrix: no input gradient is formed")
    if plan.top != graph.seed:
        savings.append("the last layer is measured by its Gram matrix")
    return savings


def _bytes(saved: object, parameters: tuple) -> int:
    known = {p.untyped_storage().data_ptr() for p in parameters if p is not None}
    total = 0
    stack = [saved]
    while stack:
        item = stack.pop()
        if isinstance(item, (tuple, list)):
            stack += item
        elif isinstance(item, Tensor) and item.untyped_storage().data_ptr() not in known:
            known.add(item.untyped_storage().data_ptr())
            total += item.numel() * item.element_size()
    return total


def _amount(number: float) -> str:
    for suffix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {suffix}"
        number /= 1000
    return f"{number:.3g} T"
