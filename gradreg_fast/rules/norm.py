r"""Batch normalisation in closed form, for training (batch statistics) and evaluation (running statistics).

Per channel, with N elements, ``m`` the mean over them, ``i = (var + eps)^{-1/2}`` and ``xhat = (x - m(x)) i``:

    J = gamma i P,    P v = v - m(v) - xhat m(xhat v)           (P is symmetric, and dxhat/dx = i P)
    <u, J v> = gamma i N S,    S = m(u v) - m(u) m(v) - m(u xhat) m(v xhat)
    d<u, J v>/dx = -gamma i^2 (S xhat + m(v xhat) P u + m(u xhat) P v)
    d<u, J v>/dgamma = i N S
"""

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, dot_stacks


class BatchNormTrain(Rule):
    """``gamma xhat + beta`` with the batch's own statistics; updates the running ones once, in `forward`.

    Parameters are gamma and beta; running_mean, running_var and num_batches_tracked are updated; each possibly None.
    """

    curvature_free = False
    couples_samples = True

    def __init__(self, eps: float, momentum: float | None) -> None:
        self.eps = eps
        self.momentum = momentum

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta = parameters
        running_mean, running_var, batches = extras
        if x.numel() == x.shape[1]:
            raise ValueError(f"batch statistics need more than one value per channel, got an input of {tuple(x.shape)}")
        if batches is not None:
            batches.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative average
            momentum = 0.0 if batches is None else 1.0 / float(batches)
        y, mean, inverse = torch.native_batch_norm(x, gamma, beta, running_mean, running_var, True, momentum, self.eps)
        return y, (x, mean, inverse)

    def pull(self, saved, parameters, u):
        return (self._project(saved, parameters[0], u),)

    def push(self, saved, parameters, xdots):
        ydot = self._project(saved, None, xdots[0])
        return ydot if parameters[0] is None else ydot.mul_(channels(parameters[0], ydot.dim() - 3))

    def curvature(self, saved, parameters, u, xdots, gradients):
        gamma, (x, mean, inverse) = parameters[0], saved
        (v,) = xdots
        dims, spatial = [0, *range(2, x.dim())], x.dim() - 2
        size = x.numel() // x.shape[1]
        xhat = (x - channels(mean, spatial)).mul_(channels(inverse, spatial))
        stacked = [dim + 1 for dim in dims]
        u_mean, v_mean = u.mean(stacked), v.mean(stacked)  # [K, C]
        u_xhat, v_xhat = (u * xhat).mean(stacked), (v * xhat).mean(stacked)
        S = dot_stacks(u, v).mean(dims) - (u_mean * v_mean).sum(0) - (u_xhat * v_xhat).sum(0)  # [C]
        gradients.add(0, lambda: size * inverse * S)
        # sum_k of v_xhat^k P u^k + u_xhat^k P v^k, with P's three terms gathered
        second = dot_stacks(channels(v_xhat, spatial), u).add_(dot_stacks(channels(u_xhat, spatial), v))
        second -= channels((v_xhat * u_mean + u_xhat * v_mean).sum(0), spatial)
        second.addcmul_(xhat, channels(S - 2 * (u_xhat * v_xhat).sum(0), spatial))
        scale = -inverse.square() if gamma is None else -inverse.square() * gamma
        return (second.mul_(channels(scale, spatial)),)

    def gradient(self, saved, parameters, d, gradients):
        x, mean, inverse = saved
        dims = [0, *range(2, x.dim())]
        gradients.add(0, lambda: ((x - channels(mean, x.dim() - 2)).mul_(d)).sum(dims) * inverse)
        gradients.add(1, lambda: d.sum(dims))

    def _project(self, saved, weight: Tensor | None, stack: Tensor) -> Tensor:
        """``i P (weight v)`` for each member v of the stack."""
        x, mean, inverse = saved
        rows = [
            torch.ops.aten.native_batch_norm_backward(
                v, x, weight, None, None, mean, inverse, True, self.eps, [True, False, False]
            )[0]
            for v in stack
        ]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


class BatchNormEval(Rule):
    """``gamma (x - running_mean) / sqrt(running_var + eps) + beta``: linear in x.

    Parameters are gamma, beta (each possibly None), running_mean and running_var.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        gamma, beta, mean, var = parameters
        return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False, 0.0, self.eps), (x,)

    def pull(self, saved, parameters, u):
        return (u * channels(self._scale(parameters), u.dim() - 3),)

    def push(self, saved, parameters, xdots):
        return self.pull(saved, parameters, xdots[0])[0]

    def curvature(self, saved, parameters, u, xdots, gradients):
        dims = [0, *range(2, u.dim() - 1)]
        gradients.add(0, lambda: dot_stacks(u, xdots[0]).sum(dims) * self._inverse(parameters))
        return (None,)

    def gradient(self, saved, parameters, d, gradients):
        (x,) = saved
        dims = [0, *range(2, d.dim())]
        gradients.add(
            0, lambda: ((x - channels(parameters[2], x.dim() - 2)).mul_(d)).sum(dims) * self._inverse(parameters)
        )
        gradients.add(1, lambda: d.sum(dims))

    def _inverse(self, parameters) -> Tensor:
        return torch.rsqrt(parameters[3] + self.eps)

    def _scale(self, parameters) -> Tensor:
        inverse = self._inverse(parameters)
        return inverse if parameters[0] is None else inverse * parameters[0]


def channels(statistic: Tensor, spatial: int) -> Tensor:
    """Shape ``[C]`` or ``[K, C]`` so that it broadcasts against values or stacks with that many spatial dimensions."""
    stacked = statistic.shape[:-1]
    return statistic.view(*stacked, *(1,) * len(stacked), -1, *(1,) * spatial)
