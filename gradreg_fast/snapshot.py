"""Noticing that a model has changed since it was converted."""

from __future__ import annotations

import weakref

from torch import nn

_INTERNAL = set(vars(nn.Module())) - {"training"}


class Snapshot:
    """Everything that decided how a model was converted, other than its tensors, which are looked up at every call.

    That is, for each module: its type, its children, whether it has hooks, its mode and its plain attributes. Numbers
    and the like are compared by value, other objects by identity; neither keeps a module alive.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(weakref.ref(module), *self._facts(module)) for module in model.modules()]

    def outdated(self) -> bool:
        """Whether anything is different now."""
        for reference, kind, size, children, absent, hooks, settings, identities in self.modules:
            module = reference()
            if module is None or type(module) is not kind:
                return True
            now = module.__dict__
            if len(now) != size or [*map(id, now["_modules"].values())] != children or has_hooks(module) != hooks:
                return True
            if _absent(module) != absent:
                return True
            for name, value in settings:
                if now.get(name) != value:
                    return True
            for name, identity in identities:
                if id(now.get(name)) != identity:
                    return True
        return False

    @staticmethod
    def _facts(module: nn.Module) -> tuple:
        plain = [(name, value) for name, value in module.__dict__.items() if name not in _INTERNAL]
        settings = [(name, value) for name, value in plain if _is_setting(value)]
        identities = [(name, id(value)) for name, value in plain if not _is_setting(value)]
        children = [*map(id, module._modules.values())]
        return type(module), len(module.__dict__), children, _absent(module), has_hooks(module), settings, identities


def _absent(module: nn.Module) -> list[str]:
    """The parameters and buffers that are None."""
    return [name for kind in ("_parameters", "_buffers") for name, x in module.__dict__[kind].items() if x is None]


def _is_setting(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return isinstance(value, (int, float, str, type(None)))


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module, or its backward, runs more than its forward."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own.get("_backward_pre_hooks")
    )
