"""Penalties for less: on some of the steps (`Lazy`), or on some of the samples (`on_fraction`), the same on average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradreg_fast import functional
from gradreg_fast.rules.base import at_least_single
from gradreg_fast.signature import select, substituted


class Lazy(nn.Module):
    """Says which steps compute a penalty: one of `every`, the first one first.

    There the penalty is multiplied by `every`, so that the sum over any `every` steps at the same parameters is that of
    computing it at each: Karras et al. 2020 (StyleGAN2, arXiv:1912.04958), appendix B, "lazy regularization". The place
    in the schedule is part of the state dictionary.

    Args:
        every: number of steps; 1 or more.
        place: where to begin, in steps behind one with a penalty.

    Raises:
        ValueError: if `every` is not a positive integer.
        RuntimeError: by `due` in a backward pass, where `torch.utils.checkpoint` repeats a step that was counted.

    >>> schedule = Lazy(3)
    >>> [schedule.due() for _ in range(5)]
    [True, False, False, True, False]
    """

    def __init__(self, every: int, place: int = 0) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a positive integer, got {every!r}")
        self.every = every
        self.go_to(place)

    def go_to(self, place: int) -> None:
        """Continue there, counted from a step with a penalty."""
        steps = [_Step(i) for i in range(self.every)]
        for step, following in zip(steps, steps[1:] + steps[:1], strict=True):
            step.next = following
        self.now = steps[place % self.every]

    def due(self) -> bool:
        """Whether this step computes the penalty; the next question is for the next step."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a penalty with every= must not be inside torch.utils.checkpoint, whose second call its schedule would "
                "count as another step: give the penalty save='recompute', or checkpoint the network's own layers"
            )
        due = self.now.due
        self.now = self.now.next
        return due

    def get_extra_state(self) -> Tensor:
        """The place, for the state dictionary."""
        return torch.tensor(self.now.place)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue there."""
        self.go_to(int(state))

    def __reduce__(self) -> tuple:
        return Lazy, (self.every, self.now.place)


class _Step:
    """One of a ring: a compiled step depends on `due` alone, where a counter's value would be compiled into it."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.due = place == 0
        self.next: _Step


def on_fraction(
    penalty: Callable, fraction: float, model: nn.Module, x: Tensor | tuple | dict, *arguments, **keywords
) -> tuple[Tensor, Tensor]:
    """The model's output for all samples, and a penalty on a random part of them.

    Every sample is drawn with the same probability, so that the expected value of the mean over those drawn is the mean
    over all. The tensors among the arguments whose first size is the batch's are drawn along.

    Args:
        penalty: a function of `gradreg_fast.functional`, or one like them: reduced to a mean, or to a sum if the
            keywords say ``reduction="sum"``.
        fraction: how much of the batch, rounded up to whole samples.
        model: the network.
        x: input ``[B, ...]``, or several.
        *arguments: the penalty's, behind x.
        **keywords: likewise.

    Returns:
        y of all samples in their order, and the penalty.

    Raises:
        ValueError: if the penalty cannot be estimated from a part: batch statistics, no reduction, two batches.

    >>> critic, x = nn.Linear(2, 1, bias=False), torch.zeros(8, 2)
    >>> y, penalty = on_fraction(functional.r1, 0.25, critic, x)
    >>> y.shape, bool(torch.isclose(penalty, critic.weight.square().sum()))
    (torch.Size([8, 1]), True)
    """
    chosen, others = draw(fraction, x)
    if len(others) == 0:
        return penalty(model, x, *arguments, **keywords)
    y, value = on_rows(penalty, chosen, model, x, *arguments, **keywords)
    x, keywords = rows_of((x, keywords), others)
    y = torch.cat([y, outputs(penalty, model, x, **keywords)])
    return torch.empty_like(y).index_copy(0, torch.cat([chosen, others]), y), value


def on_rows(
    penalty: Callable, rows: Tensor, model: nn.Module, x: Tensor | tuple | dict, *arguments, **keywords
) -> tuple[Tensor, Tensor]:
    """The output of some of the samples, and the penalty on them, an estimate of that on all.

    Raises:
        ValueError: as `on_fraction`.
    """
    check_separable(penalty, model, keywords)
    size = len(first_tensor(x))
    x, arguments, keywords = rows_of((x, arguments, keywords), rows)
    y, value = penalty(model, x, *arguments, **keywords)
    return y, value * (size / len(rows)) if keywords.get("reduction") == "sum" else value


def draw(fraction: float, x: Tensor | tuple | dict) -> tuple[Tensor, Tensor]:
    """Which samples of a batch are drawn, and the others, each sample with the same probability."""
    x = first_tensor(x)
    chosen = min(len(x), math.ceil(fraction * len(x)))
    return torch.randperm(len(x), device=x.device).split([chosen, len(x) - chosen])


def rows_of(batch: tuple, rows: Tensor) -> tuple:
    """The rows of a nested batch's tensors: of those that have as many as the first of them."""
    size = len(first_tensor(batch))

    def take(tensor):
        return tensor[rows] if tensor.dim() and len(tensor) == size else tensor

    return substituted(batch, take, Tensor)


def first_tensor(nested: Tensor | tuple | dict) -> Tensor:
    """The first tensor in it, which says how large the batch is."""
    while not isinstance(nested, Tensor):
        nested = next(iter(nested.values() if isinstance(nested, dict) else nested))
    return nested


def outputs(penalty: Callable, model: nn.Module, x: Tensor | tuple | dict, *arguments, **keywords) -> object:
    """What a penalty returns beside its value: the model's result, or what ``output`` selects of it."""
    if penalty is functional.r1_r2:
        fake, *_ = arguments or [keywords["fake"]]
        return tuple(outputs(None, model, batch, **keywords) for batch in (x, fake))
    placed, named = (x if isinstance(x, tuple) else (x,), {}) if not isinstance(x, dict) else ((), x)
    result = model(*placed, *keywords.get("model_args", ()), **named, **(keywords.get("model_kwargs") or {}))
    return select(result, keywords.get("output"))


def nothing(x: Tensor | tuple | dict, reduction: str) -> Tensor:
    """The penalty where none is computed."""
    x = first_tensor(x)
    return x.new_zeros(len(x) if reduction == "none" else (), dtype=at_least_single(x.dtype))


def check_fraction(fraction: float) -> None:
    """Raise unless this is a share of a batch."""
    if not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")


def check_separable(penalty: Callable, model: nn.Module, keywords: dict) -> None:
    """Raise unless a part of the batch gives an unbiased estimate."""
    if penalty is functional.r1_r2:
        raise ValueError("fraction must be 1 for r1_r2, which has two batches: use r1 and r2, each with its own")
    if keywords.get("reduction") == "none":
        raise ValueError("reduction must be 'mean' or 'sum' with a fraction of the batch, got 'none'")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(f"fraction must be 1 for a model with batch statistics, which {name!r} has: use every=")
