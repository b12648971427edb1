"""Squared norms of Jacobians and of vector-Jacobian products: values, and what their gradients put into the sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, starmap

import torch
from torch import Tensor

from gradreg_fast.engine import Linearization, Terms
from gradreg_fast.planner import Plan, chunk_size, width
from gradreg_fast.rules.base import at_least_single, elements, has_numbers, unit_stack
from gradreg_fast.samples import dot_samples, scale_samples

SMALLEST_BLOCK = 128  # of a symmetric product: smaller ones run too far below a large product's rate


def squared_norm(
    linearization: Linearization, plan: Plan, seeds: Tensor | None, keep: list[bool] | None
) -> tuple[Tensor, tuple]:
    """``sum_k ||J^T c^k||^2`` of each sample, or ``||J||_F^2``.

    Args:
        linearization: the network at its input.
        plan: made for it.
        seeds: the cotangents ``[K, B, ...]`` of the graph's seed; None for the whole Jacobian.
        keep: nodes whose cotangents a later `add_gradients` needs; None if there will be none.

    Returns:
        The norms ``[B]`` and a state for `add_gradients`.
    """
    if plan.closed_form:
        return _closed_form(linearization, plan)
    if plan.cut != linearization.graph.seed:
        return _contract(linearization, plan, keep)
    return _stack(linearization, plan, unit_seeds(linearization, plan.cut) if seeds is None else seeds, keep)


def add_gradients(
    linearization: Linearization,
    plan: Plan,
    state: tuple,
    weights: Tensor,
    terms: Terms,
    scale: Tensor | None = None,
    final: bool = False,
) -> None:
    """Add the gradients of ``sum_b weights_b norm_b`` to the terms: parameters' and second-order ones.

    Args:
        linearization: as given to `squared_norm`.
        plan: as given to `squared_norm`.
        state: as returned by it; consumed.
        weights: ``[B]``.
        terms: added to.
        scale: see `Linearization.push`; only for a single cotangent of one output a sample.
        final: no other sweep over the network follows.
    """
    if plan.closed_form:
        _closed_form_gradients(linearization, plan, state, weights, terms)
    elif plan.cut != linearization.graph.seed:
        _contract_gradients(linearization, plan, state, weights, terms)
    else:
        _stack_gradients(linearization, plan, state, weights, terms, scale, final)


def unit_seeds(linearization: Linearization, value: int) -> Tensor:
    """A unit stack for each element of a value: ``[n, B, ...]``, shared by the samples."""
    if width(linearization, value) == 1:
        return ones_seed(linearization, value)
    return unit_stack(linearization.shapes[value], linearization.like)


def ones_seed(linearization: Linearization, value: int) -> Tensor:
    """A single cotangent of ones for a value: ``[1, B, ...]``, shared by the samples."""
    shape = linearization.shapes[value]
    return linearization.like.new_ones(1, 1, *shape[1:]).expand(1, *shape)


# A stack of cotangents, swept in chunks.


def _stack(linearization, plan, seeds, keep):
    below = bottom_metric(linearization, plan)
    norms, chunks = 0, []
    for chunk in seeds.split(plan.chunk or chunk_size(linearization, plan.bottom) or len(seeds)):
        u, kept = linearization.pull({plan.cut: chunk}, plan.bottom, keep=None if plan.chunk else keep)
        measured = below(u)
        norms = norms + dot_samples(u, measured)
        if keep is not None:
            chunks.append(chunk if plan.chunk else (kept, u, measured))
    return norms.clamp_min(0), (chunks, keep)


def _stack_gradients(linearization, plan, state, weights, terms, scale, final):
    factor = 2 * weights
    pushed = _pushed(linearization, plan, state, factor, terms, scale, final)
    if plan.bottom:
        pairs = ((scale_samples(u, factor), u) for u in pushed)
        add_gram_gradient(linearization, plan.bottom, terms, pairs, transposed=False)
    for _ in pushed:  # all of them, where nobody wants the Gram matrix's gradient
        pass


def _pushed(linearization, plan, state, factor, terms, scale, final):
    """Yields each chunk of cotangents of `plan.bottom`, and then pushes it."""
    chunks, keep = state
    below = bottom_metric(linearization, plan) if plan.chunk else None
    while chunks:
        if plan.chunk:
            u, kept = linearization.pull({plan.cut: chunks.pop()}, plan.bottom, keep=keep)
            measured = below(u)
        else:
            kept, u, measured = chunks.pop()
        yield u
        seeds = {plan.bottom: scale_samples(measured, factor)}
        last = final and not chunks
        linearization.push(seeds, cotangents=kept, terms=terms, scale=scale, final=last)


# A cut in the middle: J = U V, <U^T U, V V^T>.


def _contract(linearization, plan, keep):
    seeds = unit_seeds(linearization, plan.cut)
    below, above = bottom_metric(linearization, plan), top_metric(linearization, plan)
    v, kept_below = linearization.pull({plan.cut: seeds}, plan.bottom, keep=keep)
    w, kept_above = linearization.push({plan.cut: seeds}, plan.top, keep=keep)
    v_measured, w_measured = below(v), above(w)
    V, U = inner_products(v, v_measured), inner_products(w, w_measured)  # V V^T and U^T U, [B, n, n]
    norms = dot_samples(U.unsqueeze(0), V.unsqueeze(0))
    return norms.clamp_min(0), (kept_below, kept_above, v, w, v_measured, w_measured, U, V)


def _contract_gradients(linearization, plan, state, weights, terms):
    kept_below, kept_above, v, w, v_measured, w_measured, U, V = state
    factor = (2 * weights).to(U.dtype).view(-1, 1, 1)
    U, V = U * factor, V * factor
    if plan.bottom:
        add_gram_gradient(linearization, plan.bottom, terms, [(mix(U, v), v)], transposed=False)
    if plan.top != linearization.graph.seed:
        add_gram_gradient(linearization, linearization.graph.seed, terms, [(mix(V, w), w)], transposed=True)
    if plan.cut != plan.bottom:
        linearization.push({plan.bottom: mix(U, v_measured)}, cotangents=kept_below, terms=terms)
    if plan.cut != plan.top:
        linearization.pull({plan.top: mix(V, w_measured)}, plan.cut, tangents=kept_above, terms=terms)


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """``<a^i, b^j>`` of each sample for stacks ``[n, B, ...]``: ``[B, n, n]``, at least in float32."""
    a, b = (elements(stack).to(at_least_single(stack.dtype)) for stack in (a, b))
    return a.permute(1, 0, 2) @ b.permute(1, 2, 0)


def mix(M: Tensor, stack: Tensor) -> Tensor:
    """``sum_j M_ij stack^j`` of each sample: ``M [B, n, n]``, stack ``[n, B, ...]``, in the stack's dtype."""
    members = elements(stack).transpose(0, 1).to(M.dtype)  # [B, n, d]
    if not has_numbers(M):  # tracers lose the layout of what is written to a view
        return torch.bmm(M, members).transpose(0, 1).reshape(stack.shape).to(stack.dtype)
    mixed = M.new_empty(stack.shape)
    torch.bmm(M, members, out=elements(mixed).transpose(0, 1))
    return mixed.to(stack.dtype)


# The ends: the identity at the input and the output, Gram matrices at the first and the last layer.


def bottom_metric(linearization: Linearization, plan: Plan) -> Callable[[Tensor], Tensor]:
    """What measures cotangents of `plan.bottom`: ``W W^T`` or the identity."""
    if plan.bottom == 0:
        return _identity
    weight = weight_of(linearization, plan.bottom)
    metric = gram(weight)
    return lambda u: u @ metric


def top_metric(linearization: Linearization, plan: Plan) -> Callable[[Tensor], Tensor]:
    """What measures tangents of `plan.top`: ``W^T W`` or the identity."""
    if plan.top == linearization.graph.seed:
        return _identity
    weight = weight_of(linearization, linearization.graph.seed)
    metric = gram(weight.t())
    return lambda w: w @ metric


def _identity(stack: Tensor) -> Tensor:
    return stack


def add_gram_gradient(
    linearization: Linearization, i: int, terms: Terms, pairs: Iterable[tuple[Tensor, Tensor]], *, transposed: bool
) -> None:
    """Add the gradient of ``1/2 sum <weighted, stack G>`` for ``G = W W^T`` (or ``W^T W``, transposed) of node i.

    The sum is over pairs ``(weighted, stack)`` for which ``weighted^T stack`` is symmetric.
    """
    gradients = terms.of(linearization.graph.nodes[i])
    if not gradients.wants(0):
        return
    M = symmetric_sum((weighted.flatten(0, -2).t(), stack.flatten(0, -2)) for weighted, stack in pairs)
    weight = weight_of(linearization, i)
    gradients.add(0, lambda: weight @ M if transposed else M @ weight)


def symmetric_sum(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``sum a b`` of pairs ``a [n, r]``, ``b [r, n]`` whose products are symmetric: half the blocks give the others."""
    pairs = iter(pairs)
    a, b = next(pairs)
    if not has_numbers(a):  # compiled, each write to a block would copy the whole matrix
        return sum(starmap(_symmetric_product, pairs), _symmetric_product(a, b))
    total = a.new_zeros(len(a), len(a))
    for left, right in chain([(a, b)], pairs):
        _add_below(total, left, right)
    _mirror(total)
    return total


def _symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` from the blocks on and below the diagonal."""
    half = len(a) // 2
    if half < SMALLEST_BLOCK:
        return a @ b
    below = a[half:] @ b[:, :half]
    upper = torch.cat((_symmetric_product(a[:half], b[:, :half]), below.t()), 1)
    return torch.cat((upper, torch.cat((below, _symmetric_product(a[half:], b[:, half:])), 1)))


def _add_below(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b`` to the blocks on and below the diagonal."""
    half = len(total) // 2
    if half < SMALLEST_BLOCK:
        total.addmm_(a, b)
        return
    _add_below(total[:half, :half], a[:half], b[:, :half])
    _add_below(total[half:, half:], a[half:], b[:, half:])
    total[half:, :half].addmm_(a[half:], b[:, :half])


def _mirror(total: Tensor) -> None:
    """Copy the blocks below the diagonal to above it."""
    half = len(total) // 2
    if half >= SMALLEST_BLOCK:
        _mirror(total[:half, :half])
        _mirror(total[half:, half:])
        total[:half, half:] = total[half:, :half].t()


def gram(weight: Tensor) -> Tensor:
    """``W W^T``."""
    return symmetric_sum([(weight, weight.t())])


def weight_of(linearization: Linearization, i: int) -> Tensor:
    """The weight of the fully connected layer at node i."""
    return linearization.parameters[i][0]


# One hidden layer: s^T ((W1 W1^T) o (W2^T W2)) s with s = phi'(z).


def _closed_form(linearization, plan):
    first, last = weight_of(linearization, plan.bottom), weight_of(linearization, linearization.graph.seed)
    activation, saved = linearization.graph.nodes[plan.top].rule, linearization.saved[plan.top]
    slope = activation.slope(saved, first.new_ones(()).expand(linearization.shapes[plan.bottom]))  # [B, n]
    below, above = gram(first), gram(last.t())  # [n, n]
    product = slope @ (below * above)  # [B, n]
    return dot_samples(slope.unsqueeze(0), product.unsqueeze(0)).clamp_min(0), (slope, product, below, above)


def _closed_form_gradients(linearization, plan, state, weights, terms):
    slope, product, below, above = state
    graph = linearization.graph
    first, last = weight_of(linearization, plan.bottom), weight_of(linearization, graph.seed)
    activation = graph.nodes[plan.top].rule
    below_gradients, above_gradients = terms.of(graph.nodes[plan.bottom]), terms.of(graph.nodes[graph.seed])
    if below_gradients.wants(0) or above_gradients.wants(0):
        scaled = scale_samples(slope.unsqueeze(0), 2 * weights).squeeze(0)
        M = symmetric_sum([(scaled.t(), slope)])  # [n, n]
        below_gradients.add(0, lambda: (M * above) @ first)
        above_gradients.add(0, lambda: last @ (M * below))
    if terms.needs.meeting[plan.top] and not activation.curvature_free:
        below = slope.unsqueeze(0) if activation.meets_below else None
        terms.add_second(plan.top, (scale_samples(product.unsqueeze(0), 2 * weights, below).squeeze(0),))
