"""Activations of the compiled kernels: phi, phi' and phi'' over the whole range, against float64."""

import math

import pytest
import torch
from torch.nn import functional

from gradreg_fast.backend import library

pytestmark = [
    pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}"),
    pytest.mark.each_processor,
]

ROOT = math.sqrt(2 / math.pi)


def gelu(z):
    """Without PyTorch's cancellation of 1 and erf(z / sqrt 2) far below zero."""
    return 0.5 * z * torch.special.erfc(-z / math.sqrt(2))


def gelu_tanh(z):
    """Likewise, of 1 and tanh."""
    return z * torch.sigmoid(2 * ROOT * (z + 0.044715 * z**3))


# Name: number in csrc/common/activation.h, settings, the function.
CASES = {
    "identity": (0, (0, 0), lambda z: z.clone()),
    "relu": (1, (0, 0), torch.relu),
    "leaky_relu": (2, (0.2, 0), lambda z: functional.leaky_relu(z, 0.2)),
    "leaky_relu_negative": (2, (-0.5, 0), lambda z: functional.leaky_relu(z, -0.5)),
    "softplus": (3, (1, 20), functional.softplus),
    "softplus_sharp": (3, (100, 20), lambda z: functional.softplus(z, 100)),
    "softplus_low": (3, (1, 0.5), lambda z: functional.softplus(z, 1, 0.5)),
    "tanh": (4, (0, 0), torch.tanh),
    "sigmoid": (5, (0, 0), torch.sigmoid),
    "silu": (6, (0, 0), functional.silu),
    "gelu": (7, (0, 0), gelu),
    "gelu_tanh": (8, (0, 0), gelu_tanh),
    "sine": (9, (1, 0), torch.sin),
    "sine_30": (9, (30, 0), lambda z: torch.sin(30 * z)),
}

# In units of float32's epsilon: relative errors of phi, and errors of phi' and phi'' relative to the largest there are.
# The worst seen, on AVX-512, AVX2 and SSE: 3.6, 1.9, 2.9.
BOUNDS = (4, 3, 4)
FLOOR = 1e-30  # of relative errors: products with numbers below 1e-38 have lost digits


def points():
    """Every magnitude that matters, both signs."""
    dense = torch.linspace(-30, 30, 60002, dtype=torch.float64)  # not 20, where softplus turns
    magnitudes = torch.logspace(-40, 4, 4001, dtype=torch.float64)
    return torch.cat([dense, magnitudes, -magnitudes, torch.zeros(1)]).float()


def derivatives(phi, z):
    """phi, phi' and phi'' by autograd in float64."""
    z = z.double().requires_grad_()
    y = phi(z)
    (slope,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    bend = torch.zeros_like(z)
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), z, allow_unused=True, materialize_grads=True)
    return y.detach(), slope.detach(), bend


def compiled(name, z):
    kind, settings, _ = CASES[name]
    return torch.ops.gradreg_fast.activation(z, kind, [float(value) for value in settings])


def errors(name, z):
    """Errors of the three in units of epsilon; what rounding the angle or exponent costs is allowed."""
    kind, settings, phi = CASES[name]
    found = [tensor.double() for tensor in compiled(name, z)]
    wanted = derivatives(phi, z)
    frequency = float(settings[0]) if kind in (3, 9) else 1.0
    rounding = (frequency * z.double()).abs() if frequency != 1 else torch.zeros(len(z))
    if kind == 8:  # the tail's exponent is a polynomial in z
        rounding = (2 * ROOT * (z.double() + 0.044715 * z.double() ** 3)).abs().clamp_max(100)
    worst = []
    for order, (mine, reference) in enumerate(zip(found, wanted, strict=True)):
        assert torch.isfinite(mine).all()
        scale = reference.abs().clamp_min(FLOOR) if order == 0 else torch.full_like(reference, frequency**order)
        allowed = rounding * (frequency**order if kind == 9 else scale)
        worst.append(((mine - reference).abs() / (scale + allowed)).max().item() / torch.finfo(torch.float32).eps)
    return worst


@pytest.mark.parametrize("name", CASES)
def test_float32_is_accurate_everywhere(name):
    worst = errors(name, points())
    assert all(error <= bound for error, bound in zip(worst, BOUNDS, strict=True)), worst


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    z = points().double()
    for mine, reference in zip(compiled(name, z), derivatives(CASES[name][2], z), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_not_a_number_and_infinity_are_those_of_pytorch(name, dtype):
    z = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    value = compiled(name, z)[0]
    expected = CASES[name][2](z)
    assert torch.equal(value.isnan(), expected.isnan())
    assert torch.equal(value[~value.isnan()], expected[~expected.isnan()])
