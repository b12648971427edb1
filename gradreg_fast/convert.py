"""From an `nn.Module` to a `Graph`, by symbolic tracing; what cannot be traced or has no rule is left to autograd."""

from __future__ import annotations

import inspect
import operator
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, fx, nn

from gradreg_fast.fuse import fuse
from gradreg_fast.graph import Graph, Node, PlainValue, Slot, slot_of, whole_model
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.rules.registry import FUNCTIONS, MODULES, Call, Parameter, Plain, Several, Value, collect, fill
from gradreg_fast.snapshot import Snapshot, has_hooks

_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Snapshot, Graph]] = weakref.WeakKeyDictionary()
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
_SIZES = {"size", "dim", "numel", "ndimension", "shape", "ndim"}


def graph_of(model: nn.Module) -> Graph:
    """The model's graph: converted once, remembered as long as the model lives, converted anew when it has changed."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return opaque_model(model, "autocast is on")
    if _global_hooks():
        return opaque_model(model, "hooks on all modules are set")
    known = _CACHE.get(model)
    if known is None or known[0].outdated():
        with _converting:
            known = _CACHE[model] = (Snapshot(model), convert(model))
    return known[1]


def convert(model: nn.Module) -> Graph:
    """The graph of a model as it is now."""
    reason = why_opaque(model)
    if reason:
        return opaque_model(model, reason)
    randomness = _random_states()
    try:
        tracer = _Tracer()
        traced = tracer.trace(_Root(model))
        if any(name.startswith("_tensor_constant") for name in vars(tracer.root)):
            return opaque_model(model, "its forward makes tensors")
        if _random_states() != randomness:
            return opaque_model(model, "its forward draws random numbers")
        return fuse(_Converter(model).convert(traced))
    except _Unsupported as error:
        return opaque_model(model, str(error))
    except Exception as error:  # whatever a user's forward does with symbols; autograd will show real errors
        return opaque_model(model, f"it cannot be traced ({type(error).__name__}: {error})")
    finally:
        _restore_random_states(randomness)


def why_opaque(module: nn.Module) -> str | None:
    """Why autograd must run this module as a whole, whatever its type: None if it need not."""
    if has_hooks(module):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script"
    return None


def _global_hooks() -> bool:
    """Whether somebody set a hook for all modules; PyTorch's own (its FLOP counter's) only watch."""
    module = torch.nn.modules.module
    kinds = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")
    hooks = [hook for kind in kinds for hook in getattr(module, f"_global_{kind}").values()]
    return any(not getattr(hook, "__module__", "").startswith("torch.") for hook in hooks)


def opaque_model(model: nn.Module, reason: str) -> Graph:
    """The graph of a model that autograd runs as a whole."""
    names = [name for name, _ in model.named_parameters()]
    return whole_model(model, _opaque_module(model, names, reason), names)


def _opaque_module(module: nn.Module, names: list[str], reason: str, kept: Sequence[int] = ()) -> Opaque:
    """A module that autograd runs; `kept` are the inputs that it must not change, since others read them later."""
    reference = weakref.ref(module)

    def run(inputs, parameters, extras):
        inputs = [x.clone() for x in inputs]  # what changes them in place must reach no leaf, and nobody else's value
        y = torch.func.functional_call(reference(), dict(zip(names, parameters, strict=True)), tuple(inputs))
        if any(inputs[i]._version for i in kept):
            raise RuntimeError(
                f"{type(reference()).__name__} must not change its input in place, which the model reads again later: "
                f"it is left to autograd ({reason})"
            )
        return y

    return Opaque(run, f"{type(module).__name__}: {reason}")


class _Root(nn.Module):
    """Holds the model, so that the model itself is a module call like any other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Proxy(fx.Proxy):
    """Keeps ``x += y`` what it is; fx alone would record a sum, and other names of x would miss the change."""


def _recorded(operation: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy("call_function", operation, (self, other), {})


for _operation in _IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_operation.__name__}__", _recorded(_operation))


class _Tracer(fx.Tracer):
    """Stops at modules with a rule, at PyTorch's own and at those that must stay whole; sees one thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if type(module) in MODULES or why_opaque(module):
            return True
        if type(module) in _CONTAINERS:
            return False
        return type(module).__module__.startswith(("torch.nn", "torch.ao", "torch._dynamo", "torch.distributed"))


class _Unsupported(Exception):
    """The model must be left to autograd as a whole."""


class _Converter:
    """Builds a graph from a traced model."""

    def __init__(self, model: nn.Module) -> None:
        self.root = _Root(model)
        self.nodes: list[Node | None] = [None]
        self.slots: dict[tuple[int, str], int] = {}
        self.slot_list: list[Slot] = []
        self.environment: dict[fx.Node, object] = {}
        self.position: dict[fx.Node, int] = {}

    def convert(self, traced: fx.Graph) -> Graph:
        output = None
        self.position = {node: position for position, node in enumerate(traced.nodes)}
        for node in traced.nodes:
            if node.op == "placeholder":
                self.environment[node] = Value(0)
            elif node.op == "output":
                output = fx.node.map_arg(node.args[0], lambda argument: self.environment[argument])
            elif node.target is operator.getitem and not node.users:  # of a tuple unpacked into names
                continue
            elif node.op == "get_attr":
                self.environment[node] = self.parameter(node.target)
            else:
                self.environment[node] = self.call(node)
        if not isinstance(output, Value):
            raise TypeError(f"model must return one tensor that depends on x, got {type(output).__name__}")
        return Graph(tuple(self.nodes), tuple(self.slot_list), output.index, output.index)

    def parameter(self, name: str) -> Parameter | None:
        """The slot of a parameter or buffer by its dotted name; None where there is none."""
        slot = slot_of(self.root, name)
        tensor = slot.tensor()
        if tensor is None:
            return None
        if not isinstance(tensor, Tensor):
            raise _Unsupported(f"its attribute {name} is used as a tensor")
        key = (id(slot.owner()), slot.attribute)
        if key not in self.slots:
            self.slots[key] = len(self.slot_list)
            self.slot_list.append(slot)
        return Parameter(self.slots[key])

    def call(self, node: fx.Node):
        arguments = _replace(node.args, self.environment)
        keywords = _replace(node.kwargs, self.environment)
        if not any(True for kind in (Value, Several) for _ in collect(kind, (arguments, keywords))):
            return self.plain(node, arguments, keywords)
        if node.op == "call_module":
            module = self.root.get_submodule(node.target)
            result = self.module(node, module, arguments, keywords)
        elif self.is_size(node):
            return self.plain(node, arguments, keywords)
        else:
            result = self.function(node, arguments, keywords)
        if self.mutates(node):
            self.replace_mutated(node, result)
        return result

    def is_size(self, node: fx.Node) -> bool:
        """Whether the node reads a size of a value."""
        if node.op == "call_method":
            return node.target in _SIZES
        return node.target is getattr and node.args[1] in _SIZES

    def plain(self, node: fx.Node, arguments, keywords) -> Plain:
        """A node that makes a plain Python value from sizes, or from nothing that depends on the input's values."""
        if any(True for _ in collect(Parameter, (arguments, keywords))) or node.op == "call_module":
            raise _Unsupported(f"{node.name} computes with parameters alone")
        function = _callable(node)
        sources = [*collect(Value, (arguments, keywords)), *collect(Plain, (arguments, keywords))]

        def compute(*extras):
            filled, filled_keywords = fill((arguments, keywords), dict(zip(sources, extras, strict=True)))
            return function(*filled, **filled_keywords)

        self.nodes.append(Node(node.name, PlainValue(compute), (), (), tuple(source.index for source in sources)))
        return Plain(len(self.nodes) - 1)

    def module(self, node: fx.Node, module: nn.Module, arguments, keywords) -> Value:
        reason = next(filter(None, map(why_opaque, module.modules())), None)
        if reason is None and type(module) not in MODULES:
            reason = "no rule"
        if reason is None:
            call = _entered(
                MODULES[type(module)],
                (module, *arguments),
                {**keywords, "parameter": lambda name: self.parameter(f"{node.target}.{name}")},
            )
            if isinstance(call, Several):
                return call
            reason = call if isinstance(call, str) else None
            if reason is None:
                return self.emit(node, call)
        names = [name for name, _ in module.named_parameters()]
        if keywords or any(not isinstance(argument, Value) for argument in arguments):
            raise _Unsupported(f"{node.target} is called with more than values")
        slots = tuple(self.parameter(f"{node.target}.{name}") for name in names)
        self.reject_tuple(node)
        kept = [] if self.mutates(node) else [i for i, x in enumerate(node.args) if self.is_read_after(x, node)]
        return self.emit(node, Call(_opaque_module(module, names, reason or "no rule", kept), arguments, slots))

    def is_read_after(self, argument: fx.Node, node: fx.Node) -> bool:
        """Whether anybody reads the argument after this node."""
        return any(self.position[user] > self.position[node] for user in argument.users)

    def function(self, node: fx.Node, arguments, keywords) -> Value:
        entry = FUNCTIONS.get(node.target)
        reason = "no rule"
        if entry is not None:
            call = _entered(entry, arguments, keywords)
            if isinstance(call, Several) and _fits(call.call, (arguments, keywords)):
                return call
            if isinstance(call, Call) and (_fits(call, (arguments, keywords)) or isinstance(arguments[0], Several)):
                return self.emit(node, call)
            reason = call if isinstance(call, str) else "its arguments have no rule"
        if any(True for _ in collect(Several, (arguments, keywords))):
            raise _Unsupported(f"{node.name} takes several tensors at once, or what has no rule: {reason}")
        self.reject_tuple(node)
        values, parameters, plains = (
            list(dict.fromkeys(collect(kind, (arguments, keywords)))) for kind in (Value, Parameter, Plain)
        )
        function = _callable(node)

        changes = self.mutates(node)

        def run(inputs, tensors, extras):
            if changes:  # neither a leaf nor the value that other nodes keep
                inputs = [x.clone() for x in inputs]
            table = dict(zip((*values, *parameters, *plains), (*inputs, *tensors, *extras), strict=True))
            filled, filled_keywords = fill((arguments, keywords), table)
            return function(*filled, **filled_keywords)

        return self.emit(node, Call(Opaque(run, f"{node.name}: {reason}"), values, parameters, plains))

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
        return name.endswith("_") and not name.endswith("__")

    def replace_mutated(self, node: fx.Node, result: Value) -> None:
        """Whoever reads the changed tensor after this node reads the result; views of it must not be read again."""
        changed = node.args[0]
        if not isinstance(changed, fx.Node) or not isinstance(self.environment[changed], Value):
            raise _Unsupported(f"{node.name} changes something in place")
        base = changed
        while isinstance(base, fx.Node) and self.is_view(base):
            base = base.args[0]
            if any(user is not changed and self.position[user] > self.position[node] for user in base.users):
                raise _Unsupported(f"{node.name} changes a view in place")
        for user in changed.users:
            if self.is_view(user) and self.position[user] < self.position[node]:
                raise _Unsupported(f"{node.name} changes a tensor in place that has views")
        self.environment[changed] = result

    def is_view(self, node: fx.Node) -> bool:
        """Whether the node's value may share memory with its first argument."""
        value = self.environment.get(node)
        if isinstance(value, Several):
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
            raise _Unsupported(f"{node.name} has no rule and may return several tensors")


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


def _callable(node: fx.Node) -> Callable:
    if node.op == "call_method":
        name = node.target
        return lambda value, *arguments, **keywords: getattr(value, name)(*arguments, **keywords)
    return node.target


def _fits(call: Call, arguments) -> bool:
    """Whether the entry used every traced argument in the place where it belongs."""
    calls = list(call.all_calls())
    inputs = [value for each in calls for value in each.inputs if not isinstance(value, Call)]
    parameters = [parameter for each in calls for parameter in (*each.parameters, *each.updated)]
    return (
        all(isinstance(value, Value) for value in inputs)
        and all(parameter is None or isinstance(parameter, Parameter) for parameter in parameters)
        and {*collect(Value, arguments)} == {*inputs}
        and {*collect(Parameter, arguments)} == {*parameters} - {None}
        and {*collect(Plain, arguments)} == {plain for each in calls for plain in each.extras}
    )


def _entered(entry: Callable, arguments, keywords) -> Call | Several | str:
    """What a rule's entry makes of these arguments."""
    try:
        return entry(*arguments, **keywords)
    except (TypeError, AttributeError, ValueError) as error:
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
