"""The oracle: the same quantities by PyTorch's own double backpropagation. For tests and for verifying a model.

Every function takes what its namesake takes and records a graph of first derivatives, so that the result can be
differentiated as often as one likes. Random vectors are drawn as the namesake draws them. The model may be any function
of x. Nothing else in the package uses it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Model = Callable[[Tensor], Tensor]


def value_and_vjp(model: Model, x: Tensor, cotangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``y`` and ``J^T c``; x must require a gradient, or gets a detached copy that does."""
    x = leaf(x)
    y = model(x)
    cotangent = torch.ones_like(y) if cotangent is None else cotangent
    return y, gradient(y, x, cotangent)


def jacobian(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """``y`` and ``J^T e_k`` for each output k of a sample: ``[K, B, ...]``."""
    x = leaf(x)
    y = model(x)
    return y, rows(y, x)


def jacobian_sqnorm(
    model: Model, x: Tensor, projections: int | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """``y`` and ``||J||_F^2`` of each sample, or its estimate: ``[B]``."""
    x = leaf(x)
    y = model(x)
    return y, _norms(y, x, projections, generator)


def double_backprop(model, x, target, loss="cross_entropy", reduction="mean"):  # noqa: D103
    x = leaf(x)
    y = model(x)
    losses = sample_losses(y, target, loss)
    return y, reduced(squares(gradient(losses, x, torch.ones_like(losses))), reduction)


def jacobian_frobenius(model, x, projections=None, generator=None, reduction="mean"):  # noqa: D103
    y, norms = jacobian_sqnorm(model, x, projections, generator)
    return y, reduced(norms, reduction)


def contractive(model, x, reduction="mean"):  # noqa: D103
    return jacobian_frobenius(model, x, reduction=reduction)


def jacobian_softmax(model, x, projections=None, generator=None, reduction="mean"):  # noqa: D103
    x = leaf(x)
    y = model(x)
    return y, reduced(_norms(torch.softmax(y, 1), x, projections, generator), reduction)


def spectral_projection(model, x, generator=None, reduction="mean"):  # noqa: D103
    x = leaf(x)
    y = model(x)
    (v,) = directions(1, y, generator)
    return y, reduced(squares(gradient(y, x, v)), reduction)


def gradient_penalty(model, x, centre=1.0, one_sided=False, reduction="mean"):  # noqa: D103
    y, g = value_and_vjp(model, x)
    distance = torch.linalg.vector_norm(g.flatten(1), dim=1) - centre
    return y, reduced((distance.clamp_min(0) if one_sided else distance).square(), reduction)


def dragan(model, x, scale=0.5, centre=1.0, generator=None, reduction="mean"):  # noqa: D103
    noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    points = x.detach() + scale * x.detach().std(correction=0) * noise
    return gradient_penalty(model, points, centre, reduction=reduction)


def r1(model, x, reduction="mean"):  # noqa: D103
    y, g = value_and_vjp(model, x)
    return y, reduced(squares(g), reduction)


def r2(model, x, reduction="mean"):  # noqa: D103
    return r1(model, x, reduction)


def r1_r2(model, real, fake, reduction="mean"):  # noqa: D103
    (y_real, first), (y_fake, second) = r1(model, real, "none"), r1(model, fake, "none")
    joint = (
        torch.cat([first, second]) if reduction == "none" else reduced(first, reduction) + reduced(second, reduction)
    )
    return (y_real, y_fake), joint


def eikonal(model, x, reduction="mean"):  # noqa: D103
    return gradient_penalty(model, x, 1.0, reduction=reduction)


def jacobian_spectral_norm(model, x, iterations=1, vector=None, generator=None, reduction="mean"):  # noqa: D103
    x = leaf(x)
    y = model(x)
    u = directions(1, y, generator)[0] if vector is None else unit(vector.detach())
    for _ in range(iterations):
        v = torch.zeros_like(y, requires_grad=True)
        pulled = gradient(y, x, v)  # linear in v: its own gradient is J
        direction = gradient(y, x, u).detach()
        u = unit(torch.autograd.grad(pulled, v, direction)[0])
    if vector is not None:
        vector.copy_(u)
    return y, reduced(torch.linalg.vector_norm(gradient(y, x, u).flatten(1), dim=1), reduction)


def gradient_matching(model, x, target_gradient, reduction="mean"):  # noqa: D103
    y, columns = jacobian(model, x)
    target = target_gradient.unsqueeze(0) if target_gradient.shape == x.shape else target_gradient.transpose(0, 1)
    return y, reduced((columns - target).square().flatten(2).sum((0, 2)), reduction)


def confidence_penalty(model, x, reduction="mean"):  # noqa: D103
    y = model(x)
    p = torch.softmax(y, 1)
    return y, reduced((p * p.log()).flatten(1).sum(1), reduction)


def leaf(x: Tensor) -> Tensor:
    """X, if it requires a gradient, or a detached copy that does."""
    return x if x.requires_grad else x.detach().requires_grad_()


def gradient(y: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """``J^T c``, recorded; zero where y does not depend on x."""
    (g,) = torch.autograd.grad(y, x, cotangent, create_graph=True, materialize_grads=True)
    return g


def rows(y: Tensor, x: Tensor) -> Tensor:
    """``J^T e_k`` for each output k of a sample: ``[K, B, ...]``."""
    columns = y.flatten(1).unbind(1) if y.dim() > 1 else [y]
    return torch.stack([gradient(column, x, torch.ones_like(column)) for column in columns])


def squares(g: Tensor) -> Tensor:
    """Sum of squares of each sample: ``[B]``."""
    return g.square().reshape(len(g), g[0].numel() if len(g) else 0).sum(1)


def directions(n: int, y: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random unit vectors of each sample's outputs: ``[n, B, ...]``."""
    drawn = torch.randn(n, *y.shape, dtype=y.dtype, device=y.device, generator=generator)
    return torch.stack([unit(v) for v in drawn])


def unit(v: Tensor) -> Tensor:
    """Each sample's ``v / ||v||``."""
    norms = torch.linalg.vector_norm(v.flatten(1) if v.dim() > 1 else v.unsqueeze(1), dim=1)
    return v / norms.clamp_min(torch.finfo(v.dtype).tiny).view(-1, *(1,) * (v.dim() - 1))


def sample_losses(y: Tensor, target: Tensor, loss: str | Callable) -> Tensor:
    """Each sample's loss, the mean over its positions or outputs: ``[B]``."""
    if callable(loss):
        return loss(y, target)
    if loss == "cross_entropy":
        losses = functional.cross_entropy(y, target, reduction="none")
    elif loss == "mse":
        losses = (y - target.view_as(y)).square()
    else:
        losses = functional.binary_cross_entropy_with_logits(y, target.view_as(y).to(y.dtype), reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Values ``[B]`` reduced over the batch; the mean of no samples is zero."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" and len(values) else values.sum()


def _norms(y: Tensor, x: Tensor, projections: int | None, generator: torch.Generator | None) -> Tensor:
    if projections is None:
        return rows(y, x).square().reshape(-1, len(x), x[0].numel() if len(x) else 0).sum((0, 2))
    drawn = directions(projections, y, generator)
    return sum(squares(gradient(y, x, v)) for v in drawn) * (y[0].numel() / projections)
