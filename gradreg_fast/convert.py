"""A drop-in for a model whose input gradients are closed forms, and the graphs that it and the penalties run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradreg_fast.autocast import regions, with_casts
from gradreg_fast.compiling import compilable
from gradreg_fast.context import transformed
from gradreg_fast.graph import Graph, WholeModel, whole_model
from gradreg_fast.recorded import pays, recorded
from gradreg_fast.rules.base import has_numbers
from gradreg_fast.rules.registry import Value
from gradreg_fast.signature import ONE_TENSOR, Signature, bind, substituted
from gradreg_fast.snapshot import Snapshot
from gradreg_fast.tracing import Untraceable, trace, with_parameters
from gradreg_fast.undo import undone_on_error

MOST_GRAPHS = 16  # of one model: a graph for each form of call
MOST_SIZES = 8  # of these, for inputs of one size each; for other sizes autograd runs the model

_GLOBAL_HOOKS = [
    getattr(torch.nn.modules.module, f"_global_{kind}")
    for kind in ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")
]

_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Snapshot, dict[tuple, Graph]]] = weakref.WeakKeyDictionary()


def convert(model: nn.Module) -> nn.Module:
    """A drop-in for a model: the same numbers, with input gradients in closed form.

    Code that uses the model keeps its lines: ``y = converted(x)``, then ``g, = torch.autograd.grad(y, x, c,
    create_graph=True)`` and ``(loss(y) + penalty(g)).backward()``. The gradient g is an ordinary first-order operation
    then; what the model does otherwise, or with inputs that require no gradient, is left to PyTorch.

    The drop-in *is* the model, under another class: it shares parameters, buffers, submodules, hooks, mode and every
    other attribute, so that moves, state dictionaries and later changes of either are the other's too. Copies and
    pickles hold a copy of the model. Where the model's forward cannot be traced, its submodules are converted one by
    one, and autograd joins them.

    Args:
        model: the network; any arguments, any result.

    Returns:
        The drop-in, an instance of the model's class.

    Raises:
        TypeError: if it is no module.

    >>> network = convert(nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)))
    >>> x = torch.randn(8, 2, requires_grad=True)
    >>> y = network(x)
    >>> (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    >>> (y.square().mean() + g.square().sum(1).mean()).backward()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (Converted, torch.jit.ScriptModule)):
        return model
    kind = _converted_class(type(model))
    converted = object.__new__(kind)
    converted.__dict__ = model.__dict__
    object.__setattr__(converted, "_original", model)
    return converted


class Converted:
    """What `convert` puts before a model's class."""

    __slots__ = ()

    @undone_on_error
    def forward(self, *args, **kwargs) -> object:
        """The model's result."""
        plainly = super().forward
        if not torch.is_grad_enabled() or torch.compiler.is_exporting() or _left_to_autograd():
            return plainly(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            return self._compiled(plainly, args, kwargs)
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            signature, x, given = ONE_TENSOR, args[0] if _requires_gradient(args[0]) else None, ()
        else:
            try:
                signature, x, given = bind(args, kwargs, _requires_gradient)
            except ValueError:  # several inputs that are no one batch
                return _in_pieces(self, plainly, args, kwargs)
        if x is None or x.dim() == 0:
            return plainly(*args, **kwargs)
        graph = graph_of(original_of(self), signature, False, (x, given))
        if graph.whole:
            graph.tensors(x, given)  # remembers the buffers
            return _in_pieces(self, plainly, args, kwargs)
        graph = with_casts(graph, x)
        if not (graph.has_rules and pays(graph, x)):
            return plainly(*args, **kwargs)
        tensors = graph.tensors(x, given)
        if transformed((x, *tensors)):
            return plainly(*args, **kwargs)
        y = recorded(graph, x, tensors)
        return y if graph.structure is None else substituted(graph.structure, lambda value: y, Value)

    def _compiled(self, plainly, args, kwargs):
        """As Dynamo sees the forward: one step of its trace, or what it makes of the model itself."""
        from gradreg_fast.traced import has_closed_form

        signature, x, _ = bind(args, kwargs, _requires_gradient)
        one = x is not None and x.dim() > 0 and not signature.shapes
        if one and has_closed_form(id(self), signature.args, signature.kwargs, signature.given):
            return _closed_form(self, *args, **kwargs)
        return plainly(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple:
        return convert, (original_of(self),)


@compilable
def _closed_form(model: Converted, *args, **kwargs) -> Tensor:
    """The result of a converted model whose graph returns one tensor."""
    signature, x, given = bind(args, kwargs, _requires_gradient)
    graph = with_casts(graph_of(model, signature, hooks=False), x)
    return recorded(graph, x, graph.tensors(x, given))


@cache
def _converted_class(kind: type[nn.Module]) -> type:
    @wraps(kind.forward)  # its signature, by which exporters name arguments
    def forward(self, *args, **kwargs):
        return Converted.forward(self, *args, **kwargs)

    members = {"__slots__": ("_original",), "__module__": __name__, "forward": forward}
    return type(f"Converted{kind.__name__}", (Converted, kind), members)


def original_of(model: nn.Module) -> nn.Module:
    """The model that was converted; any other model itself."""
    if not isinstance(model, Converted):
        return model
    try:
        return object.__getattribute__(model, "_original")
    except AttributeError:  # made by its class: a slice of a Sequential, a replica
        original = object.__new__(type(model).__mro__[2])
        original.__dict__ = model.__dict__
        object.__setattr__(model, "_original", original)
        return original


def _requires_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_floating_point()


def graph_of(
    model: nn.Module, signature: Signature = ONE_TENSOR, hooks: bool = True, examples: tuple | None = None
) -> Graph:
    """The model's graph: made once for each form of call, remembered while the model lives, anew when it has changed.

    Args:
        model: the network.
        signature: how it is called.
        hooks: whether running the graph is to run the model's own hooks, too.
        examples: the input and the list of the further arguments. Where the forward branches on sizes, there is a graph
            for these; None: for all sizes or not at all.
    """
    model = original_of(model)
    reason = _left_to_autograd()
    if reason:
        return whole(model, signature, reason, model)
    if signature.key is None:
        return whole(model, signature, "its arguments are more than tensors, numbers and names")
    known = _CACHE.get(model)
    if known is None or known[0].outdated():
        known = _CACHE[model] = (Snapshot(model), {})
    # a forward may ask for the region, and makes tensors of the default dtype
    graphs, key = known[1], (signature.key, hooks, regions(), torch.get_default_dtype())
    graph = _remembered(graphs, key, model, signature, hooks, None)
    if graph.whole and graph.whole.for_all_sizes and examples is not None and has_numbers(examples[0]):
        tensors = (examples[0], *examples[1])
        sizes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if (*key, sizes) in graphs or sum(len(other) > len(key) for other in graphs) < MOST_SIZES:
            return _remembered(graphs, (*key, sizes), model, signature, hooks, examples)
    return graph


def _remembered(graphs: dict, key: tuple, model: nn.Module, signature: Signature, hooks: bool, examples) -> Graph:
    graph = graphs.get(key)
    if graph is None:
        try:
            graph = trace(model, signature, hooks, examples)
        except Untraceable as error:
            graph = whole(model, signature, str(error))
            graph.whole.for_all_sizes = error.for_all_sizes
        if len(graphs) >= MOST_GRAPHS:
            graphs.pop(next(iter(graphs)), None)
        graphs[key] = graph
    return graph


def _left_to_autograd() -> str | None:
    """Why all models are at the moment; None if they are not."""
    if _global_hooks():
        return "hooks on all modules are set"
    return None


def _global_hooks() -> bool:
    """Whether somebody set a hook for all modules; PyTorch's own (its FLOP counter's) only watch."""
    if not any(_GLOBAL_HOOKS):
        return False
    hooks = [hook for kind in _GLOBAL_HOOKS for hook in kind.values()]
    return any(not getattr(hook, "__module__", "").startswith("torch.") for hook in hooks)


def whole(model: nn.Module, signature: Signature, reason: str, plainly: nn.Module | None = None) -> Graph:
    """The graph of a model that autograd runs as a whole, its submodules converted unless it is to run `plainly`."""
    names = [name for name, _ in model.named_parameters()]
    reference, in_pieces = weakref.ref(model), plainly is None

    def call(model, x, given):
        def forward(*args, **kwargs):
            return _in_pieces(model, model, args, kwargs) if in_pieces else model(*args, **kwargs)

        # what changes x in place must not reach a leaf
        y = signature.call(forward, signature.split(x.clone()), given)
        if not isinstance(y, Tensor):
            raise TypeError(f"model must return one tensor, or output= select one; got {type(y).__name__}")
        return y

    def function(inputs, tensors, extras):
        own, given = dict(zip(names, tensors, strict=False)), tensors[len(names) :]
        return with_parameters(reference(), own, lambda model: call(model, inputs[0], given))

    def direct(x, tensors):
        return call(reference(), x, tensors[len(names) :])

    rule = WholeModel(function, direct, f"{type(model).__name__}: {reason}")
    return whole_model(model, rule, names, signature.given)


def _in_pieces(module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
    """``forward(*args, **kwargs)``, a method of the module or itself, with the submodules converted meanwhile."""
    kind = type(original_of(module))
    if kind.__module__.startswith("torch.") and not isinstance(module, nn.Sequential):
        return forward(*args, **kwargs)
    stand_in = _with_pieces(module)
    before = dict(stand_in.__dict__)
    result = stand_in(*args, **kwargs) if forward is module else forward.__func__(stand_in, *args, **kwargs)
    for name, value in stand_in.__dict__.items():  # attributes that the forward has set
        if before.get(name) is not value:
            module.__dict__[name] = value
    return result


def _with_pieces(module: nn.Module) -> nn.Module:
    """The module, under another identity, with its submodules converted."""
    kind = type(original_of(module))
    stand_in = object.__new__(kind)
    stand_in.__dict__.update(module.__dict__, _modules={name: _piece(child) for name, child in module._modules.items()})
    return stand_in


def _piece(module: nn.Module | None) -> nn.Module | None:
    """A submodule converted, where that may gain something."""
    if type(module) in (nn.ModuleList, nn.ModuleDict):
        return _with_pieces(module)
    if module is not None and (module._modules or isinstance(module, _NormBase)):
        return convert(module)
    return module
