"""How a model is called: which of its arguments are differentiated, which are only given, what of its result counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradreg_fast.rules.part import Part
from gradreg_fast.undo import undone_on_error

NONE: tuple = ()
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format)


class Place(NamedTuple):
    """Stands for a tensor among the arguments: number `index` of those differentiated, or of those given."""

    index: int
    differentiated: bool


@dataclass(frozen=True)
class Signature:
    """A call's form.

    Attributes:
        args: positional arguments, a `Place` for each tensor.
        kwargs: keyword arguments, likewise.
        output: what of the model's result counts; see `select`.
        shapes: of a sample of each differentiated tensor where there are several: they are one, side by side.
        given: number of tensors that are not differentiated.
    """

    args: tuple
    kwargs: dict
    output: object = None
    shapes: tuple[torch.Size, ...] = ()
    given: int = 0

    @cached_property
    def key(self) -> tuple | None:
        """What tells it from other signatures; None if it holds objects that may change without notice."""
        try:
            return _frozen(self.args), _frozen(self.kwargs), self.output, self.shapes
        except TypeError:
            return None

    @cached_property
    def parts(self) -> list[Part]:
        """What makes each differentiated tensor from ``[rows, elements of all]``; empty if there is only one."""
        starts = [0]
        for shape in self.shapes:
            starts.append(starts[-1] + shape.numel())
        return [Part(start, shape) for start, shape in zip(starts, self.shapes, strict=False)]

    def call(self, model: Callable, differentiated: Sequence, given: Sequence) -> object:
        """``model(*args, **kwargs)`` with these in the places of the tensors, and what counts of its result."""

        def put(place):
            return (differentiated if place.differentiated else given)[place.index]

        return select(model(*substituted(self.args, put), **substituted(self.kwargs, put)), self.output)

    def split(self, x: Tensor) -> list[Tensor]:
        """The differentiated tensors from one: x itself, or its parts."""
        return [part(x) for part in self.parts] or [x]


ONE_TENSOR = Signature((Place(0, True),), {})
"""``model(x)``."""


@dataclass(frozen=True)
class Bound:
    """A model with its arguments, in the place of a model that takes one tensor.

    Attributes:
        model: the network.
        signature: of the call.
        given: the tensors that are not differentiated.
    """

    model: nn.Module
    signature: Signature
    given: list[Tensor]

    def buffers(self) -> Iterator[Tensor]:
        """The model's."""
        return self.model.buffers()

    def __call__(self, x: Tensor) -> object:
        """What counts of the model's result, by autograd."""
        return self.signature.call(self.model, self.signature.split(x), self.given)


def callable_with(gradient_like_x: bool = False) -> Callable:
    """Give a function of a model and x the means to call models of every kind.

    x may be a tuple of tensors (the model's first arguments) or a dictionary of them (arguments by name); these must
    have one batch, dtype and device, and are differentiated together. The further keyword arguments of the function are

    - ``model_args`` and ``model_kwargs``: the model's other arguments, behind x and by name. They are not penalised;
      gradients reach the tensors among them;
    - ``output``: which of the model's results counts, if it returns several: an index, a key or an attribute, or a
      tuple of these, one after the other.

    Args:
        gradient_like_x: the function returns a pair whose second member is shaped like x.
    """

    def decorate(function):
        plain = inspect.signature(function)
        name = list(plain.parameters)[1]

        @wraps(function)
        @undone_on_error
        def wrapper(*args, output=None, model_args=NONE, model_kwargs=None, **kwargs):
            x = args[1] if len(args) > 1 else kwargs.get(name)
            several = isinstance(x, (tuple, dict)) and not isinstance(x, torch.Size)
            if output is None and model_args is NONE and model_kwargs is None and not several:
                return function(*args, **kwargs)
            arguments = plain.bind(*args, **kwargs).arguments
            model, x = arguments.pop("model"), arguments.pop(name)
            bound, joint = bind_call(model, x, name, output, model_args, model_kwargs or {})
            others = {key: joined(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
            result, value = function(bound, joint, **others)
            if gradient_like_x and several:
                parts = bound.signature.split(value)
                value = tuple(parts) if isinstance(x, tuple) else dict(zip(x, parts, strict=True))
            return result, value

        further = [
            inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="object"),
            inspect.Parameter("model_args", inspect.Parameter.KEYWORD_ONLY, default=NONE, annotation="tuple"),
            inspect.Parameter("model_kwargs", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="dict | None"),
        ]
        wrapper.__signature__ = plain.replace(parameters=[*plain.parameters.values(), *further])
        return wrapper

    return decorate


def bind_call(
    model: nn.Module, x: object, name: str, output: object, args: Sequence, kwargs: Mapping
) -> tuple[Bound, Tensor]:
    """The model with its arguments, and what is differentiated as one tensor; as `callable_with` has them.

    Raises:
        TypeError: if the model, x or an argument is not what it must be.
        ValueError: if the members of x do not fit together.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"model_args must be a tuple of the model's other arguments, got {type(args).__name__}")
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"model_kwargs must be a dictionary of arguments by name, got {type(kwargs).__name__}")
    if not all(isinstance(step, (str, int)) for step in (output if isinstance(output, tuple) else (output or 0,))):
        raise TypeError(f"output must be an index, a name or a tuple of these, got {output!r}")
    named = x if isinstance(x, dict) else {}
    placed = x if isinstance(x, tuple) else () if named else (x,)
    members = [*placed, *named.values()]
    for member in members:
        if not isinstance(member, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor or a tuple or dictionary of them, got {type(member).__name__}"
            )
        if not member.is_floating_point():
            raise TypeError(f"{name} must have a real floating-point dtype, got {member.dtype}")
    if not members or len({*map(id, members)}) < len(members):
        raise ValueError(f"{name} must hold one tensor or more, each once")

    def is_member(tensor):
        return any(tensor is member for member in members)

    signature, joint, given = bind((*placed, *args), {**named, **kwargs}, is_member, output)
    return Bound(model, signature, given), joint


def bind(
    args: tuple, kwargs: dict, differentiated: Callable[[Tensor], bool], output: object = None
) -> tuple[Signature, Tensor | None, list[Tensor]]:
    """The signature of a call, the tensors to differentiate as one, and the other tensors.

    Raises:
        ValueError: if there are several to differentiate and they do not have the same batch, dtype and device.
    """
    given: list[Tensor] = []
    xs: list[Tensor] = []

    def place(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        found = xs if differentiated(leaf) else given
        known = [i for i, other in enumerate(found) if other is leaf]
        if not known:
            found.append(leaf)
        return Place(known[0] if known else len(found) - 1, found is xs)

    args, kwargs = substituted(args, place, object), substituted(kwargs, place, object)
    shapes = tuple(x.shape[1:] for x in xs) if len(xs) > 1 else ()
    return Signature(args, kwargs, output, shapes, len(given)), joined(xs), given


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors ``[B, ...]`` as one: a single one as it is, several side by side, ``[B, elements of all]``."""
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    first = tensors[0]
    for x in tensors:
        if x.dim() == 0 or x.shape[:1] != first.shape[:1] or x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"x must have the same batch, dtype and device in all its tensors, got {tuple(x.shape)}, {x.dtype} on "
                f"{x.device} beside {tuple(first.shape)}, {first.dtype} on {first.device}"
            )
    return torch.cat([x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in tensors], 1)


def select(result: object, output: object) -> object:
    """What counts of a model's result: all of it (None), an item or attribute, or that of one (a tuple of them)."""
    for step in () if output is None else output if isinstance(output, tuple) else (output,):
        try:
            if isinstance(step, str) and not isinstance(result, Mapping) and hasattr(result, step):
                result = getattr(result, step)
            else:
                result = result[step]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"output must select from what the model returns, got {output!r}: {error!r}") from error
    return result


def substituted(nested: object, function: Callable, kind: type = Place) -> object:
    """Nested tuples, lists and dictionaries with `function` applied to each leaf of a kind."""
    if kind is not object and isinstance(nested, kind):
        return function(nested)
    if isinstance(nested, dict):
        return type(nested)((key, substituted(member, function, kind)) for key, member in nested.items())
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(substituted(member, function, kind) for member in nested))
    if type(nested) in (tuple, list):
        return type(nested)(substituted(member, function, kind) for member in nested)
    return function(nested) if isinstance(nested, kind) else nested


def _frozen(nested: object) -> object:
    if isinstance(nested, (Place, *_PLAIN)):
        return type(nested), nested
    if type(nested) in (tuple, list, torch.Size):
        return type(nested), tuple(map(_frozen, nested))
    if type(nested) is dict:
        return dict, tuple((key, _frozen(member)) for key, member in nested.items())
    raise TypeError
