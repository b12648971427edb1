"""Lower precision: never much worse than eager autograd in the same precision, both against float64."""

import copy

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional
from tests.parity import evaluate, jacobian_sqnorm, manual_seed, recorded_gradient, squares, value_and_vjp

pytestmark = pytest.mark.usefixtures("each_backend")

SEEDS = 3


def mlp(outputs, make=nn.Softplus):
    return nn.Sequential(nn.Linear(16, 24), make(), nn.Linear(24, 20), make(), nn.Linear(20, outputs))


def far_from_zero(conv):
    nn.init.constant_(conv.bias, 5)
    return conv


def images_with_means(*norms):
    """Many pixels, whose means are far from zero, under each of the norms."""
    layers = [far_from_zero(nn.Conv2d(2, 6, 3)), norms[0], nn.SiLU(), far_from_zero(nn.Conv2d(6, 6, 3)), norms[1]]
    return nn.Sequential(*layers, nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(6 * 36, 2))


NETWORKS = {
    "dense": (lambda: mlp(5), (8, 16)),
    "one hidden layer": (lambda: nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 7)), (8, 16)),
    "critic": (lambda: mlp(1, lambda: nn.LeakyReLU(0.2)), (8, 16)),
    "wide input": (
        lambda: nn.Sequential(nn.Linear(200, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)),
        (16, 200),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (4, 2, 8, 8),
    ),
    "one channel, groups": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Softplus(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6, 1),
        ),
        (4, 1, 8, 8),
    ),
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 3)),
        (16, 16),
    ),
    "convolutional, batch statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 2)
        ),
        (4, 2, 8, 8),
    ),
    "many pixels, batch statistics": (
        lambda: images_with_means(nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False, momentum=None)),
        (16, 2, 28, 28),
    ),
    "many pixels, statistics of groups": (
        lambda: images_with_means(nn.GroupNorm(2, 6), nn.GroupNorm(3, 6)),
        (4, 2, 28, 28),
    ),
}
QUANTITIES = {
    "vjp": (gradreg_fast.value_and_vjp, value_and_vjp),
    "norm": (gradreg_fast.jacobian_sqnorm, jacobian_sqnorm),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.each_processor if "convolutional" in name else ()) for name in NETWORKS],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_at_most_twice_eagers(name, quantity, dtype):
    """Each value and gradient norm-wise, root mean square over seeds."""
    make, shape = NETWORKS[name]
    ours, reference = QUANTITIES[quantity]
    errors = {}
    for seed in range(SEEDS):
        manual_seed(seed)
        model, x = make().to(dtype), torch.randn(shape).to(dtype)
        exact_model, exact_x = copy.deepcopy(model).double(), x.double()
        exact = evaluate(reference, exact_model, [exact_x], seed)
        results = [evaluate(ours, model, [x], seed), evaluate(reference, model, [x], seed)]
        for group, tensors in exact.items():
            scale = max([float(tensor.double().norm()) for tensor in tensors.values()], default=0.0)
            for entry, expected in tensors.items():
                size = max(float(expected.double().norm()), 0.1 * scale)  # some are zero but for rounding
                pair = errors.setdefault((group, entry), [0.0, 0.0])
                for i, result in enumerate(results):
                    assert group == "values" or result[group][entry].dtype in (dtype, torch.long)
                    pair[i] += (float((result[group][entry].double() - expected.double()).norm()) / (size or 1.0)) ** 2
    eps = torch.finfo(dtype).eps
    for key, (mine, eager) in errors.items():
        mine, eager = (mine / SEEDS) ** 0.5, (eager / SEEDS) ** 0.5
        assert mine <= 2 * eager + 4 * eps, f"{key}: ours {mine:.2e}, eager {eager:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_are_kept(dtype):
    model, x = mlp(1).to(dtype), torch.randn(8, 16).to(dtype)
    for penalty in (
        functional.gradient_penalty,
        functional.r1,
        functional.jacobian_softmax,
        functional.jacobian_spectral_norm,
    ):
        y, value = penalty(model, x)
        value.backward()
        assert y.dtype == dtype
        assert all(parameter.grad is None or parameter.grad.dtype == dtype for parameter in model.parameters())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_norms_of_small_and_large_gradients_in_float32(scale):
    """Squares stay in range, and the norm's gradient is finite."""
    manual_seed(0)
    model, x = mlp(1), torch.randn(8, 16)
    with torch.no_grad():
        model[4].weight.mul_(scale)
    _, value = functional.gradient_penalty(model, x, 0.0)
    value.backward()
    leaf = x.clone().requires_grad_()
    expected = squares(recorded_gradient(model(leaf), leaf, torch.ones(8, 1))).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
