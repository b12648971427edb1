"""Leaving everything as it was when bad input is noticed only after a part of the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import wraps

import torch
from torch import Tensor

_calls = threading.local()


def undone_on_error(function: Callable) -> Callable:
    """Let an exception restore what the call has told `remember`."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        outer = getattr(_calls, "restores", None)
        restores = _calls.restores = []
        try:
            return function(*args, **kwargs)
        except Exception:
            for restore in reversed(restores):
                restore()
            raise
        finally:
            _calls.restores = outer

    return wrapper


def _copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors and their copies: on a GPU one launch for all of a dtype."""
    pairs = [(tensor, torch.empty_like(tensor)) for tensor in tensors]
    for dtype in {tensor.dtype for tensor, _ in pairs}:
        of_dtype = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._foreach_copy_([copy for _, copy in of_dtype], [tensor for tensor, _ in of_dtype])
    return pairs


def remember(tensors: Iterable[Tensor], device: torch.device | None) -> None:
    """Note the values of tensors, and, with a device, the state of its default generator of random numbers."""
    restores = getattr(_calls, "restores", None)
    if restores is None:
        return
    before = _copies(tensors)
    cuda = device is not None and device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    states = [None if device is None else torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None]

    def restore():
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        if states[0] is not None:
            torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], device)

    restores.append(restore)
