"""The penalties as modules: a wrapper for training loops, and a drop-in for an existing regulariser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gradreg_fast import budget, functional, ops
from gradreg_fast.rules.activation import Sine as SineRule
from gradreg_fast.rules.registry import MODULES, Call
from gradreg_fast.wrappers import gathered


class WithPenalty(nn.Module):
    """A model and a penalty on it as one module, so that wrappers (DDP, FSDP2) see one ordinary forward.

    Its forward returns ``(y, penalty)``, both of this process's samples; the wrapper goes around this module as a
    whole, ``DistributedDataParallel(WithPenalty(model, "r1"))`` or ``fully_shard(WithPenalty(model, "r1"))``. Layers of
    the model may be sharded besides; a call gathers all of them until its backward pass ends.

    In training mode it may cost less, the same on average (see `gradreg_fast.budget`): `every` computes the penalty at
    one call of that many, multiplied by them, and gives zero at the others; the place in this schedule is part of the
    state dictionary, and every process has the same. `fraction` computes it on that part of the batch, drawn at random.

    Args:
        model: the network.
        penalty: a function of `gradreg_fast.functional`, or its name.
        every: number of calls.
        fraction: of the batch; above 0, at most 1.
        **settings: further keyword arguments of the penalty.

    Raises:
        ValueError: if there is no penalty of that name, or `every` or `fraction` is out of its range.

    >>> model = WithPenalty(nn.Linear(2, 1), "r1", every=4)
    >>> [bool(model(torch.zeros(8, 2))[1] > 0) for _ in range(5)]
    [True, False, False, False, True]
    """

    def __init__(
        self, model: nn.Module, penalty: Callable | str, *, every: int = 1, fraction: float = 1.0, **settings
    ) -> None:
        super().__init__()
        budget.check_fraction(fraction)
        self.model = model
        self.penalty = functional.named(penalty)
        self.schedule = None if every == 1 else budget.Lazy(every)
        self.fraction = fraction
        self.settings = settings

    def forward(self, x: Tensor, *arguments, **keywords) -> tuple[Tensor, Tensor]:
        """``penalty(model, x, *arguments, **settings, **keywords)``.

        Args:
            x: input ``[B, ...]``, or several; as for the penalty.
            *arguments: the penalty's, behind x.
            **keywords: likewise by name, ahead of the settings.

        Returns:
            y, and the penalty's value; zero at calls that the schedule passes over.
        """
        with nullcontext() if torch.compiler.is_compiling() else gathered(self):
            return self._penalised(x, *arguments, **{**self.settings, **keywords})

    def _penalised(self, x: Tensor, *arguments, **keywords) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.penalty(self.model, x, *arguments, **keywords)
        if self.schedule is not None and not self.schedule.due():
            y = budget.outputs(self.penalty, self.model, x, *arguments, **keywords)
            return y, budget.nothing(x, keywords.get("reduction", "mean"))
        if self.fraction == 1:
            y, value = self.penalty(self.model, x, *arguments, **keywords)
        else:
            y, value = budget.on_fraction(self.penalty, self.fraction, self.model, x, *arguments, **keywords)
        return y, value if self.schedule is None else value * self.schedule.every


class JacobianReg(nn.Module):
    r"""Hoffman, Roberts and Yaida 2019 (arXiv:1908.02729), with the scaling of their published module.

    Half the mean over the batch of ``||J||_F^2``, exact for ``n=-1``, else estimated with n random projections. Unlike
    that module, which takes ``(x, y)`` of a recorded graph, it takes the model and x.

    Args:
        n: number of projections; -1 for the exact norm.

    Raises:
        ValueError: if n is neither -1 nor a positive integer.

    >>> network, x = nn.Linear(3, 2), torch.randn(8, 3)
    >>> y, value = JacobianReg(n=-1)(network, x)
    >>> torch.testing.assert_close(value, network.weight.square().sum() / 2)
    """

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        if not isinstance(n, int) or isinstance(n, bool) or (n != -1 and n < 1):
            raise ValueError(f"n must be -1 or a positive integer, got {n!r}")
        self.n = n

    def forward(
        self, model: nn.Module, x: Tensor, generator: torch.Generator | None = None, **call
    ) -> tuple[Tensor, Tensor]:
        """The model's output ``[B, ...]`` and the regulariser's value, a scalar.

        Args:
            model: the network.
            x: input ``[B, ...]``.
            generator: for the projections.
            **call: as for `gradreg_fast.jacobian_sqnorm`.
        """
        y, norms = ops.jacobian_sqnorm(model, x, None if self.n == -1 else self.n, generator, **call)
        return y, functional.reduced(norms, "mean") / 2


class Sine(nn.Module):
    """``sin(frequency x)``, the activation of SIREN (Sitzmann et al. 2020, arXiv:2006.09661), with a fused rule.

    Args:
        frequency: their omega_0.

    >>> torch.testing.assert_close(Sine(2.0)(torch.ones(3)), torch.sin(torch.full((3,), 2.0)))
    """

    def __init__(self, frequency: float = 30.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.sin(self.frequency * x)


MODULES[Sine] = lambda layer, x, parameter: Call(SineRule(layer.frequency), (x,))
