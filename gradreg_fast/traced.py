"""What Dynamo sees of a call: a model's identity and tensors; imported by it alone."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from gradreg_fast.compiling import FUNCTIONS

_models: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def call(name: str, model: nn.Module, *args, **kwargs) -> object:
    """``FUNCTIONS[name](model, *args, **kwargs)``, traced."""
    _register(id(model))
    for module in model.modules():
        _ = module.training  # a guard: the graph depends on it
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return _call(name, id(model), tensors, args, kwargs)  # taking the identity is a guard, too


@torch._dynamo.assume_constant_result
def _register(identity: int) -> None:
    """Let `_call` find the model. Its identity alone is a constant to Dynamo of torch 2.11, a module is not."""
    _models[identity] = ctypes.cast(identity, ctypes.py_object).value  # alive: it is being called


@torch._dynamo.nonstrict_trace
def _call(name: str, identity: int, tensors: dict[str, Tensor], args: tuple, kwargs: dict) -> object:
    """The call, with the tracer's tensors in the place of the model's."""
    model = _models[identity]
    with _reparametrize_module(model, tensors, tie_weights=True):
        return FUNCTIONS[name](model, *args, **kwargs)
