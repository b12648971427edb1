"""Penalties on input gradients: each a few lines over the two primitives.

All are called ``penalty(model, x, ...)`` and return ``(y, penalty)``, so that the task loss shares the forward pass.
The penalty is the plain quantity of each sample, with no hidden weight or half, reduced over the batch by `reduction`:
``"mean"``, ``"sum"`` or ``"none"`` (shape ``[B]``). Where a sample has one output, it may be ``[B]`` or ``[B, 1]``.
With the further argument ``save="recompute"`` those that are differentiated in closed form keep nothing for the
backward pass and compute it again there (see `gradreg_fast.recompute`); with ``chunk_size=n`` also n samples at a time
(see `gradreg_fast.chunks`). Models with several inputs, keyword arguments or several results: with ``model_args``,
``model_kwargs``, ``output`` and a tuple or dictionary for x (see `gradreg_fast.signature.callable_with`); of the
results `output` selects the y that is returned.

Tensors have the model's device and a floating-point dtype that it takes. The penalty has y's dtype, or float32 where
that is narrower. What raises leaves parameters, gradients, buffers and random states as they were.

With ``J = dy/dx`` of one sample and ``g = J^T 1``:

    >>> import torch, gradreg_fast
    >>> critic = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.LeakyReLU(0.2), torch.nn.Linear(64, 1))
    >>> y, penalty = gradreg_fast.functional.r1(critic, torch.zeros(8, 2))
    >>> (torch.nn.functional.softplus(-y).mean() + 5.0 * penalty).backward()
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradreg_fast import ops
from gradreg_fast.chunks import chunkable, reduced
from gradreg_fast.compiling import compilable
from gradreg_fast.engine import Linearization
from gradreg_fast.recompute import recomputable
from gradreg_fast.rules.base import at_least_single
from gradreg_fast.rules.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from gradreg_fast.rules.opaque import Opaque
from gradreg_fast.rules.softmax import Softmax
from gradreg_fast.signature import Bound, callable_with
from gradreg_fast.undo import remember

_LOSSES = {"cross_entropy": CrossEntropy(), "mse": MeanSquaredError(), "bce_with_logits": BinaryCrossEntropy()}
_SOFTMAX = Softmax()

PENALTIES = (
    "confidence_penalty",
    "contractive",
    "double_backprop",
    "dragan",
    "eikonal",
    "gradient_matching",
    "gradient_penalty",
    "jacobian_frobenius",
    "jacobian_softmax",
    "jacobian_spectral_norm",
    "r1",
    "r1_r2",
    "r2",
    "spectral_projection",
)


@compilable
@chunkable
@recomputable
@callable_with()
def double_backprop(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Squared norm of the loss's input gradient: ``||d loss_b / d x_b||^2``.

    Drucker and LeCun 1992, "Improving generalization performance using double backpropagation"; DoubleBack in Varga et
    al. 2017 (arXiv:1712.09936). The loss is each sample's own, not its share of a batch mean; over a sample's several
    outputs or positions it is the mean.

    Args:
        model: the network; returns the logits or predictions y.
        x: input ``[B, ...]``.
        target: what the loss compares y with: class indices ``[B]`` or probabilities like y, or values like y.
        loss: ``"cross_entropy"``, ``"mse"``, ``"bce_with_logits"``, or a function of ``(y, target)`` that returns each
            sample's loss ``[B]`` (differentiated by autograd).
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the target or the loss is not what it must be.
        ValueError: if the loss's name, the target's shape or the reduction is not.

    >>> network, x, target = nn.Linear(2, 1), torch.randn(8, 2), torch.zeros(8, 1)
    >>> y, penalty = double_backprop(network, x, target, loss="mse")
    >>> torch.testing.assert_close(penalty, (2 * y * network.weight).square().sum(1).mean())
    """
    check_reduction(reduction)
    if isinstance(loss, str) and loss not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(_LOSSES)} or a function, got {loss!r}")
    ops.check_floating(x, "x")
    check_target(target, x)
    if isinstance(loss, str):
        head = _LOSSES[loss]
    elif callable(loss):
        head = Opaque(lambda inputs, parameters, extras: _sample_losses(loss, inputs[0], parameters[0]), "loss")
    else:
        raise TypeError(f"loss must be a name or a function, got {type(loss).__name__}")
    graph, tensors = ops.prepare(model, x, head, target)
    y, norms = ops.sqnorm(graph, tensors, x)
    return y, reduced(norms, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def jacobian_frobenius(
    model: nn.Module,
    x: Tensor,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
    cotangent_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norm of the outputs' Jacobian: ``||J||_F^2``.

    FrobReg in Varga et al. 2017 (arXiv:1712.09936) for logits; Hoffman et al. 2019 (arXiv:1908.02729) for the estimate.

    Args:
        model: the network; returns y ``[B, ...]``.
        x: input ``[B, ...]``.
        projections: number of random projections of an unbiased estimate; None for the exact norm.
        generator: for the projections.
        reduction: over the batch.
        cotangent_chunk_size: how many outputs (or projections) there are at a time; see `gradreg_fast.jacobian_sqnorm`.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if there is no such reduction, `projections` or `cotangent_chunk_size` is not a positive
            integer.

    >>> network, x = nn.Linear(3, 2), torch.randn(8, 3)
    >>> y, penalty = jacobian_frobenius(network, x)
    >>> torch.testing.assert_close(penalty, network.weight.square().sum())
    >>> y, estimate = jacobian_frobenius(network, x, projections=1)
    """
    check_reduction(reduction)
    y, norms = ops.jacobian_sqnorm(model, x, projections, generator, cotangent_chunk_size)
    return y, reduced(norms, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def contractive(
    model: nn.Module, x: Tensor, reduction: str = "mean", cotangent_chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norm of an encoder's Jacobian, ``||dh/dx||_F^2``: Rifai et al. 2011, equation 1.

    Args:
        model: the encoder; returns the code h ``[B, ...]``.
        x: input ``[B, ...]``.
        reduction: over the batch.
        cotangent_chunk_size: how many units of the code there are at a time; see `gradreg_fast.jacobian_sqnorm`.

    Returns:
        h, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if there is no such reduction, or `cotangent_chunk_size` is not a positive integer.

    >>> encoder, x = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), torch.randn(8, 3)
    >>> h, penalty = contractive(encoder, x)
    >>> squares = encoder[0].weight.square().sum(1)  # of each unit's weights  # [2]
    >>> torch.testing.assert_close(penalty, ((h * (1 - h)).square() @ squares).mean())
    """
    return jacobian_frobenius(model, x, reduction=reduction, cotangent_chunk_size=cotangent_chunk_size)


@compilable
@chunkable
@recomputable
@callable_with()
def jacobian_softmax(
    model: nn.Module,
    x: Tensor,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
    cotangent_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norm of the Jacobian of the probabilities: ``||d softmax(y) / dx||_F^2``.

    JacReg in Varga et al. 2017 (arXiv:1712.09936), by our reading of its abstract.

    Args:
        model: the network; returns logits y ``[B, C, ...]``.
        x: input ``[B, ...]``.
        projections: number of random projections of an unbiased estimate; None for the exact norm.
        generator: for the projections.
        reduction: over the batch.
        cotangent_chunk_size: how many outputs (or projections) there are at a time; see `gradreg_fast.jacobian_sqnorm`.

    Returns:
        The logits y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if there is no such reduction, `projections` or `cotangent_chunk_size` is not a positive
            integer.

    >>> network, x = nn.Linear(3, 4), torch.randn(8, 3)
    >>> y, penalty = jacobian_softmax(network, x)
    >>> probabilities, same = jacobian_frobenius(nn.Sequential(network, nn.Softmax(1)), x)
    >>> torch.testing.assert_close(penalty, same)
    """
    check_reduction(reduction)
    graph, tensors = ops.prepare(model, x, _SOFTMAX)
    y, norms = ops.sqnorm_or_estimate(graph, tensors, x, projections, generator, cotangent_chunk_size)
    return y, reduced(norms, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def spectral_projection(
    model: nn.Module, x: Tensor, generator: torch.Generator | None = None, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Squared norm of the gradient of one random projection of the outputs: ``||J^T v||^2``, ``||v|| = 1``.

    SpectReg in Varga et al. 2017 (arXiv:1712.09936); v is uniform on the unit sphere, drawn for each sample.

    Args:
        model: the network; returns y ``[B, ...]``.
        x: input ``[B, ...]``.
        generator: for the projection.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if there is no such reduction.

    >>> network, x = nn.Linear(3, 2), torch.randn(8, 3)
    >>> y, penalty = spectral_projection(network, x)
    >>> bool(penalty <= torch.linalg.matrix_norm(network.weight, 2) ** 2)
    True
    """
    check_reduction(reduction)
    graph, tensors = ops.prepare(model, x)
    y, norms = ops.sqnorm(graph, tensors, x, ops.RandomUnits(1, generator))
    return y, reduced(norms, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def gradient_penalty(
    model: nn.Module, x: Tensor, centre: float = 1.0, one_sided: bool = False, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Distance of the gradient's norm from a centre: ``(||g|| - centre)^2``, or ``max(0, ||g|| - centre)^2``.

    WGAN-GP, Gulrajani et al. 2017 (arXiv:1704.00028), equation 3, at points made by `interpolate`; one-sided: Petzka et
    al. 2018 (arXiv:1709.08894).

    Args:
        model: the critic; returns one output a sample.
        x: where the gradient is penalised ``[B, ...]``.
        centre: the wanted norm.
        one_sided: leave smaller norms alone.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, there is no such reduction, or the centre is not
            finite.

    >>> critic, real, fake = nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 2)
    >>> _, penalty = gradient_penalty(critic, interpolate(real, fake))
    >>> torch.testing.assert_close(penalty, (critic.weight.norm() - 1) ** 2)
    >>> (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
    """
    check_reduction(reduction)
    if not isinstance(centre, (int, float, torch.SymFloat)) or not abs(centre) < float("inf"):
        raise ValueError(f"centre must be a finite number, got {centre!r}")
    y, norms = _one_output_sqnorm(model, x)
    distance = safe_sqrt(norms) - centre
    return y, reduced((distance.clamp_min(0) if one_sided else distance).square(), reduction)


def interpolate(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """WGAN-GP's points: each sample at a uniformly random place between a real and a generated one.

    Args:
        real: ``[B, ...]``.
        fake: ``[B, ...]``, the same shape.
        generator: for the places.

    Returns:
        Points ``[B, ...]``, detached.

    Raises:
        ValueError: if the shapes differ.

    >>> points = interpolate(torch.zeros(4, 3), torch.ones(4, 3))
    >>> bool((points == points[:, :1]).all()), bool((points[0] == points[1]).all())
    (True, False)
    """
    if real.shape != fake.shape:
        raise ValueError(f"fake must be shaped like real {tuple(real.shape)}, got {tuple(fake.shape)}")
    shape = (real.shape[0], *(1,) * (real.dim() - 1))
    place = ops.random(torch.rand, shape, real, generator)
    return torch.lerp(real.detach(), fake.detach(), place)


@compilable
@recomputable
@callable_with()
def dragan(
    model: nn.Module,
    x: Tensor,
    scale: float = 0.5,
    centre: float = 1.0,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """`gradient_penalty` in a neighbourhood of the data: DRAGAN, Kodali et al. 2017 (arXiv:1705.07215).

    The points are ``x + scale std(x) n`` with n standard normal and ``std(x)`` taken over the whole batch.

    Args:
        model: the critic; returns one output a sample.
        x: real samples ``[B, ...]``.
        scale: size of the neighbourhood, in standard deviations.
        centre: the wanted norm.
        generator: for the noise.
        reduction: over the batch.

    Returns:
        y at the points, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, there is no such reduction, or the centre is not
            finite.

    >>> critic, x = nn.Linear(2, 1), torch.randn(8, 2)
    >>> _, penalty = dragan(critic, x)
    >>> torch.testing.assert_close(penalty, (critic.weight.norm() - 1) ** 2)
    """
    ops.check_floating(x, "x")
    remember((), x.device if generator is None else None)
    noise = ops.random(torch.randn, x.shape, x, generator)
    spread = x.detach().std(correction=0) if x.numel() else 0.0
    points = x.detach() + scale * spread * noise
    return gradient_penalty(model, points, centre, reduction=reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def r1(model: nn.Module, x: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """Squared norm of the critic's gradient at real samples, ``||g||^2``: Mescheder et al. 2018 (arXiv:1801.04406).

    Their equation 9 has half of it, times a weight.

    Args:
        model: the critic; returns one output a sample.
        x: real samples ``[B, ...]``.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, or there is no such reduction.

    >>> critic, real = nn.Linear(2, 1), torch.randn(8, 2)
    >>> y, penalty = r1(critic, real)
    >>> torch.testing.assert_close(penalty, critic.weight.square().sum())
    >>> r1(critic, real, reduction="none")[1].shape
    torch.Size([8])
    """
    check_reduction(reduction)
    y, norms = _one_output_sqnorm(model, x)
    return y, reduced(norms, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def r2(model: nn.Module, x: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """`r1` at generated samples: Mescheder et al. 2018 (arXiv:1801.04406), equation 10 without its half.

    Args:
        model: the critic; returns one output a sample.
        x: generated samples ``[B, ...]``.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, or there is no such reduction.

    >>> critic, fake = nn.Linear(2, 1), torch.randn(8, 2)
    >>> y, penalty = r2(critic, fake)
    >>> torch.testing.assert_close(penalty, critic.weight.square().sum())
    """
    return r1(model, x, reduction)


@compilable
@recomputable
@callable_with()
def r1_r2(
    model: nn.Module, real: Tensor, fake: Tensor, reduction: str = "mean"
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """`r1` at real and `r2` at generated samples, added, in one pass: Huang et al. 2024 (R3GAN, arXiv:2501.05441).

    A critic with batch statistics, or with further tensors for arguments (the same for both), sees the two batches one
    after the other.

    Args:
        model: the critic; returns one output a sample.
        real: ``[B, ...]``.
        fake: ``[C, ...]``.
        reduction: over each batch; ``"none"`` gives both batches' values, ``[B + C]``.

    Returns:
        ``(y of real, y of fake)``, and the penalty: the sum of the two, a scalar, or ``[B + C]``
        without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, there is no such reduction, or the samples'
            shapes differ.

    >>> critic, real, fake = nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 2)
    >>> (y_real, y_fake), penalty = r1_r2(critic, real, fake)
    >>> torch.testing.assert_close(penalty, 2 * critic.weight.square().sum())
    """
    check_reduction(reduction)
    ops.check_floating(real, "real")
    ops.check_floating(fake, "fake")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"fake must have samples shaped like real's {tuple(real.shape[1:])}, got {tuple(fake.shape)}")
    graph, _ = ops.prepare(model, real)
    if graph.couples_samples or (isinstance(model, Bound) and model.given):
        y_real, first = _one_output_sqnorm(model, real)
        y_fake, second = _one_output_sqnorm(model, fake)
    else:
        y, norms = _one_output_sqnorm(model, torch.cat([real, fake]))
        y_real, y_fake = y.split([real.shape[0], fake.shape[0]])
        first, second = norms.split([real.shape[0], fake.shape[0]])
    if reduction == "none":
        return (y_real, y_fake), torch.cat([first, second])
    return (y_real, y_fake), reduced(first, reduction) + reduced(second, reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def eikonal(model: nn.Module, x: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """``(||g|| - 1)^2``, which a signed distance satisfies with zero: Gropp et al. 2020 (arXiv:2002.10099), equation 2.

    Args:
        model: the distance; returns one output a point.
        x: points ``[B, D]``.
        reduction: over the points.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if the model returns more than one output a sample, or there is no such reduction.

    >>> plane = nn.Linear(2, 1).requires_grad_(False)
    >>> plane.weight[:] = torch.tensor([0.6, 0.8])  # of length 1: its values are distances
    >>> distance, penalty = eikonal(plane, torch.randn(8, 2))
    >>> torch.testing.assert_close(penalty, torch.tensor(0.0))
    """
    return gradient_penalty(model, x, 1.0, reduction=reduction)


@compilable
@callable_with()
def jacobian_spectral_norm(
    model: nn.Module,
    x: Tensor,
    iterations: int = 1,
    vector: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Largest singular value of each sample's Jacobian, ``sigma = max ||J^T u||`` over unit u, by power iteration.

    ``u <- J J^T u / ||J J^T u||`` on one forward pass, without recording; then ``sigma = ||J^T u||`` with u held
    constant, whose gradient is sigma's own once u has converged. Before that sigma is a lower bound.

    Args:
        model: the network; returns y ``[B, ...]``.
        x: input ``[B, ...]``.
        iterations: steps from the start vector.
        vector: start vectors shaped like y, overwritten with the last u: keep them for a warm start of the next call on
            the same samples. Random by default.
        generator: for the random start.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        ValueError: if `iterations` is negative or the vector's shape is not that of y.

    >>> network, x = nn.Linear(3, 2).double(), torch.randn(8, 3).double()
    >>> y, penalty = jacobian_spectral_norm(network, x, iterations=300)
    >>> torch.testing.assert_close(penalty, torch.linalg.matrix_norm(network.weight, 2))
    """
    check_reduction(reduction)
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be a non-negative integer, got {iterations!r}")
    if vector is not None:
        ops.check_floating(vector, "vector")
    graph, tensors = ops.prepare(model, x)
    draw = ops.RandomUnits(1, generator)

    def iterate(linearization: Linearization) -> Tensor:
        if vector is None:
            u = draw(linearization)
        else:
            ops.check_cotangent(vector.unsqueeze(0), linearization, "vector")
            u = ops.unit(vector.detach().unsqueeze(0))
        for _ in range(iterations):
            pulled, _ = linearization.pull({graph.seed: u})
            u = ops.unit(linearization.push({0: pulled}, graph.seed)[0])
        if vector is not None:
            with torch.no_grad():
                vector.copy_(u[0])
        return u

    y, norms = ops.sqnorm(graph, tensors, x, iterate)
    return y, reduced(safe_sqrt(norms), reduction)


@compilable
@chunkable
@recomputable
@callable_with()
def gradient_matching(
    model: nn.Module, x: Tensor, target_gradient: Tensor, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Squared error of the input gradients: ``||J - target||_F^2``.

    Sobolev training, Czarnecki et al. 2017 (arXiv:1706.04859), at first order with the squared error; gradient
    information in McDonagh and Chen 2021 (arXiv:2112.00094), by our reading of its abstract; forces, with the energy's
    negative gradient.

    Args:
        model: the network; returns y ``[B]``, ``[B, 1]`` or ``[B, K]``.
        x: input ``[B, ...]``.
        target_gradient: shaped like x for one output a sample, ``[B, K, ...]`` (a Jacobian each) for K.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        ValueError: if the target's shape fits neither.

    >>> network, x, slopes = nn.Linear(2, 1), torch.randn(8, 2), torch.ones(8, 2)
    >>> y, penalty = gradient_matching(network, x, slopes)
    >>> torch.testing.assert_close(penalty, (network.weight - 1).square().sum())
    """
    check_reduction(reduction)
    ops.check_floating(target_gradient, "target_gradient")
    graph, tensors = ops.prepare(model, x)
    if target_gradient.shape == x.shape:
        target = target_gradient.unsqueeze(0)
    elif target_gradient.dim() == x.dim() + 1 and x.shape == (len(target_gradient), *target_gradient.shape[2:]):
        target = target_gradient.transpose(0, 1)
    else:
        raise ValueError(
            f"target_gradient must be shaped like x {tuple(x.shape)}, or have the outputs as a further dimension 1, "
            f"got {tuple(target_gradient.shape)}"
        )

    y, distances = ops.jacobian_distance(graph, tensors, x, target)
    return y, reduced(distances, reduction)


@compilable
@callable_with()
def confidence_penalty(model: nn.Module, x: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """Negative entropy of the predicted distribution, ``sum_c p_c log p_c``: Pereyra et al. 2017 (arXiv:1701.06548).

    No gradient penalty, but the usual rival of one.

    Args:
        model: the network; returns logits y ``[B, C]``.
        x: input ``[B, ...]``.
        reduction: over the batch.

    Returns:
        y, and the penalty: a scalar, or ``[B]`` without reduction.

    Raises:
        TypeError: if the model is not a module that returns one tensor, or x not a real floating-point tensor.
        ValueError: if there is no such reduction.

    >>> undecided = nn.Linear(2, 4).requires_grad_(False)
    >>> undecided.weight[:], undecided.bias[:] = 0, 0
    >>> y, penalty = confidence_penalty(undecided, torch.randn(8, 2))
    >>> torch.testing.assert_close(penalty.exp(), torch.tensor(1 / 4))
    """
    check_reduction(reduction)
    ops.check_model(model)
    ops.check_floating(x, "x")
    remember((model.model if isinstance(model, Bound) else model).buffers(), x.device)
    y = model(x)
    logarithms = torch.log_softmax(y, 1, dtype=at_least_single(y.dtype))
    return y, reduced((logarithms.exp() * logarithms).flatten(1).sum(1), reduction)


def _sample_losses(loss: Callable[[Tensor, Tensor], Tensor], y: Tensor, target: Tensor) -> Tensor:
    """What a user's loss function returns, checked."""
    losses = loss(y, target)
    if not isinstance(losses, Tensor) or losses.shape != (y.shape[0],):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return each sample's loss, a tensor of shape ({len(y)},), got {got}")
    return losses


def _one_output_sqnorm(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and ``||g||^2`` of a model with one output a sample."""
    return ops.sqnorm(*ops.prepare(model, x), x, one_output=True)


def named(penalty: Callable | str) -> Callable:
    """The penalty of a name; a function as it is."""
    if isinstance(penalty, str):
        if penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}")
        return globals()[penalty]
    if not callable(penalty):
        raise TypeError(f"penalty must be a function or a name, got {type(penalty).__name__}")
    return penalty


def safe_sqrt(norms: Tensor) -> Tensor:
    """Square root with derivative zero at zero, as PyTorch's norms have it (its value there is 1e-19, in float32)."""
    return norms.clamp_min(torch.finfo(norms.dtype).tiny).sqrt()


def check_reduction(reduction: str) -> None:
    """Raise unless the reduction is known."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_target(target: Tensor, x: Tensor) -> None:
    """Raise unless a target can go with x."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.requires_grad:
        raise ValueError("target must not require a gradient: detach it")
    if target.device != x.device:
        raise ValueError(f"target must be on x's device {x.device}, got {target.device}")
    if target.is_complex():
        raise TypeError(f"target must be real, got {target.dtype}")
    if x.dim() == 0 or target.dim() == 0 or target.shape[0] != x.shape[0]:
        raise ValueError(f"target must have one row for each sample of x {tuple(x.shape)}, got {tuple(target.shape)}")
