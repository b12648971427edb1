"""Wrappers that synchronise gradients between processes: they must enclose a penalty's forward, not be inside it."""

from __future__ import annotations

import sys

from torch import nn


def wrapper_in(model: nn.Module) -> str | None:
    """The name of a wrapper that synchronises gradients, if the model is one or holds one."""
    kinds = [nn.parallel.DistributedDataParallel]
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever wraps has imported it
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
            "penalty) as a whole, and call it"
        )
