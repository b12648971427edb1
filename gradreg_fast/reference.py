"""The oracle: the same quantities by PyTorch's own double backpropagation. For tests and for verifying a model.

Every function takes what its namesake takes and records a graph of first derivatives, so that the result can be
differentiated as often as one likes. Nothing else in the package uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def value_and_vjp(model: nn.Module, x: Tensor, cotangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``y`` and ``J^T c``; x must require a gradient, or gets a detached copy that does."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = model(x)
    cotangent = torch.ones_like(y) if cotangent is None else cotangent
    return y, gradient(y, x, cotangent)


def jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``y`` and ``J^T e_k`` for each output k of a sample: ``[K, B, ...]``."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = model(x)
    columns = y.flatten(1).unbind(1) if y.dim() > 1 else [y]
    return y, torch.stack([gradient(column, x, torch.ones_like(column)) for column in columns])


def jacobian_sqnorm(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``y`` and ``||J||_F^2`` of each sample: ``[B]``."""
    y, rows = jacobian(model, x)
    return y, rows.square().reshape(*rows.shape[:2], x[0].numel() if len(x) else 0).sum((0, 2))


def gradient(y: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """``J^T c``, recorded; zero where y does not depend on x."""
    (g,) = torch.autograd.grad(y, x, cotangent, create_graph=True, materialize_grads=True)
    return g
