"""From an `nn.Module` to a `Graph`, by symbolic tracing; a node that has no rule is left to autograd."""

from __future__ import annotations

import inspect
import operator
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import checkpoint

from gradreg_fast.autocast import regions
from gradreg_fast.fuse import fuse
from gradreg_fast.graph import Computed, Given, Graph, Node, PlainValue, Reweighted, Slot, Upstream, slot_of
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.rules.registry import (
    FUNCTIONS,
    Call,
    Constant,
    Parameter,
    Plain,
    Several,
    Value,
    collect,
    entry_of,
    filling,
)
from gradreg_fast.signature import Signature
from gradreg_fast.sizes import Made, Sizes
from gradreg_fast.snapshot import has_hooks, reweighted
from gradreg_fast.wrappers import wrapper_in

_converting = threading.RLock()  # fx patches `nn.Module` for the whole process while it traces
if hasattr(os, "register_at_fork"):  # nor may a child begin in the middle of that
    os.register_at_fork(
        before=_converting.acquire, after_in_parent=_converting.release, after_in_child=_converting.release
    )

_IN_PLACE_OPERATORS = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ipow,
    operator.imatmul,
)
_SEVERAL = {"chunk", "split", "tensor_split", "unbind", "hsplit", "vsplit", "dsplit", "topk", "sort", "aminmax"}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NEW = {"new_zeros", "new_ones", "new_full"}
_FRESH = {"new_empty", *_NEW, torch.empty_like, torch.zeros_like, torch.ones_like}
_FRESH |= {torch.empty, torch.zeros, torch.ones, torch.full, torch.full_like}
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # what they return is new, too
_OPENED = {
    f"torchvision.models.swin_transformer.{name}" for name in ("_patch_merging_pad", "shifted_window_attention")
}  # functions that fx is told to keep whole, as they branch on sizes: our graphs may be for one size
_SIZES = {"size", "dim", "numel", "ndimension", "shape", "ndim", "dtype", "device"}


class Untraceable(Exception):
    """The model cannot become a graph; says why.

    Attributes:
        for_all_sizes: there may be one for inputs of known sizes.
    """

    def __init__(self, reason: str, for_all_sizes: bool = False) -> None:
        super().__init__(reason)
        self.for_all_sizes = for_all_sizes


def trace(model: nn.Module, signature: Signature, hooks: bool, examples: tuple | None = None) -> Graph:
    """The graph of a model as it is now.

    Args:
        model: the network; it and all random states are left as they were.
        signature: how it is called.
        hooks: whether the call runs the model's own hooks, or they are run elsewhere.
        examples: the input and the list of the further arguments; the graph is for tensors of their sizes, which its
            forward may then ask for. None: for all sizes.

    Raises:
        Untraceable: if there is none.
    """
    reason = why_opaque(model) if hooks else None
    if reason:
        raise Untraceable(reason)
    wrapper = wrapper_in(model)
    if wrapper:
        raise Untraceable(f"it has a {wrapper} in it, which must see its own forward")
    if examples is not None and any(map(has_hooks, model.modules())):
        raise Untraceable("it has hooks, and asks for sizes")
    with _converting, _everything_restored(model):
        with _opened() as opened:
            try:
                return _traced(model, signature, hooks, examples)
            except Untraceable:
                if examples is None or not opened:
                    raise
        return _traced(model, signature, hooks, examples)


def _traced(model: nn.Module, signature: Signature, hooks: bool, examples: tuple | None) -> Graph:
    try:
        root = _Root(model, signature, hooks)
        tracer = _Tracer(root, examples)
        with tracer.made:
            traced = tracer.trace(root)
        if any(name.startswith("_tensor_constant") for name in vars(tracer.root)):
            raise Untraceable("its forward makes tensors")
        return fuse(_Converter(root).convert(traced))
    except Untraceable:
        raise
    except Exception as error:  # whatever a user's forward does with symbols; autograd will show real errors
        reason = f"it cannot be traced ({type(error).__name__}: {error})"
        raise Untraceable(reason, for_all_sizes=examples is None) from error


def why_opaque(module: nn.Module) -> str | None:
    """Why autograd must run this module as a whole, whatever its type: None if it need not."""
    if has_hooks(module) and not (rule_type(module) and reweighted(module)):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script"
    return None


def rule_type(module: nn.Module) -> type[nn.Module] | None:
    """The type by which rules are known for this module: its own, or that which was parametrised; None without one."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__base__
    return kind if entry_of(kind) else None


@contextmanager
def _everything_restored(model: nn.Module) -> Iterator[None]:
    """Undo what a forward of symbols did to the model and to random states.

    Raises:
        Untraceable: if it did anything.
    """
    states = _random_states()
    spaces = [
        space
        for module in model.modules()
        for space in (vars(module), module._parameters, module._buffers, module._modules)
    ]
    before = [(space, dict(space)) for space in spaces]
    changed = False
    try:
        yield
    finally:
        drawn = _random_states() != states
        if drawn:
            _restore_random_states(states)
        for space, items in before:
            if len(space) != len(items) or any(space.get(name) is not value for name, value in items.items()):
                changed = True
                space.clear()
                space.update(items)
    if drawn:
        raise Untraceable("its forward draws random numbers")
    if changed:
        raise Untraceable("its forward sets attributes")


@contextmanager
def _opened() -> Iterator[bool]:
    """Let fx trace through the functions in `_OPENED`; whether there are any."""
    wrapped = fx._symbolic_trace._wrapped_fns_to_patch
    functions = {key: space.get(key[1]) for key, space in wrapped.items()}
    opened = {
        key: wrapped.pop(key)
        for key, function in functions.items()
        if f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}" in _OPENED
    }
    try:
        yield bool(opened)
    finally:
        wrapped.update(opened)


def with_parameters(model: nn.Module, parameters: dict[str, Tensor], function: Callable) -> object:
    """``function(model)``, with these tensors in the places of its parameters meanwhile."""
    named = {f"model.{name}": tensor for name, tensor in parameters.items()}
    return torch.func.functional_call(_Caller(model), named, (function,))


class _Caller(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function):
        return function(self.model)


class _Root(nn.Module):
    """Holds the model, so that the model itself is a module call like any other."""

    def __init__(self, model: nn.Module, signature: Signature, hooks: bool) -> None:
        super().__init__()
        self.model = model
        self.signature = signature
        self.hooks = hooks
        self.made: dict[str, Tensor] = {}

    def forward(self, differentiated, given):
        call = self.model if self.hooks or not has_hooks(self.model) else self.model.forward
        count = max(1, len(self.signature.shapes))
        xs = [differentiated[i] for i in range(count)]
        return self.signature.call(call, xs, [given[i] for i in range(self.signature.given)])


class _Proxy(fx.Proxy):
    """Keeps ``x += y`` what it is; fx alone would record a sum, and other names of x would miss the change."""


def _recorded(operation: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


for _operation in _IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_operation.__name__}__", _recorded(_operation))


class _SizedProxy(_Proxy):
    """Knows the size of the value that it stands for."""

    def __getattr__(self, name: str) -> fx.Proxy:
        if name in ("T", "mT", "H", "mH"):  # an attribute of fx would not know its size
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name in _NEW:  # a tensor of numbers alone, into which the forward may write
            like = self.tracer.stand_in(self.node)
            return getattr(torch.empty(0, dtype=like.dtype, device=like.device), name)
        return super().__getattr__(name)

    @property
    def shape(self) -> torch.Size:
        return self.size()

    @property
    def ndim(self) -> int:
        return self.dim()

    def size(self, *dim, **keywords) -> torch.Size | int:
        return self.tracer.stand_in(self.node).size(*dim, **keywords)

    def dim(self) -> int:
        return self.tracer.stand_in(self.node).dim()

    def numel(self) -> int:
        return self.tracer.stand_in(self.node).numel()

    def __len__(self) -> int:
        return len(self.tracer.stand_in(self.node))


class _Tracer(fx.Tracer):
    """Stops at modules with a rule, at PyTorch's own and at those that must stay whole; sees one thread only."""

    proxy_buffer_attributes = True  # a forward that asks for a buffer's value cannot be traced

    def __init__(self, root: _Root, examples: tuple | None = None) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.made = Made()
        self.sizes = None
        if examples is not None:
            x, given = examples
            self.sizes = Sizes((root.signature.split(x), list(given)))
        self.model = root.model
        self.hooks = root.hooks
        self.regions = regions()

    def create_node(self, *arguments, **keywords) -> fx.Node:
        if regions() != self.regions:
            raise Untraceable("it switches autocast")
        frame = sys._getframe()
        while frame and frame.f_code is not trace.__code__:  # beyond, somebody else's checkpoint is around the call
            if frame.f_code.co_filename == checkpoint.__file__:
                raise Untraceable("it uses torch.utils.checkpoint")
            frame = frame.f_back
        return super().create_node(*arguments, **keywords)

    def stand_in(self, node: fx.Node) -> object:
        """What has the size of a node's value."""
        self.thread = None  # nothing is recorded meanwhile
        try:
            return self.sizes.of(node, self.root, self.root.made)
        except AttributeError as error:  # which would send Python to the proxy's own attributes
            raise TypeError(str(error)) from error
        finally:
            self.thread = threading.get_ident()

    def create_arg(self, a: object) -> object:
        if isinstance(a, Tensor) and a in self.made:
            name = f"_made_{len(self.root.made)}"
            self.root.made[name] = a.clone()
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (_Proxy if self.sizes is None else _SizedProxy)(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if module is self.model and not self.hooks and has_hooks(module):
            return False
        if rule_type(module) or why_opaque(module):
            return True
        if type(module) in _CONTAINERS:
            return False
        return type(module).__module__.startswith(("torch.nn", "torch.ao", "torch._dynamo", "torch.distributed"))


class _Converter:
    """Builds a graph from a traced model."""

    def __init__(self, root: _Root) -> None:
        self.root = root
        self.nodes: list[Node | None] = [None]
        self.slots: dict[tuple[int, str], int] = {}
        self.computed: dict[Plain, Parameter] = {}
        self.names: dict[fx.Node, list[fx.Node]] = {}  # of a tensor that was changed in place: all that stand for it
        self.slot_list: list[Slot | Given | Upstream | Computed] = []
        self.changing: list[weakref.ref[nn.Module]] = []
        self.learned: set[int] = set()  # slots of what modules with parameters make
        self.counters: set[int] = set()
        self.environment: dict[fx.Node, object] = {}
        self.position: dict[fx.Node, int] = {}

    def convert(self, traced: fx.Graph) -> Graph:
        self.position = {node: position for position, node in enumerate(traced.nodes)}
        inputs = iter((self.differentiated(), self.given()))
        for node in traced.nodes:
            if node.op == "placeholder":
                self.environment[node] = next(inputs)
            elif node.op == "output":
                output = _replace(node.args[0], self.environment)
            elif node.target is operator.getitem and not node.users:  # of a tuple unpacked into names
                continue
            elif node.target in self.root.made:
                self.environment[node] = self.slot(Upstream(partial(_same, self.root.made[node.target]), ()))
            elif node.op == "get_attr":
                self.environment[node] = self.parameter(node.target)
            else:
                self.environment[node] = self.call(node)
        values = {*collect(Value, output)}
        if len(values) != 1 or any(True for kind in (Parameter, Plain) for _ in collect(kind, output)):
            raise Untraceable("it must return one tensor that depends on its input")
        (value,) = values
        if self.counters & {slot for node in self.nodes[1:] for slot in (*node.slots, *node.updated)}:
            raise Untraceable("it changes a buffer in place that the layers read")
        structure = None if output is value else _ordinary(output)
        nodes, slots, changing = tuple(self.nodes), tuple(self.slot_list), tuple(self.changing)
        graph = Graph(nodes, slots, value.index, value.index, changing, structure=structure)
        if not graph.dependent[value.index]:
            raise Untraceable("it must return one tensor that depends on its input")
        return graph

    def differentiated(self) -> list[Value]:
        """The input, or its parts."""
        parts = self.root.signature.parts
        for i, part in enumerate(parts):
            self.nodes.append(Node(f"input_{i}", part, (0,)))
        return [Value(i + 1) for i in range(len(parts))] or [Value(0)]

    def given(self) -> list[Parameter]:
        """The further arguments."""
        return [self.slot(Given(i)) for i in range(self.root.signature.given)]

    def own(self, module: str, name: str, function: Callable | None = None) -> Parameter | None:
        """A module's parameter or buffer, or what a function makes of it."""
        found = self.parameter(f"{module}.{name}")
        return found if function is None or found is None else self.slot(Upstream(function, (found.slot,)))

    def slot(self, slot: Slot | Given | Upstream | Computed) -> Parameter:
        """A new slot."""
        self.slot_list.append(slot)
        return Parameter(len(self.slot_list) - 1)

    def parameter(self, name: str) -> Parameter | None:
        """The slot of a parameter or buffer by its dotted name; None where there is none."""
        slot = slot_of(self.root, name)
        owner = slot.owner()
        if slot.attribute in reweighted(owner):
            self.changing.append(slot.owner)
            return self.slot(Reweighted(slot.owner, slot.attribute))
        if parametrize.is_parametrized(owner, slot.attribute):  # looking it up may change buffers
            self.changing.append(slot.owner)
            return self.slot(slot)
        tensor = slot.tensor()
        if tensor is None:
            return None
        if not isinstance(tensor, Tensor):
            raise Untraceable(f"its attribute {name} is used as a tensor")
        key = (id(owner), slot.attribute)
        if key not in self.slots:
            self.slots[key] = self.slot(slot).slot
        return Parameter(self.slots[key])

    def readings(self, arguments: tuple, keywords: dict) -> Iterator[tuple]:
        """The arguments as they are, and with the plain values among them in the places of parameters."""
        yield arguments, keywords
        plains = list(dict.fromkeys(collect(Plain, (arguments, keywords))))
        for plain in plains:
            if plain not in self.computed:
                self.computed[plain] = self.slot(Computed(plain.index))
        if plains:
            yield filling((arguments, keywords), [*self.computed])([*self.computed.values()])

    def call(self, node: fx.Node):
        if node.kwargs.get("out") is not None or (node.args and self.is_made(node.args[0]) and self.mutates(node)):
            raise Untraceable(f"{node.name} changes something in place")
        arguments = _replace(node.args, self.environment)
        keywords = _replace(node.kwargs, self.environment)
        if node.target is operator.getitem and type(arguments[0]) is list:
            return arguments[0][arguments[1]]
        if hasattr(node.target, "_fields"):
            return node.target(*arguments, **keywords)
        if self.is_size(node):
            return self.plain(node, arguments, keywords)
        if not any(True for kind in (Value, Several) for _ in collect(kind, (arguments, keywords))):
            return self.upstream(node, arguments, keywords)
        if node.op == "call_module":
            module = self.root.get_submodule(node.target)
            result = self.module(node, module, arguments, keywords)
        else:
            result = self.function(node, arguments, keywords)
        if self.mutates(node):
            self.replace_mutated(node, result)
        return result

    def upstream(self, node: fx.Node, arguments, keywords) -> Value | Parameter | Plain:
        """A node that does not depend on the input's values."""
        parameters, plains = (list(dict.fromkeys(collect(kind, (arguments, keywords)))) for kind in (Parameter, Plain))
        mutates = self.mutates(node)
        if node.op != "call_module" and (not parameters or (plains and all(map(self.is_constant, parameters)))):
            if mutates and self.is_alias(node.args[0]):
                raise Untraceable(f"{node.name} changes something in place")
            return self.plain(node, arguments, keywords)
        fresh = mutates and self.is_fresh(node.args[0], node)
        if mutates and (plains or not fresh):
            self.note_counter(node, arguments[0])
        if plains:  # they are known on the way only: a node of the graph, without inputs
            reason = "it does not depend on the input"
            if node.op == "call_module":
                module = self.root.get_submodule(node.target)
                return self.opaque_module(node, module, reason, arguments, keywords)
            return self.opaque(node, reason, _callable(node), arguments, keywords)
        function, fill = self.callable(node), filling((arguments, keywords), parameters)

        def compute(*tensors):
            filled, filled_keywords = fill(tensors)
            if fresh:
                filled = (filled[0].clone(), *filled[1:])
            return function(*filled, **filled_keywords)

        result = self.slot(Upstream(compute, tuple(parameter.slot for parameter in parameters)))
        if node.op == "call_module" and any(True for _ in self.root.get_submodule(node.target).parameters()):
            self.learned.add(result.slot)
        if fresh:
            self.environment[node.args[0]] = result
        return result

    def is_constant(self, parameter: Parameter) -> bool:
        """Whether a tensor is a buffer, or made of buffers alone: nobody asks for its gradient."""
        slot = self.slot_list[parameter.slot]
        if isinstance(slot, Upstream):
            return parameter.slot not in self.learned and all(
                self.is_constant(Parameter(source)) for source in slot.sources
            )
        return type(slot) is Slot and slot.attribute in slot.owner()._buffers and not slot.tensor().requires_grad

    def is_alias(self, node: object) -> bool:
        """Whether a plain value may share memory with a value: it was detached."""
        while isinstance(node, fx.Node) and isinstance(self.environment.get(node), Plain):
            if node.target in ("detach", torch.detach):
                return True
            node = next(iter(node.args), None)
        return False

    def is_fresh(self, changed: object, node: fx.Node) -> bool:
        """Whether what a node changes in place was made for it: nobody has read more of it before than its size."""
        if not isinstance(changed, fx.Node):
            return False
        if changed.op == "call_module":
            new = type(self.root.get_submodule(changed.target)) in _PRODUCTS
        else:
            new = changed.target in _FRESH
        before = [user for user in changed.users if self.position[user] < self.position[node]]
        return new and all(map(self.is_size, before))

    def note_counter(self, node: fx.Node, changed: object) -> None:
        """A buffer that only what does not depend on the input may read, since that runs first (a count of batches)."""
        slot = self.slot_list[changed.slot] if isinstance(changed, Parameter) else None
        if type(slot) is not Slot or slot.attribute not in slot.owner()._buffers:
            raise Untraceable(f"{node.name} changes something in place")
        self.counters.add(changed.slot)
        self.changing.append(slot.owner)

    def callable(self, node: fx.Node) -> Callable:
        """What the node calls; a module is held weakly."""
        if node.op != "call_module":
            return _callable(node)
        reference = weakref.ref(self.root.get_submodule(node.target))
        self.changing.append(reference)
        return lambda *arguments, **keywords: reference()(*arguments, **keywords)

    def is_size(self, node: fx.Node) -> bool:
        """Whether the node reads a size of a value."""
        if node.op == "call_method":
            return node.target in _SIZES
        return node.target is getattr and node.args[1] in _SIZES

    def plain(self, node: fx.Node, arguments, keywords) -> Plain:
        """A node that makes a plain Python value from sizes, or from nothing."""
        function = _callable(node)
        values, plains, parameters = (
            list(dict.fromkeys(collect(kind, (arguments, keywords)))) for kind in (Value, Plain, Parameter)
        )
        fill = filling((arguments, keywords), [*values, *plains, *parameters])

        def compute(*extras):
            filled, filled_keywords = fill(extras)
            return function(*filled, **filled_keywords)

        slots = tuple(parameter.slot for parameter in parameters)
        extras = tuple(source.index for source in (*values, *plains))
        self.nodes.append(Node(node.name, PlainValue(compute), (), slots, extras))
        return Plain(len(self.nodes) - 1)

    def module(self, node: fx.Node, module: nn.Module, arguments, keywords) -> Value:
        kind, reason = rule_type(module), next(filter(None, map(why_opaque, module.modules())), None)
        if reason is None and kind is not None:
            own = partial(self.own, node.target)
            for given, named in self.readings(arguments, keywords):
                call = _entered(entry_of(kind), (module, *given), {**named, "parameter": own})
                if isinstance(call, str):
                    reason = reason or call
                elif _fits(call, (given, named), own=True):
                    return call if isinstance(call, Several) else self.emit(node, call)
        return self.opaque_module(node, module, reason or "no rule", arguments, keywords)

    def opaque_module(self, node: fx.Node, module: nn.Module, reason: str, arguments, keywords) -> Value:
        """A module that autograd runs, with the node's parameters for its own."""
        self.reject_tuple(node)
        names = [name for name, _ in module.named_parameters()]
        own = [self.parameter(f"{node.target}.{name}") for name in names]
        reason = f"{type(module).__name__}: {reason}"
        reference = weakref.ref(module)
        self.changing.append(reference)

        def call(*arguments, own, **keywords):
            parameters = dict(zip(names, own, strict=True))
            return with_parameters(reference(), parameters, lambda module: module(*arguments, **keywords))

        return self.opaque(node, reason, call, arguments, {**keywords, "own": own})

    def opaque(self, node: fx.Node, reason: str, function: Callable, arguments, keywords) -> Value:
        """A node that autograd runs; what it changes in place must reach no leaf, and nobody else's value."""
        values, parameters, plains = (
            list(dict.fromkeys(collect(kind, (arguments, keywords)))) for kind in (Value, Parameter, Plain)
        )
        mutates = self.mutates(node)
        may_mutate = mutates or node.op == "call_module"
        read_later = [] if mutates else [x for x in node.all_input_nodes if self.is_read_after(x, node)]
        kept = [i for i, x in enumerate(values) if any(self.environment[later] == x for later in read_later)]
        fill = filling((arguments, keywords), [*values, *parameters, *plains])

        def run(inputs, tensors, extras):
            inputs = [x.clone() if may_mutate else x for x in inputs[: len(values)]]
            filled, filled_keywords = fill((*inputs, *tensors, *extras))
            y = function(*filled, **filled_keywords)
            if may_mutate and any(inputs[i]._version for i in kept):
                raise RuntimeError(
                    f"{node.name} must not change its input in place, which the model reads again later: it is left to "
                    f"autograd ({reason})"
                )
            return y

        return self.emit(node, Call(Opaque(run, reason), values, parameters, plains))

    def is_read_after(self, argument: fx.Node, node: fx.Node) -> bool:
        """Whether anybody reads the argument after this node."""
        return any(self.position[user] > self.position[node] for user in argument.users)

    def function(self, node: fx.Node, arguments, keywords) -> Value:
        entry, reason = FUNCTIONS.get(node.target), None
        for given, named in self.readings(arguments, keywords) if entry else ():
            call = _entered(entry, given, named)
            if isinstance(call, Constant):
                return self.plain(node, arguments, keywords)
            if isinstance(call, str):
                reason = reason or call
            elif _fits(call, (given, named)) or (isinstance(call, Call) and any(isinstance(x, Several) for x in given)):
                return call if isinstance(call, Several) else self.emit(node, call)
        reason = reason or ("its arguments have no rule" if entry else "no rule")
        if any(True for _ in collect(Several, (arguments, keywords))):
            raise Untraceable(f"{node.name} takes several tensors at once, or what has no rule: {reason}")
        self.reject_tuple(node)
        return self.opaque(node, f"{node.name}: {reason}", _callable(node), arguments, keywords)

    def emit(self, node: fx.Node, call: Call, emitted: dict[Call, Value] | None = None) -> Value:
        """Append the call's nodes, each once; the value of the last."""
        emitted = {} if emitted is None else emitted
        if call in emitted:
            return emitted[call]
        inputs = [self.emit(node, value, emitted) if isinstance(value, Call) else value for value in call.inputs]
        slots = tuple(None if parameter is None else parameter.slot for parameter in call.parameters)
        extras = tuple(plain.index for plain in call.extras)
        updated = tuple(None if parameter is None else parameter.slot for parameter in call.updated)
        self.nodes.append(Node(node.name, call.rule, tuple(value.index for value in inputs), slots, extras, updated))
        emitted[call] = Value(len(self.nodes) - 1)
        return emitted[call]

    def mutates(self, node: fx.Node) -> bool:
        """Whether the call changes its first argument in place."""
        if node.op == "call_module":
            return bool(getattr(self.root.get_submodule(node.target), "inplace", False))
        if node.kwargs.get("inplace") is True:
            return True
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
            return True
        place = _position_of_inplace(node.target) if node.op == "call_function" else None
        if place is not None and len(node.args) > place:
            return bool(node.args[place])
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))

    def is_made(self, node: object) -> bool:
        """Whether this is a tensor that the forward made while it was traced: a constant that nothing may change."""
        return isinstance(node, fx.Node) and node.op == "get_attr" and node.target in self.root.made

    def replace_mutated(self, node: fx.Node, result: Value) -> None:
        """Whoever reads the changed tensor after this node reads the result; views of it must not be read again."""
        changed = node.args[0]
        value = self.environment[changed] if isinstance(changed, fx.Node) else None
        if not isinstance(value, Value) and not (isinstance(value, Plain) and self.is_fresh(changed, node)):
            raise Untraceable(f"{node.name} changes something in place")
        base = changed
        while isinstance(base, fx.Node) and self.is_view(base):
            base = base.args[0]
            if any(user is not changed and self.position[user] > self.position[node] for user in base.users):
                raise Untraceable(f"{node.name} changes a view in place")
        names = self.names.get(changed, [changed])
        for user in (user for name in names for user in name.users):
            if self.is_view(user) and self.position[user] < self.position[node]:
                raise Untraceable(f"{node.name} changes a tensor in place that has views")
        for name in (*names, node):
            self.names[name] = [*names, node]
            self.environment[name] = result

    def is_view(self, node: fx.Node) -> bool:
        """Whether the node's value may share memory with its first argument."""
        if node.target in _FRESH:
            return False
        value = self.environment.get(node)
        if isinstance(value, Several) or self.is_alias(node):
            return True
        if not isinstance(value, Value) or value.index == 0:
            return False
        return self.nodes[value.index].rule.aliases and isinstance(node.args[0], fx.Node)

    def reject_tuple(self, node: fx.Node) -> None:
        """A call without a rule must not return a tuple."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        several = node.op != "call_module" and name in _SEVERAL
        for user in node.users:
            several |= user.target is operator.getitem and isinstance(user.args[1], int)
            several |= user.target is getattr and user.args[1] in ("values", "indices")
        if several:
            raise Untraceable(f"{node.name} has no rule and may return several tensors")


def _same(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _position_of_inplace(function: Callable) -> int | None:
    """Where `inplace` stands among a function's positional arguments."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of PyTorch's compiled functions
        return None
    return names.index("inplace") if "inplace" in names else None


def _replace(nested, environment: dict):
    return fx.node.map_aggregate(nested, lambda item: environment[item] if isinstance(item, fx.Node) else item)


def _ordinary(nested):
    """Lists and dictionaries that may be changed, in the places of those of fx, which may not."""
    if isinstance(nested, dict):
        return {key: _ordinary(member) for key, member in nested.items()}
    if isinstance(nested, list):
        return [_ordinary(member) for member in nested]
    if isinstance(nested, tuple):
        members = map(_ordinary, nested)
        return type(nested)(*members) if hasattr(nested, "_fields") else tuple(members)
    return nested


def _callable(node: fx.Node) -> Callable:
    if node.op == "call_method":
        name = node.target
        return lambda value, *arguments, **keywords: getattr(value, name)(*arguments, **keywords)
    return node.target


def _fits(call: Call | Several, arguments, own: bool = False) -> bool:
    """Whether the entry used every traced argument in the place where it belongs; a module's has its own, too."""
    calls = list((call.call if isinstance(call, Several) else call).all_calls())
    inputs = [value for each in calls for value in each.inputs if not isinstance(value, Call)]
    parameters = [parameter for each in calls for parameter in (*each.parameters, *each.updated)]
    extras = {extra for each in calls for extra in each.extras}
    given = {*collect(Parameter, arguments)}
    return (
        all(isinstance(value, Value) for value in inputs)
        and all(parameter is None or isinstance(parameter, Parameter) for parameter in parameters)
        and {*collect((Value, Plain), arguments)} == {*inputs} | extras
        and (given <= {*parameters} if own else given == {*parameters} - {None})
    )


def _entered(entry: Callable, arguments, keywords) -> Call | Several | str:
    """What a rule's entry makes of these arguments."""
    try:
        return entry(*arguments, **keywords)
    except (TypeError, AttributeError, ValueError, LookupError) as error:
        return f"its arguments have no rule ({error})"


def _random_states() -> tuple:
    """Of Python, PyTorch and, if somebody loaded it, NumPy; comparable."""
    numpy = sys.modules.get("numpy")
    drawn = random.getstate(), bytes(torch.get_rng_state().tolist())
    if numpy is None:
        return drawn
    name, keys, *rest = numpy.random.get_state()
    return (*drawn, (name, tuple(keys.tolist()), *rest))


def _restore_random_states(states: tuple) -> None:
    random.setstate(states[0])
    torch.set_rng_state(torch.frombuffer(bytearray(states[1]), dtype=torch.uint8))
    if len(states) > 2:
        sys.modules["numpy"].random.set_state(states[2])
