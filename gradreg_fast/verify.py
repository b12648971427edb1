"""Checking a model's penalties against plain autograd, on the model as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradreg_fast import functional, ops, reference
from gradreg_fast.convert import original_of
from gradreg_fast.signature import NONE, Bound, bind_call

RTOL = 1e-9  # float64; as in the package's own tests
FLOOR = 1e-12  # of the largest tensor in a group, or of 1: below it a gradient counts as zero
DIRECT = {torch.float64: RTOL, torch.float32: 1e-3}  # where there is no double precision to compare with
PRIMITIVES = ("value_and_vjp", "jacobian_sqnorm")
WAYS = ("save", "chunk_size", "cotangent_chunk_size")  # save memory and change no number: not for autograd


class ParityError(AssertionError):
    """The closed form and plain autograd differ; raised by `verify`.

    Args:
        verification: the figures, kept under this name.
    """

    def __init__(self, verification: Verification) -> None:
        super().__init__(f"{verification.penalty} differs from autograd:\n{verification}")
        self.verification = verification


@dataclass(frozen=True)
class Comparison:
    """One tensor of both.

    Attributes:
        name: of the tensor.
        size: norm of autograd's.
        error: norm of the difference, to float64's where there is one.
        allowed: largest error that passes.
    """

    name: str
    size: float
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether they agree."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Verification:
    """What `verify` has compared; prints as a table.

    Attributes:
        penalty: its name.
        against: what with.
        rows: a comparison for each value, gradient and buffer.
    """

    penalty: str
    against: str
    rows: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether all agree."""
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{self.penalty}, against {self.against}"]
        lines += [f"{'tensor':{width}}  {'norm':>9}  {'error':>9}  {'allowed':>9}"]
        for row in self.rows:
            figures = f"{row.size:9.2e}  {row.error:9.2e}  {row.allowed:9.2e}"
            lines.append(f"{row.name:{width}}  {figures}{'' if row.passed else '  DIFFERS'}")
        return "\n".join(lines)


def verify(
    model: nn.Module,
    x: Tensor | tuple | dict,
    penalty: str = "r1",
    *,
    output: object = None,
    model_args: tuple = NONE,
    model_kwargs: Mapping | None = None,
    **settings,
) -> Verification:
    """Compare a penalty on a model with plain autograd's double backpropagation through the same model.

    Compared are y, the penalty, the gradients of random combinations of both with respect to x and every parameter
    that requires one, and the buffers afterwards. In float64 the relative error must be at most 1e-9. In lower
    precisions both are compared with a float64 copy of the model, and ours may be off by twice autograd's own error;
    where the model has no such copy, or draws other numbers there, the two are compared with each other (1e-3).
    The model, its gradients, buffers and the random states are left as they were.

    Args:
        model: the network, in the mode that matters.
        x: input ``[B, ...]``, or several.
        penalty: the name of a penalty of `gradreg_fast.functional`, or of a primitive.
        output: which result counts; as for the penalties.
        model_args: the model's further arguments; as for the penalties.
        model_kwargs: likewise, by name.
        **settings: the penalty's further arguments.

    Returns:
        The comparisons.

    Raises:
        ParityError: if any differs.
        ValueError: if there is no penalty of that name.

    >>> critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(), nn.Linear(64, 1))
    >>> verify(critic, torch.randn(8, 2), "r1").passed
    True
    """
    if penalty not in (*functional.PENALTIES, *PRIMITIVES):
        names = ", ".join((*functional.PENALTIES, *PRIMITIVES))
        raise ValueError(f"penalty must be one of {names}, got {penalty!r}")
    model = original_of(model)
    ours = getattr(ops if penalty in PRIMITIVES else functional, penalty)
    theirs = getattr(reference, penalty)
    bound, joint = bind_call(model, x, "x", output, model_args, model_kwargs or {})
    with everything_restored(model):
        mine = evaluate(ours, model, bound, joint, settings)
        settings = {name: value for name, value in settings.items() if name not in WAYS}
        plain = evaluate(theirs, model, bound, joint, settings)
        exact = None if joint.dtype == torch.float64 else _in_double(theirs, model, bound, joint, settings)
    usable = exact is not None and all(
        _distance(plain[name], exact[name]) <= 0.1 * _largest(name, exact) for name in exact
    )
    rows = tuple(_compared(name, mine, plain, exact if usable else None, joint.dtype) for name in plain)
    against = "autograd in float64" if usable or joint.dtype == torch.float64 else f"autograd in {joint.dtype}"
    verification = Verification(penalty, against, rows)
    if not verification.passed:
        raise ParityError(verification)
    return verification


def evaluate(penalty: Callable, model: nn.Module, bound: Bound, x: Tensor, settings: Mapping) -> dict[str, Tensor]:
    """A penalty's values, gradients and what it leaves in the buffers, by name; the buffers are restored."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    settings = {name: _again(value) for name, value in settings.items()}
    leaf = x.detach().clone().requires_grad_()
    sources = {"x": leaf, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    torch.manual_seed(0)
    values = [value for value in _flat(penalty(bound, leaf, **settings)) if value.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    total = 0
    for value in values:
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu").bfloat16()
        total = total + (value * weights.to(value)).sum()
    found = [None] * len(sources)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    results = {f"value {i}": value.detach() for i, value in enumerate(values)}
    for (name, source), gradient in zip(sources.items(), found, strict=True):
        results[f"gradient of {name}"] = torch.zeros_like(source) if gradient is None else gradient.detach()
    for name, buffer in model.named_buffers():
        results[f"buffer {name}"] = buffer.detach().clone()
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return results


@contextmanager
def everything_restored(model: nn.Module) -> Iterator[None]:
    """Leave buffers and random states as they are."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _in_double(penalty, model, bound, x, settings) -> dict[str, Tensor] | None:
    try:
        twin = copy.deepcopy(model).double()
        again = Bound(twin, bound.signature, [_doubled(tensor) for tensor in bound.given])
        settings = {name: _doubled(value) for name, value in settings.items()}
        return evaluate(penalty, twin, again, x.double(), settings)
    except Exception:  # whatever a user's model cannot do there
        return None


def _doubled(value):
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _again(value):
    """A setting that the call may change, as it was."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return value.clone() if isinstance(value, Tensor) else value


def _compared(name, mine, plain, exact, dtype) -> Comparison:
    largest, size = _largest(name, plain), _norm(plain[name])
    if exact is None:
        rtol = DIRECT.get(dtype, 5e-2)
        floor = FLOOR if dtype == torch.float64 else torch.finfo(dtype).eps
        error = _distance(mine[name], plain[name])
        return Comparison(name, size, error, rtol * size + floor * largest)
    rounding = 4 * torch.finfo(dtype).eps * (size + largest)
    return Comparison(
        name, size, _distance(mine[name], exact[name]), 2 * _distance(plain[name], exact[name]) + rounding
    )


def _largest(name: str, results: dict[str, Tensor]) -> float:
    """The largest norm in the tensor's group, or 1."""
    return max([1.0, *(_norm(tensor) for other, tensor in results.items() if other.split()[0] == name.split()[0])])


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference; numbers that both lack (NaN, infinities) count nothing."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = float(torch.linalg.vector_norm(torch.where(same, 0.0, a - b)))
    return math.inf if math.isnan(error) else error


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(torch.nan_to_num(tensor.double(), 0.0, 0.0, 0.0)))


def _flat(nested) -> list[Tensor]:
    return [nested] if isinstance(nested, Tensor) else [tensor for member in nested for tensor in _flat(member)]
