"""Wrappers that synchronise gradients between processes: they must enclose a penalty's forward, not be inside it.

`fully_shard` may wrap parts of a model besides: `gathered` gives a penalty the model without them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import torch
from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def wrapper_in(model: nn.Module) -> str | None:
    """The name of a wrapper that synchronises gradients, if the model is one or holds one."""
    kinds, fsdp = [nn.parallel.DistributedDataParallel], _fsdp()
    if fsdp is not None:
        kinds += [fsdp.FSDPModule, fsdp.FullyShardedDataParallel]
    return next((type(module).__name__ for module in model.modules() if isinstance(module, tuple(kinds))), None)


def refuse_wrappers(model: nn.Module) -> None:
    """Raise if the model is wrapped, or a part of it is."""
    wrapper = wrapper_in(model)
    if wrapper is not None:
        raise TypeError(
            f"model must be the network itself, got one with a {wrapper} in it, which synchronises the gradients of "
            "its own forward: make the penalty a part of that, by wrapping gradreg_fast.modules.WithPenalty(network, "
            "penalty) as a whole, and call it (layers of the network may be wrapped by fully_shard, too)"
        )


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within it, what `fully_shard` wrapped inside a module that it wrapped, too, is plain, with whole parameters.

    A penalty passes the layers several times, in both directions, and not by their forward: none may be sharded again
    in between. They stay whole until the backward pass of the module around them has reduced their gradients; where
    none is recorded, they are whole within alone.
    """
    layers = _sharded(module)
    if module not in layers:
        yield  # where there are others, `refuse_wrappers` says what is missing
        return
    layers.remove(module)
    for layer in layers:
        layer.unshard()
    try:
        with _unwrapped(layers):
            yield
    finally:
        if not torch.is_grad_enabled():
            for layer in layers:
                layer.reshard()


def still_gathered(model: nn.Module) -> AbstractContextManager:
    """The same in the backward pass, for a model from within `gathered`."""
    return _unwrapped(_sharded(model))


@contextmanager
def _unwrapped(layers: list[nn.Module]) -> Iterator[None]:
    """Give layers the classes and hooks that they had before `fully_shard`."""
    before = [(layer, type(layer), {name: layer.__dict__[name] for name in _HOOKS}) for layer in layers]
    for layer, kind, hooks in before:
        layer.__class__ = kind.__mro__[kind.__mro__.index(_fsdp().FSDPModule) + 1]
        for name, present in hooks.items():
            layer.__dict__[name] = OrderedDict(item for item in present.items() if not _is_fsdps(item[1]))
    try:
        yield
    finally:
        for layer, kind, hooks in before:
            layer.__class__ = kind
            layer.__dict__.update(hooks)


def _is_fsdps(hook: Callable) -> bool:
    return getattr(hook, "__module__", "").startswith("torch.distributed.fsdp")


def _sharded(model: nn.Module) -> list[nn.Module]:
    """The modules that `fully_shard` wrapped."""
    fsdp = _fsdp()
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _fsdp() -> ModuleType | None:
    return sys.modules.get("torch.distributed.fsdp")  # whoever wraps has imported it
