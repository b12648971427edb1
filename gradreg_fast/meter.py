"""Watching penalties and gradient norms at a price that every step can pay."""

from __future__ import annotations

import torch
from torch import Tensor

from gradreg_fast.rules.base import at_least_single


class PenaltyMeter:
    """Mean, last and largest value of penalties, gradient norms or whatever else is watched, by name.

    It accumulates on the tensors' device: nothing waits for a GPU until `compute`, which does once for all values.

    >>> meter = PenaltyMeter()
    >>> for norms in (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])):  # of each sample's gradient, say
    ...     meter.update(norm=norms, penalty=norms.square().mean())
    >>> meter.compute()
    {'norm': {'mean': 2.0, 'last': 0.5, 'max': 4.0}, 'penalty': {'mean': 6.5, 'last': 0.5, 'max': 12.5}}
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._counts: dict[str, int] = {}
        self._figures: dict[str, Tensor] = {}  # each: sum, last mean, maximum  # [3]

    def update(self, **values: Tensor) -> None:
        """Take in one step.

        Args:
            **values: by name; of any shape, each element counts alike. Empty ones are left out.

        Raises:
            TypeError: if one is not a tensor.
        """
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
            if value.numel() == 0:
                continue
            value = value.detach().to(at_least_single(value.dtype))
            total, largest = value.sum(), value.max()
            if name in self._figures:
                total, largest = self._figures[name][0] + total, torch.maximum(self._figures[name][2], largest)
            self._figures[name] = torch.stack([total, value.mean(), largest])
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def compute(self) -> dict[str, dict[str, float]]:
        """Wait for the figures.

        Returns:
            For each name the ``"mean"`` of all elements since `reset`, the mean of the ``"last"`` step, and the largest
            element, ``"max"``.
        """
        if not self._figures:
            return {}
        rows = torch.stack([figures.double() for figures in self._figures.values()]).tolist()
        return {
            name: {"mean": total / self._counts[name], "last": last, "max": largest}
            for name, (total, last, largest) in zip(self._figures, rows, strict=True)
        }
