"""The task losses and the penalties, each defined once, and the engines that compute them in PyTorch.

An engine is a function `(penalty name, model, batch) -> (y, penalty)`, the penalty averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Batch(NamedTuple):
    """What one step sees."""

    x: Tensor  # [B, ...]
    target: Tensor | None = None  # [B] classes, or shaped like y
    slope: Tensor | None = None  # shaped like x: the gradients to be matched
    seed: int = 0  # of random projections
    projections: int | None = None  # of an estimated Jacobian norm; None for the exact one

    def generator(self) -> torch.Generator:
        """A generator that gives every engine the same projections."""
        return torch.Generator(self.x.device).manual_seed(self.seed)


TASKS: dict[str, Callable] = {
    "cross_entropy": lambda y, target: F.cross_entropy(y, target),
    "mse": lambda y, target: F.mse_loss(y, target),
    "real": lambda y, target: F.softplus(-y).mean(),  # a critic that sees real samples
    "relativistic": lambda y, target: F.softplus(y.chunk(2)[1] - y.chunk(2)[0]).mean(),  # real half, fake half
    "none": lambda y, target: 0.0,
}


class Gradient(NamedTuple):
    """A penalty on `g`, the gradient of `scalar(y, batch)` in x; `measure(g, batch)` gives [B]."""

    scalar: Callable
    measure: Callable


class Jacobian(NamedTuple):
    """The squared Frobenius norm of the Jacobian of `head(y)` in x."""

    head: Callable


class Output(NamedTuple):
    """A penalty on the outputs alone; `measure(y)` gives [B]."""

    measure: Callable


def _total(y, batch):
    return y.sum()


def _square(g, batch):
    return g.square().flatten(1).sum(1)


def _excess(g, batch):
    return (g.flatten(1).norm(dim=1) - 1).square()


def _random_units(y, n, batch):
    cotangents = torch.randn(n, *y.shape, dtype=y.dtype, device=y.device, generator=batch.generator())
    return F.normalize(cotangents, dim=2)  # [n, B, K]


def one_hot(y: Tensor) -> Tensor:
    """The K cotangents whose pulled rows are the Jacobian."""
    return torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, *y.shape)  # [K, B, K]


def _cotangents(y, batch):
    """Those whose pulled squares add up to the squared Jacobian norm, exactly or on average."""
    if batch.projections is None:
        return one_hot(y)
    return _random_units(y, batch.projections, batch) * (y.shape[1] / batch.projections) ** 0.5


PENALTIES: dict[str, Gradient | Jacobian | Output] = {
    "double_backprop": Gradient(lambda y, batch: F.cross_entropy(y, batch.target, reduction="sum"), _square),
    "jacobian_frobenius": Jacobian(lambda y: y),
    "jacobian_softmax": Jacobian(lambda y: y.softmax(1)),
    "spectral_projection": Gradient(lambda y, batch: (y * _random_units(y, 1, batch)[0]).sum(), _square),
    "gradient_penalty": Gradient(_total, _excess),
    "eikonal": Gradient(_total, _excess),
    "r1": Gradient(_total, _square),
    "r1_r2": Gradient(_total, lambda g, batch: 2 * _square(g, batch)),  # mean over B of both halves, not over 2 B
    "gradient_matching": Gradient(_total, lambda g, batch: _square(g - batch.slope, batch)),
    "confidence_penalty": Output(lambda y: (y.softmax(1) * y.log_softmax(1)).sum(1)),
}


def square_by_loop(y: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
    """The sum of squares of all `J^T c`, one double-differentiable `grad` call for each c of [n, B, K]."""
    rows = (torch.autograd.grad(y, x, cotangent, create_graph=True)[0] for cotangent in cotangents)
    return sum(row.square().sum() for row in rows)


def square_batched(y: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
    """The same from one `grad` call, with `is_grads_batched`."""
    (rows,) = torch.autograd.grad(y, x, cotangents, create_graph=True, is_grads_batched=True)
    return rows.square().sum()


def autograd(name: str, model: Callable, batch: Batch, square: Callable = square_by_loop) -> tuple[Tensor, Tensor]:
    """The usual way: `torch.autograd.grad(..., create_graph=True)`."""
    x = batch.x.detach().requires_grad_()
    y = model(x)
    match PENALTIES[name]:
        case Gradient(scalar, measure):
            (g,) = torch.autograd.grad(scalar(y, batch), x, create_graph=True)
            return y, measure(g, batch).mean()
        case Jacobian(head):
            z = head(y)
            return y, square(z, x, _cotangents(z, batch)) / len(x)
        case Output(measure):
            return y, measure(y).mean()


def functional(name: str, model: Callable, batch: Batch) -> tuple[Tensor, Tensor]:
    """The same with `torch.func`: `grad`, or `vjp` and `vmap` over the K cotangents."""
    match PENALTIES[name]:
        case Gradient(scalar, measure):

            def value(x):
                y = model(x)
                return scalar(y, batch), y

            g, y = torch.func.grad(value, has_aux=True)(batch.x)
            return y, measure(g, batch).mean()
        case Jacobian(head):

            def outputs(x):
                y = model(x)
                return head(y), y

            z, pull, y = torch.func.vjp(outputs, batch.x, has_aux=True)
            (rows,) = torch.func.vmap(pull)(_cotangents(z, batch))
            return y, rows.square().sum() / len(batch.x)
        case Output(measure):
            y = model(batch.x)
            return y, measure(y).mean()


def unpenalised(name: str, model: Callable, batch: Batch) -> tuple[Tensor, float]:
    """No penalty."""
    return model(batch.x), 0.0


def gradreg_fast(name: str, model: Callable, batch: Batch) -> tuple[Tensor, Tensor]:
    """This library: one call of `gradreg_fast.functional`."""
    import gradreg_fast as library

    penalty = getattr(library.functional, name)
    match name:
        case "double_backprop":
            return penalty(model, batch.x, batch.target)
        case "gradient_matching":
            return penalty(model, batch.x, batch.slope)
        case "r1_r2":
            y, value = penalty(model, *batch.x.chunk(2))
            return torch.cat(y), value
        case "spectral_projection":
            return penalty(model, batch.x, generator=batch.generator())
        case "jacobian_frobenius" | "jacobian_softmax" if batch.projections:  # Dynamo takes no generator that is new
            return penalty(model, batch.x, projections=batch.projections, generator=batch.generator())
        case _:
            return penalty(model, batch.x)


ENGINES: dict[str, Callable] = {"gradreg_fast": gradreg_fast, "autograd": autograd, "none": unpenalised}
