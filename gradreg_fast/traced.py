"""What Dynamo sees of a call: a model's identity, its settings and tensors; imported by it alone."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_map_only

from gradreg_fast.compiling import FUNCTIONS
from gradreg_fast.convert import graph_of
from gradreg_fast.signature import Signature
from gradreg_fast.snapshot import HOOKS, settings

_models: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def call(function: str, model: nn.Module, *args, **kwargs) -> object:
    """``FUNCTIONS[function](model, *args, **kwargs)``, traced."""
    _register(id(model))
    for module in model.modules():
        _guard(module)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return _call(function, id(model), tensors, args, kwargs)  # taking the identity is a guard, too


def _guard(module: nn.Module) -> None:
    """Look at what the graph depends on: Dynamo traces anew where what it has looked at is different."""
    for name, value in _settings(id(module)):
        _ = getattr(module, name) == value
    for kind in HOOKS:
        _ = [*module.__dict__[kind]]  # by the attribute, `skip_nnmodule_hook_guards` would hide them


@torch._dynamo.assume_constant_result
def _settings(identity: int) -> tuple[tuple[str, object], ...]:
    module = _alive(identity)
    return ("training", module.training), *settings(module).items()


@torch._dynamo.assume_constant_result
def _register(identity: int) -> None:
    """Let `_call` find the model."""
    _models[identity] = _alive(identity)


def _alive(identity: int) -> nn.Module:
    """The module that is being called; to Dynamo of torch 2.11 its identity is a constant, and it is not."""
    return ctypes.cast(identity, ctypes.py_object).value


@torch._dynamo.nonstrict_trace
def _call(function: str, identity: int, tensors: dict[str, Tensor], args: tuple, kwargs: dict) -> object:
    """The call, with the tracer's tensors in the place of the model's."""
    model = _models[identity]
    args, kwargs = tree_map_only(torch.SymInt, int, (args, kwargs))  # numbers of projections: one graph for each
    with _reparametrize_module(model, tensors, tie_weights=True):
        return FUNCTIONS[function](model, *args, **kwargs)


@torch._dynamo.assume_constant_result
def has_closed_form(identity: int, args: tuple, kwargs: dict, given: int) -> bool:
    """Whether a converted model that is called like this has a graph that returns one tensor."""
    graph = graph_of(_alive(identity), Signature(args, kwargs, given=given), hooks=False)
    return not graph.whole and graph.has_rules and graph.structure is None
