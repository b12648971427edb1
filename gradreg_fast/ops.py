"""The two primitives as autograd functions: value and vector-Jacobian product, value and squared Jacobian norm.

Both compute values in their forward (sweeps 1 and 2) and closed-form gradients in their backward (sweeps 3 and 4), so
that a penalty on input gradients is an ordinary first-order operation. With the further argument ``save="recompute"``
they keep nothing in between and sweep twice (see `gradreg_fast.recompute`), with ``chunk_size=n`` for n samples at a
time (see `gradreg_fast.chunks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradreg_fast import active, contraction, planner
from gradreg_fast.autocast import with_casts, without_autocast
from gradreg_fast.chunks import chunkable
from gradreg_fast.compiling import compilable
from gradreg_fast.context import (
    closed_form,
    differentiable,
    laid_out_like,
    refuse_transforms,
    requested,
    restore,
    save,
    wanted_now,
)
from gradreg_fast.convert import graph_of
from gradreg_fast.engine import Linearization, Terms, linearize
from gradreg_fast.graph import Graph
from gradreg_fast.mlp import kernel_for
from gradreg_fast.passes import with_kernels
from gradreg_fast.recompute import recomputable
from gradreg_fast.rules.base import Rule, at_least_single, elements, per_sample
from gradreg_fast.rules.opaque import Record, recording
from gradreg_fast.signature import ONE_TENSOR, Bound, callable_with
from gradreg_fast.wrappers import refuse_wrappers

Cotangent = Tensor | Callable[[Linearization], Tensor] | None
"""The cotangents ``[K, B, ...]`` of the seed; None for ones, ``K = 1``; or a function that makes constant ones."""


@compilable
@chunkable
@recomputable
@callable_with(gradient_like_x=True)
def value_and_vjp(model: nn.Module, x: Tensor, cotangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The model's output and a vector-Jacobian product, differentiable once more.

    ``y = f(x)`` and ``g = J^T c`` with ``J = dy/dx``: what ``y = model(x)`` and ``torch.autograd.grad(y, x, c,
    create_graph=True)`` give, as one first-order operation. Any loss of y and g can be differentiated with respect to
    x, the cotangent and every parameter of the model. Double backpropagation: Drucker and LeCun 1992.

    Args:
        model: the network, called as ``model(x)``; returns one tensor.
        x: input ``[B, ...]``, floating point. It need not require a gradient.
        cotangent: shaped like y; ones by default.

    Returns:
        y, shaped as the model returns it, and g, shaped like x and of its dtype.

    Raises:
        TypeError: if the model is no module or does not return one tensor, or x or the cotangent is not a real
            floating-point tensor.
        ValueError: if their shapes, dtypes or devices do not fit.

    >>> network, x = nn.Linear(2, 1), torch.randn(8, 2)
    >>> y, g = value_and_vjp(network, x)
    >>> torch.testing.assert_close(g, network.weight.expand(8, 2))
    >>> (y.square().mean() + g.square().sum(1).mean()).backward()  # any loss of both
    """
    graph, tensors = prepare(model, x)
    if cotangent is None:
        return _first(stacked_vjp(graph, tensors, x, None))
    check_floating(cotangent, "cotangent")
    refuse_transforms([cotangent])
    return _first(stacked_vjp(graph, tensors, x, cotangent.unsqueeze(0)))


@compilable
@chunkable
@recomputable
@callable_with()
def jacobian_sqnorm(
    model: nn.Module,
    x: Tensor,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    cotangent_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The model's output and the squared Frobenius norm of each sample's Jacobian, differentiable once more.

    ``||J||_F^2 = sum_k ||J^T e_k||^2``, exact or, with `projections`, the unbiased estimate ``K / n sum_i ||J^T
    v_i||^2`` with random unit vectors v_i, where K is the number of a sample's outputs (Hoffman, Roberts and Yaida
    2019, arXiv:1908.02729; Varga et al. 2017, arXiv:1712.09936). The exact value is contracted in the order that costs
    least, so it is often cheaper than it looks.

    Args:
        model: the network, called as ``model(x)``; returns one tensor ``[B, ...]``.
        x: input ``[B, ...]``, floating point.
        projections: how many random projections; None for the exact norm.
        generator: for the projections.
        cotangent_chunk_size: how many outputs (or projections) there are at a time: memory is that of so many, beside
            one forward pass, for the same numbers; they are pulled once more in the backward pass, 4 products a layer
            instead of 3. None for as many as is fast.

    Returns:
        y, and the norms ``[B]`` in y's dtype, or float32 where that is narrower.

    Raises:
        TypeError: if the model is no module or does not return one tensor, or x is not a real floating-point tensor.
        ValueError: if `projections` or `cotangent_chunk_size` is not a positive integer, or autograd runs the whole
            model, which keeps them all.

    >>> network, x = nn.Linear(3, 2), torch.randn(8, 3)
    >>> y, norms = jacobian_sqnorm(network, x)
    >>> torch.testing.assert_close(norms, network.weight.square().sum().expand(8))
    """
    return sqnorm_or_estimate(*prepare(model, x), x, projections, generator, cotangent_chunk_size)


def prepare(model: nn.Module, x: Tensor, head: Rule | None = None, *targets: Tensor) -> tuple[Graph, list]:
    """The model's graph, with a head on top if one is given, and its tensors; checks x."""
    check_model(model)
    check_floating(x, "x")
    if x.dim() == 0:
        raise ValueError("x must be a batch [B, ...], got a scalar")
    bound = model if isinstance(model, Bound) else Bound(model, ONE_TENSOR, [])
    network = bound.model
    graph = graph_of(network, bound.signature, examples=(x, bound.given))
    if graph.whole:
        refuse_wrappers(network)
    tensors = graph.tensors(x, bound.given)
    refuse_transforms((x, *tensors, *targets))
    if graph.structure is not None:
        got = type(graph.structure).__name__
        raise TypeError(f"model must return one tensor, or output= select one; got {got}")
    for slot, tensor in zip(graph.slots, tensors, strict=True):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x must be on the model's device ({slot}: {tensor.device}), got {x.device}")
    if head is not None:
        graph = graph.with_head(head, len(targets))
    return with_casts(graph, x), [*tensors, *targets]


def stacked_vjp(graph: Graph, tensors: list, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor]:
    """y and ``g^k = J^T c^k``: ``[K, B, ...]``."""
    if graph.whole:
        y, g, _ = by_autograd(graph, tensors, x, cotangent)
        return y, g
    given = cotangent if isinstance(cotangent, Tensor) else None
    mlp = kernel_for(graph, x, tensors)
    if mlp is not None and (cotangent is None or (given is not None and mlp.takes(given, x, tensors))):
        return mlp.value_and_vjp(x, given, tensors)
    graph = with_kernels(graph, x, tensors)
    wanted = wanted_now(tensors)
    if not (any(wanted) or differentiable(x) or (given is not None and differentiable(given))):
        return _plain_vjp(graph, tensors, x, cotangent)
    return _ValueAndVjp.apply(graph, wanted, cotangent if given is None else None, x, given, *tensors)


def sqnorm(
    graph: Graph,
    tensors: list,
    x: Tensor,
    cotangents: Callable[[Linearization], Tensor] | None = None,
    one_output: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """y and ``sum_k ||J^T c^k||^2`` of constant cotangents, by default of all units (``||J||_F^2``): ``[B]``.

    With `one_output`, a seed with more than one element a sample is an error; with `chunk`, there are so many
    cotangents at a time.
    """
    if graph.whole:
        if chunk is not None:
            raise ValueError(f"cotangent_chunk_size must be None where autograd runs the model: {graph.whole.reason}")
        if cotangents is None:
            cotangents = partial(_units, one_output=one_output)
        y, g, linearization = by_autograd(graph, tensors, x, cotangents)
        return y, elements(g).square().sum((0, 2), dtype=at_least_single(linearization.like.dtype))
    mlp = kernel_for(graph, x, tensors) if chunk is None else None
    if mlp is not None and cotangents is None and mlp.outputs(tensors) == 1 and not mlp.prefers_gram(x, tensors):
        return mlp.value_and_sqnorm(x, None, None, tensors)
    if mlp is not None and cotangents is None and not one_output and mlp.stacks_units(x, tensors):
        return mlp.value_and_sqnorm(x, mlp.units(x, tensors), None, tensors)
    if mlp is not None and isinstance(cotangents, RandomUnits):
        return mlp.value_and_sqnorm(
            x, cotangents.draw(mlp.output_shape(x, tensors), x.new_empty(0, dtype=mlp.low or x.dtype)), None, tensors
        )
    graph = with_kernels(graph, x, tensors)
    wanted = wanted_now(tensors)
    if not (any(wanted) or differentiable(x)):
        return _plain_sqnorm(graph, tensors, x, cotangents, one_output, chunk)
    return _ValueAndSqnorm.apply(graph, wanted, cotangents, one_output, chunk, x, *tensors)


def jacobian_distance(graph: Graph, tensors: list, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """y and ``||J - target||_F^2`` of each sample, ``[B]``, with target ``[K, B, ...]`` for K outputs."""
    K = len(target)

    def units(linearization: Linearization) -> Tensor:
        outputs = planner.width(linearization, graph.seed)
        if outputs != K:
            raise ValueError(f"target_gradient must be for all {outputs} outputs of the model, got it for {K}")
        return contraction.unit_seeds(linearization, graph.seed)

    mlp = kernel_for(graph, x, tensors)
    if mlp is not None and mlp.outputs(tensors) == K == 1 and target.dtype == x.dtype and not differentiable(target):
        return mlp.value_and_sqnorm(x, None, target, tensors)
    y, g = stacked_vjp(graph, tensors, x, units)
    return y, elements(g - target).square().sum((0, 2), dtype=at_least_single(g.dtype))


def sqnorm_or_estimate(
    graph: Graph,
    tensors: list,
    x: Tensor,
    projections: int | None,
    generator: torch.Generator | None,
    cotangent_chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """y and ``||J||_F^2`` of the seed's Jacobian, exact or estimated by random projections: ``[B]``."""
    check_count(projections, "projections")
    check_count(cotangent_chunk_size, "cotangent_chunk_size")
    if projections is None:
        return sqnorm(graph, tensors, x, chunk=cotangent_chunk_size)
    y, norms = sqnorm(graph, tensors, x, RandomUnits(projections, generator), chunk=cotangent_chunk_size)
    return y, norms * (y[0].numel() / projections if y.shape[0] else 0)


@dataclass(frozen=True)
class RandomUnits:
    """Draws n random directions a sample, uniform on the unit sphere of its outputs: ``[n, B, ...]``."""

    n: int
    generator: torch.Generator | None

    def __call__(self, linearization: Linearization) -> Tensor:
        """Cotangents of the seed."""
        return self.draw(linearization.shapes[linearization.graph.seed], linearization.like)

    def draw(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Cotangents of outputs of this shape, with the dtype and device of `like`."""
        return unit(random(torch.randn, (self.n, *shape), like, self.generator))


def random(draw: Callable, shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers drawn by ``torch.rand`` or ``torch.randn``, with another tensor's dtype and device."""
    chosen = {} if generator is None else {"generator": generator}  # even None would want sizes that are no symbols
    return draw(shape, dtype=like.dtype, device=like.device, **chosen)


class _ValueAndVjp(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, graph, wanted, make_cotangent, x, cotangent, *tensors):
        ctx.set_materialize_grads(False)
        y, linearization = linearize(graph, x, tensors)
        needs = graph.needs(wanted, x.requires_grad)
        ctx.proportional = (
            planner.adjoints_are_cotangents(linearization)
            and make_cotangent is None
            and (cotangent is None or len(cotangent) == 1)
        )
        if ctx.proportional:
            check_cotangent(cotangent, linearization)
            seeds = contraction.unit_seeds(linearization, graph.seed)
        else:
            seeds = seeds_of(linearization, make_cotangent if cotangent is None else cotangent)
        pulled, kept = linearization.pull({graph.seed: seeds}, keep=needs.meeting)
        if pulled is None:
            pulled = x.new_zeros(len(seeds), *x.shape)
        g = pulled
        if ctx.proportional and cotangent is not None:
            g = (pulled * per_sample(cotangent.reshape(-1), x)).to(x.dtype)
        g = laid_out_like(g, x)
        arguments = (graph, wanted, make_cotangent, x, cotangent, *tensors)
        save(ctx, arguments, linearization, kept, pulled if ctx.proportional else None, cotangent)
        return laid_out_like(y, x), g

    @staticmethod
    @without_autocast
    @closed_form
    def backward(ctx, ybar, gbar):
        linearization, kept, pulled, cotangent = restore(ctx)
        graph = linearization.graph
        x_wanted, cotangent_wanted, *wanted = requested(ctx, 3)
        terms = Terms(graph, tuple(wanted), x_wanted)
        xbar = cotangent_bar = None
        adjoints = {} if ybar is None else {graph.output: ybar}
        if gbar is None:
            xbar = linearization.adjoint(adjoints, terms)
        elif ctx.proportional:
            scale = None if ybar is None else ybar.reshape(-1)  # [B]
            tangent = gbar if cotangent is None else gbar * per_sample(cotangent.reshape(-1), gbar[0])
            linearization.push({0: tangent}, cotangents=kept, terms=terms, scale=scale, final=True)
            if x_wanted and scale is not None:
                xbar = pulled[0] * per_sample(scale, pulled[0])
            if cotangent_wanted:
                cotangent_bar = elements(pulled * gbar).sum(2).view_as(cotangent)
        else:
            top = graph.seed if cotangent_wanted else None
            cotangent_bar, _ = linearization.push({0: gbar}, top, cotangents=kept, terms=terms)
            xbar = linearization.adjoint(adjoints, terms)
        return None, None, None, xbar if x_wanted else None, cotangent_bar, *terms.totals


class _ValueAndSqnorm(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, graph, wanted, cotangents, one_output, chunk, x, *tensors):
        ctx.set_materialize_grads(False)
        y, linearization = linearize(graph, x, tensors)
        ctx.proportional = cotangents is None and planner.adjoints_are_cotangents(linearization)
        needs = graph.needs(wanted, x.requires_grad)
        norms, ctx.plan, state = _norms(linearization, cotangents, one_output, chunk, needs.meeting)
        save(ctx, (graph, wanted, cotangents, one_output, chunk, x, *tensors), linearization, state)
        return laid_out_like(y, x), norms

    @staticmethod
    @without_autocast
    @closed_form
    def backward(ctx, ybar, weights):
        linearization, state = restore(ctx)
        graph, plan = linearization.graph, ctx.plan
        x_wanted, *wanted = requested(ctx, 5)
        terms = Terms(graph, tuple(wanted), x_wanted)
        proportional = ctx.proportional and weights is not None and ybar is not None
        if weights is not None:
            scale = ybar.reshape(-1) if proportional else None
            final = proportional or (ybar is None and graph.curvature_free)
            u = state[0][0][1] if proportional else None
            form = active if plan.active else contraction
            form.add_gradients(linearization, plan, state, weights, terms, scale, final)
        adjoints = {} if ybar is None else {graph.output: ybar}
        if proportional:
            adjoints = {plan.bottom: u[0] * per_sample(scale, u[0])}  # what is left below the push
        xbar = linearization.adjoint(adjoints, terms)
        return None, None, None, None, None, xbar if x_wanted else None, *terms.totals


@without_autocast
def _plain_vjp(graph, tensors, x, cotangent):
    """`stacked_vjp` for nobody's gradients."""
    y, linearization = linearize(graph, x, tensors)
    g, _ = linearization.pull({graph.seed: seeds_of(linearization, cotangent)})
    return laid_out_like(y, x), laid_out_like(x.new_zeros(1, *x.shape) if g is None else g, x)


@without_autocast
def _plain_sqnorm(graph, tensors, x, cotangents, one_output, chunk):
    """`sqnorm` for nobody's gradients."""
    y, linearization = linearize(graph, x, tensors)
    return laid_out_like(y, x), _norms(linearization, cotangents, one_output, chunk, None)[0]


def _norms(linearization, cotangents, one_output, chunk, keep):
    """Norms, plan and state of the norm in the form that costs least."""
    outputs = planner.width(linearization, linearization.graph.seed)
    if cotangents is not None:
        seeds = cotangents(linearization)
    else:
        seeds = _units(linearization, one_output) if outputs == 1 or one_output else None
    stack = None if seeds is None else len(seeds)
    if chunk is not None and chunk >= (stack or outputs):
        chunk = None
    plan = planner.plan(linearization, stack, chunk)
    if seeds is None and chunk is None:
        plan = active.preferred(linearization, plan)
    form = active if plan.active else contraction
    norms, state = form.squared_norm(linearization, plan, seeds, keep)
    return norms, plan, state


def _units(linearization: Linearization, one_output: bool) -> Tensor:
    """A unit cotangent for each output, of which there must be one only if `one_output`: ``[K, B, ...]``."""
    seed = linearization.graph.seed
    if one_output and planner.width(linearization, seed) != 1:
        shape = tuple(linearization.shapes[seed])
        raise ValueError(f"model must return one output a sample, [B] or [B, 1], for this penalty; got {shape}")
    return contraction.unit_seeds(linearization, seed)


def by_autograd(graph: Graph, tensors: list, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor, Linearization]:
    """`stacked_vjp` of a model that autograd runs as a whole: differentiable as often as autograd can.

    Returns:
        y, g ``[K, B, ...]`` and the linearization.
    """
    keep = torch.is_grad_enabled()
    with recording():
        leaf = x if x.requires_grad else (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        y = graph.whole.direct(leaf, tensors)
        record = Record([leaf], [], y)
        linearization = Linearization(graph, tensors, [None, (record,)], [x.shape, y.shape], y.new_empty(0))
        seeds = seeds_of(linearization, cotangent)
        pulled = [record.pull(seed, create_graph=keep)[0] for seed in seeds]
        g = torch.stack(pulled) if len(pulled) != 1 else pulled[0].unsqueeze(0)
    return (y, g, linearization) if keep else (y.detach(), g.detach(), linearization)


def seeds_of(linearization: Linearization, cotangent: Cotangent) -> Tensor:
    """The cotangent stack ``[K, B, ...]`` of the seed."""
    if callable(cotangent) and not isinstance(cotangent, Tensor):
        return cotangent(linearization)
    if cotangent is None:
        return contraction.ones_seed(linearization, linearization.graph.seed)
    check_cotangent(cotangent, linearization)
    return cotangent


def unit(stack: Tensor) -> Tensor:
    """Each member ``[...]`` of a stack ``[n, B, ...]`` divided by its norm; zero stays zero."""
    norms = torch.linalg.vector_norm(elements(stack), dim=2)
    return stack / norms.clamp_min(torch.finfo(stack.dtype).tiny).view(*norms.shape, *(1,) * (stack.dim() - 2))


def check_model(model: nn.Module) -> None:
    """Raise unless this is a module, or one with its arguments."""
    if not isinstance(model, (nn.Module, Bound)):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_floating(tensor: Tensor, name: str) -> None:
    """Raise unless the argument is a real floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a real floating-point dtype, got {tensor.dtype}")


def check_count(count: int | None, name: str) -> None:
    """Raise unless this is a number of things, or None."""
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ValueError(f"{name} must be a positive integer or None, got {count!r}")


def check_cotangent(cotangent: Tensor | None, linearization: Linearization, name: str = "cotangent") -> None:
    """Raise unless the cotangents ``[K, B, ...]`` fit the seed."""
    shape, like = linearization.shapes[linearization.graph.seed], linearization.like
    if cotangent is None:
        return
    if cotangent.shape[1:] != shape:
        raise ValueError(f"{name} must be shaped like the output {tuple(shape)}, got {tuple(cotangent.shape[1:])}")
    if cotangent.dtype != like.dtype or cotangent.device != like.device:
        raise ValueError(
            f"{name} must have the output's dtype and device, {like.dtype} on {like.device}, got {cotangent.dtype} on "
            f"{cotangent.device}"
        )


def _first(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    y, g = pair
    return y, g.squeeze(0)  # whose derivative is a view
