"""The penalties as modules: a wrapper for training loops, and a drop-in for an existing regulariser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradreg_fast import functional, ops
from gradreg_fast.rules.activation import Sine as SineRule
from gradreg_fast.rules.registry import MODULES, Call


class WithPenalty(nn.Module):
    """A model and a penalty on it as one module, so that wrappers (DDP, FSDP2) see one ordinary forward.

    Its forward returns ``(y, penalty)``, both of this process's samples; the wrapper goes around this module as a
    whole, ``DistributedDataParallel(WithPenalty(model, "r1"))`` or ``fully_shard(WithPenalty(model, "r1"))``.

    Args:
        model: the network.
        penalty: a function of `gradreg_fast.functional`, or its name.
        **settings: further keyword arguments of the penalty.

    Raises:
        ValueError: if there is no penalty of that name.
    """

    def __init__(self, model: nn.Module, penalty: Callable | str, **settings) -> None:
        super().__init__()
        if isinstance(penalty, str):
            if penalty not in functional.PENALTIES:
                raise ValueError(f"penalty must be one of {', '.join(functional.PENALTIES)}, got {penalty!r}")
            penalty = getattr(functional, penalty)
        if not callable(penalty):
            raise TypeError(f"penalty must be a function or a name, got {type(penalty).__name__}")
        self.model = model
        self.penalty = penalty
        self.settings = settings

    def forward(self, x: Tensor, *arguments, **keywords) -> tuple[Tensor, Tensor]:
        """``penalty(model, x, *arguments, **settings, **keywords)``."""
        return self.penalty(self.model, x, *arguments, **{**self.settings, **keywords})


class JacobianReg(nn.Module):
    r"""Hoffman, Roberts and Yaida 2019 (arXiv:1908.02729), with the scaling of their published module.

    Half the mean over the batch of ``||J||_F^2``, exact for ``n=-1``, else estimated with n random projections. Unlike
    that module, which takes ``(x, y)`` of a recorded graph, it takes the model and x.

    Args:
        n: number of projections; -1 for the exact norm.

    Raises:
        ValueError: if n is neither -1 nor a positive integer.
    """

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        if not isinstance(n, int) or isinstance(n, bool) or (n != -1 and n < 1):
            raise ValueError(f"n must be -1 or a positive integer, got {n!r}")
        self.n = n

    def forward(
        self, model: nn.Module, x: Tensor, generator: torch.Generator | None = None, **call
    ) -> tuple[Tensor, Tensor]:
        """The model's output and the regulariser's value; `call` as for `gradreg_fast.jacobian_sqnorm`."""
        y, norms = ops.jacobian_sqnorm(model, x, None if self.n == -1 else self.n, generator, **call)
        return y, functional.reduced(norms, "mean") / 2


class Sine(nn.Module):
    """``sin(frequency x)``, the activation of SIREN (Sitzmann et al. 2020, arXiv:2006.09661), with a fused rule.

    Args:
        frequency: their omega_0.
    """

    def __init__(self, frequency: float = 30.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.sin(self.frequency * x)


MODULES[Sine] = lambda layer, x, parameter: Call(SineRule(layer.frequency), (x,))
