"""What the primitives' autograd functions share: what to save, what is asked for, and what cannot be differentiated."""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

from gradreg_fast.engine import Linearization
from gradreg_fast.graph import Graph
from gradreg_fast.rules.base import is_channels_last

TWICE = (
    "gradreg_fast: this gradient is a closed form and cannot be differentiated again; for third derivatives use "
    "torch.autograd.grad(model(x), x, cotangent, create_graph=True), which gives the same numbers"
)

TRANSFORMED = (
    "gradreg_fast: torch.func's grad, vmap, jvp and their like, and forward-mode differentiation, cannot follow a "
    "closed form; use torch.autograd.grad or backward, also with functional_call(WithPenalty(model, penalty), "
    "parameters, (x,)), which vmap may map over stacked parameters; for a directional derivative, the gradient's "
    "product with the direction"
)


def closed_form(backward):
    """Run a backward without recording it; what it returns raises when it is differentiated again."""

    @wraps(backward)
    def wrapper(ctx, *adjoints):
        if not torch.is_grad_enabled():
            return backward(ctx, *adjoints)
        sources = [t for t in (*adjoints, *ctx.saved_tensors) if t is not None and t.requires_grad]
        with torch.no_grad():
            gradients = backward(ctx, *adjoints)
        present = [g for g in gradients if g is not None]
        once = iter(_Once.apply(len(present), *present, *sources) if present else ())
        return tuple(None if g is None else next(once) for g in gradients)

    return wrapper


class _Once(torch.autograd.Function):
    """Gradients that depend on their sources and raise when they are differentiated."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *adjoints):
        raise RuntimeError(TWICE)


def differentiable(tensor: Tensor | None) -> bool:
    """Whether anybody may ask for this tensor's gradient."""
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def transformed(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation follows one of these tensors."""
    forward = forward_ad._current_level >= 0
    if not forward and functorch.peek_interpreter_stack() is None:
        return False
    return any(
        functorch.is_functorch_wrapped_tensor(tensor)
        or (forward and forward_ad.unpack_dual(tensor).tangent is not None)
        for tensor in tensors
        if isinstance(tensor, Tensor)
    )


def refuse_transforms(tensors: Iterable[Tensor | None]) -> None:
    """Raise where `transformed`."""
    if transformed(tensors):
        raise RuntimeError(TRANSFORMED)


def wanted_now(tensors: list) -> tuple[bool, ...]:
    """For each tensor, whether anybody may ask for its gradient."""
    return tuple(map(differentiable, tensors))


def requested(ctx, first: int) -> list[bool]:
    """For each argument from number `first` on, whether this very backward pass is asked for its gradient.

    `needs_input_grad` alone says yes to every parameter, also under ``torch.autograd.grad(loss, x)``.
    """
    edges = iter(ctx.next_functions)
    executes = [is_tensor and _executes(next(edges)[0]) for is_tensor in ctx.is_tensor]
    return [needed and runs for needed, runs in zip(ctx.needs_input_grad, executes, strict=True)][first:]


def _executes(node) -> bool:
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # the leaf that autograd.grad was asked for, or no backward pass that could tell
        return True


def laid_out_like(result: Tensor, x: Tensor) -> Tensor:
    """The result contiguous, unless x has its channels last: the rules choose their own layouts inside."""
    return result if is_channels_last(x) else result.contiguous()


def save(ctx, arguments: tuple, *state) -> None:
    """Save nested tensors the way that autograd checks, offloads and frees."""
    ctx.is_tensor = [isinstance(argument, Tensor) for argument in arguments]
    tensors: list[Tensor] = []
    ctx.state = _flatten(state, tensors, {})
    ctx.save_for_backward(*tensors)


def restore(ctx) -> tuple:
    """What `save` was given; unless the graph is retained, nobody else holds it, so that sweeps free as they go."""
    state = _unflatten(ctx.state, ctx.saved_tensors)
    ctx.maybe_clear_saved_tensors()
    return state


class _Place(int):
    """Stands for the saved tensor with this number."""

    __slots__ = ()


class _Linearization(NamedTuple):
    """A `Linearization` whose tensors are saved; `counts`: how many things each node keeps, -1 for no node."""

    graph: Graph
    shapes: list
    like: Tensor
    counts: list[int]
    state: tuple


_TENSORS = {Tensor, nn.Parameter}
_PLAIN = {bool, int, float, slice, type(None), torch.Size, torch.dtype}  # nothing to save in them


def _place_of(tensor: Tensor, tensors: list[Tensor], places: dict[int, _Place]) -> _Place:
    place = places.get(id(tensor))
    if place is None:
        place = places[id(tensor)] = _Place(len(tensors))
        tensors.append(tensor)
    return place


def _flatten(item, tensors: list[Tensor], places: dict[int, _Place]):
    kind = type(item)
    if kind is tuple or kind is list:
        return kind(
            [
                m if type(m) in _PLAIN
                else _place_of(m, tensors, places) if type(m) in _TENSORS
                else _flatten(m, tensors, places)
                for m in item
            ]
        )  # fmt: skip
    if isinstance(item, Tensor):
        return _place_of(item, tensors, places)
    if kind is dict:
        return dict(zip(item, _flatten([*item.values()], tensors, places), strict=True))
    if kind is Linearization:
        counts = [-1 if saved is None else len(saved) for saved in item.saved]
        members = [*chain.from_iterable(filter(None, item.saved))]  # of all nodes at once: there may be hundreds
        state = item.tensors, item.x, members
        return _Linearization(item.graph, item.shapes, item.like, counts, _flatten(state, tensors, places))
    return item


def _unflatten(item, tensors: tuple[Tensor, ...]):
    kind = type(item)
    if kind is _Place:
        return tensors[item]
    if kind is tuple or kind is list:
        return kind(
            [
                m if type(m) in _PLAIN
                else tensors[m] if type(m) is _Place
                else _unflatten(m, tensors)
                for m in item
            ]
        )  # fmt: skip
    if kind is dict:
        return dict(zip(item, _unflatten([*item.values()], tensors), strict=True))
    if kind is _Linearization:
        of_slots, x, members = _unflatten(item.state, tensors)
        members = iter(members)
        saved = [None if count < 0 else tuple(islice(members, count)) for count in item.counts]
        return Linearization(item.graph, of_slots, saved, item.shapes, item.like, x)
    return item
