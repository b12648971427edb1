"""From what a model calls to rules: the tables, and what their entries receive and return.

`FUNCTIONS` maps a function, or a method's name, to an entry with that function's own signature; `MODULES` maps a module
type (exactly that type: a subclass may do something else) to an entry called with the module, its input and a lookup
of its parameters and buffers by name; `NAMED` has other libraries' modules by full name. An entry returns a `Call`,
`Several` of them, or a string: why there is no rule for this use. In the arguments, a `Value` stands for a tensor that
depends on the network's input, a `Parameter` for a parameter or buffer, a `Plain` for what is computed on the way and
has no derivative: a size, a mask. An entry that makes nothing of a `Plain` is called again with a `Parameter` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Number
from operator import itemgetter

from torch import nn

from gradreg_fast.rules.base import Rule


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the network's input, by its number in the graph."""

    index: int


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer, by its slot."""

    slot: int


@dataclass(frozen=True)
class Plain:
    """What the graph computes without a derivative (a size, a mask, an index), by its number in the graph."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """A rule and what it is applied to.

    Attributes:
        rule: the operation.
        inputs: `Value` objects, or further `Call` objects whose results are the inputs.
        parameters: `Parameter` objects or None.
        extras: `Plain` objects, and `Value` objects of which the rule reads no more than the size and the dtype.
        updated: `Parameter` objects or None: buffers that the forward changes, given to it behind the extras.
    """

    rule: Rule
    inputs: Sequence[Value | Call]
    parameters: Sequence[Parameter | None] = ()
    extras: Sequence[Plain] = ()
    updated: Sequence[Parameter | None] = ()

    def all_calls(self) -> Iterator[Call]:
        """This call and those below it."""
        yield self
        for value in self.inputs:
            if isinstance(value, Call):
                yield from value.all_calls()


class Constant:
    """What an entry returns for a call whose result has no derivative."""


@dataclass(frozen=True, eq=False)
class Several:
    """A call that returns several tensors, of which the model takes some by number or by name.

    Attributes:
        member: gives the `Call` of a number or a name, or a string that says why it has none.
        call: one of them, for its arguments.
    """

    member: Callable[[int | str], Call | str]
    call: Call


FUNCTIONS: dict[Callable | str, Callable[..., Call | Several | Constant | str]] = {}
MODULES: dict[type[nn.Module], Callable[..., Call | Several | str]] = {}
NAMED: dict[str, Callable[..., Call | Several | str]] = {}


def function(*targets: Callable | str) -> Callable:
    """Register an entry for functions, and for methods by name."""

    def register(entry):
        FUNCTIONS.update(dict.fromkeys(targets, entry))
        return entry

    return register


def module(*types: type[nn.Module] | str) -> Callable:
    """Register an entry for modules; those of other libraries by their full names."""

    def register(entry):
        for kind in types:
            (NAMED if isinstance(kind, str) else MODULES)[kind] = entry
        return entry

    return register


def entry_of(kind: type[nn.Module]) -> Callable[..., Call | Several | str] | None:
    """The entry of a type of modules, if there is one."""
    return MODULES.get(kind) or NAMED.get(f"{kind.__module__}.{kind.__qualname__}")


def submodule(layer: nn.Module, name: str, parameter: Callable, *inputs, **settings) -> Call | Several | str:
    """What the entry of a layer's submodule makes of these inputs.

    Raises:
        LookupError: if it has none.
    """
    child = getattr(layer, name)
    entry = entry_of(type(child))
    if entry is None:
        raise LookupError(f"its {name} has no rule")
    return entry(child, *inputs, parameter=lambda of, *function: parameter(f"{name}.{of}", *function), **settings)


def each(setting, dims: int) -> list[int]:
    """A number for each dimension, or the given ones."""
    return [setting] * dims if isinstance(setting, (int, float)) else list(setting)


def is_real(argument) -> bool:
    """Whether an argument is a plain real number."""
    return isinstance(argument, Number) and not isinstance(argument, complex)


def settle(target: Callable, arguments: tuple, keywords: dict) -> tuple[Callable, list[Plain | Value]]:
    """``target(x, *arguments, **keywords)`` as a function of x and of what the arguments hold; and what that is."""
    held = list(dict.fromkeys(collect((Plain, Value), (arguments, keywords))))
    if not held:
        return lambda x: target(x, *arguments, **keywords), held
    fill = filling((arguments, keywords), held)

    def settled(x, *extras):
        filled, filled_keywords = fill(extras)
        return target(x, *filled, **filled_keywords)

    return settled, held


def collect(kind: type | tuple[type, ...], nested):
    """All objects of one type, or of several, in nested tuples, lists, slices and dictionaries."""
    if isinstance(nested, kind):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for member in nested:
            yield from collect(kind, member)
    elif isinstance(nested, dict):
        yield from collect(kind, list(nested.values()))
    elif isinstance(nested, slice):
        yield from collect(kind, [nested.start, nested.stop, nested.step])


def filling(nested, held: Sequence) -> Callable[[Sequence], object]:
    """A function of values that returns nested tuples, lists, slices and dictionaries with these for what is held."""
    if isinstance(nested, (Value, Parameter, Plain)):
        return itemgetter(held.index(nested)) if nested in held else lambda values: nested
    if isinstance(nested, (tuple, list)):
        kind, parts = type(nested), [filling(member, held) for member in nested]
        return lambda values: kind([part(values) for part in parts])
    if isinstance(nested, dict):
        named = {key: filling(member, held) for key, member in nested.items()}
        return lambda values: {key: part(values) for key, part in named.items()}
    if isinstance(nested, slice):
        bounds = filling((nested.start, nested.stop, nested.step), held)
        return lambda values: slice(*bounds(values))
    return lambda values: nested
