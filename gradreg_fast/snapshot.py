"""Noticing that a model has changed since it was converted."""

from __future__ import annotations

import operator
import weakref
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_INTERNAL = set(vars(nn.Module())) - {"training"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_is_none = partial(operator.is_, None)
_REWEIGHTING = (WeightNorm, SpectralNorm)


class Snapshot:
    """Everything that decided how a model was converted, other than its tensors, which are looked up at every call.

    That is, for each module: its type, its children, whether it has hooks, its mode and its plain attributes. Numbers
    and the like are compared by value, other objects by identity (a tensor that is neither parameter nor buffer also by
    its count of changes in place); neither keeps a module alive.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(weakref.ref(module), *self._facts(module)) for module in model.modules()]

    def outdated(self) -> bool:
        """Whether anything is different now."""
        for reference, kind, size, children, absent, hooks, names, values, identities in self.modules:
            module = reference()
            if type(module) is not kind:
                return True
            now = module.__dict__
            if len(now) != size or [*map(now.get, names)] != values:
                return True
            if _hooks(module) != hooks:
                return True
            if (now["_modules"] or children) and [*map(id, now["_modules"].values())] != children:
                return True
            if (now["_parameters"] or now["_buffers"] or absent) and _absent(now) != absent:
                return True
            for name, identity in identities:
                if _identity(now.get(name)) != identity:
                    return True
        return False

    @staticmethod
    def _facts(module: nn.Module) -> tuple:
        own, made = module.__dict__, reweighted(module)
        plain = [(name, value) for name, value in own.items() if name not in _INTERNAL and name not in made]
        identities = [(name, _identity(value)) for name, value in plain if not _is_setting(value)]
        children, known = [*map(id, module._modules.values())], settings(module)
        return type(module), len(own), children, _absent(own), _hooks(module), [*known], [*known.values()], identities


def settings(module: nn.Module) -> dict[str, object]:
    """The module's attributes that are plain values: numbers, strings, tuples of these; its mode."""
    made = reweighted(module)
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _INTERNAL and name not in made and _is_setting(value)
    }


def _absent(own: dict[str, object]) -> list[bool]:
    """Which of a module's parameters and buffers, in their order, are None."""
    return [*map(_is_none, own["_parameters"].values()), *map(_is_none, own["_buffers"].values())]


def _hooks(module: nn.Module) -> list[str] | None:
    """None without hooks, else the weights that they make; empty if they do anything else."""
    return reweighted(module) if has_hooks(module) else None


def _is_setting(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return isinstance(value, (int, float, str, type(None)))


def _identity(value) -> tuple[int, int]:
    return id(value), value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module, or its backward, runs more than its forward."""
    return any(map(module.__dict__.get, HOOKS))


def reweighted(module: nn.Module) -> list[str]:
    """The weights that hooks make before each forward (the older weight and spectral norm), if there are no others."""
    own = module.__dict__
    before = own["_forward_pre_hooks"].values()
    others = own["_forward_hooks"] or own["_backward_hooks"] or own.get("_backward_pre_hooks")
    if not before or others or not all(isinstance(hook, _REWEIGHTING) for hook in before):
        return []
    return [hook.name for hook in before]
