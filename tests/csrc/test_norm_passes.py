"""Batch normalisation's passes on CUDA devices, run on the CPU: against float64, networks against autograd."""

import pytest
import torch
from torch import nn

from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.norm_passes import BatchNormPasses
from tests.parity import assert_primitives

from .operations_on_cpu import ORDERS, library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = {
    "vectors": (5, 3),
    "more channels than lanes": (4, 67),
    "images": (3, 5, 4, 7),
    "one channel": (2, 1, 3, 3),
    "many elements": (9, 2, 41, 43),
    "sequences": (4, 3, 11),
}


def normalise(x, weight):
    dims = [0, *range(2, x.dim())]
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    return (x - mean) * (variance + 1e-3).rsqrt() * weight.view(-1, *(1,) * (x.dim() - 2))


def statistics(x):
    dims = [0, *range(2, x.dim())]
    return x.mean(dims), (x.var(dims, unbiased=False) + 1e-3).rsqrt()


def laid(stack, last):
    """Each member of a stack in the layout asked for."""
    return stack.movedim(2, -1).contiguous().movedim(-1, 2) if last else stack.contiguous()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", SHAPES)
def test_passes(cuda_operations, name, last, dtype, order):
    """J v, the second-order terms and the weight's gradient, each against autograd in float64."""
    if torch.get_default_device().type == "cpu":
        library()[1](order)
    shape, K = SHAPES[name], 2
    x, d, second = (laid(torch.randn(1, *shape).to(dtype), last)[0] for _ in range(3))
    u, v = (laid(torch.randn(K, *shape).to(dtype), last) for _ in range(2))
    weight = (torch.rand(shape[1]) + 0.5).double()
    exact, gamma = x.double().requires_grad_(), weight.clone().requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, inverse = (statistic.to(wide) for statistic in statistics(x.double()))
    constants = x, mean, inverse, weight.to(wide)

    wanted = [torch.func.jvp(lambda x: normalise(x, weight), (x.double(),), (one.double(),))[1] for one in v]
    result, sums = cuda_operations.norm_project(v, *constants, None)
    near(result, torch.stack(wanted), dtype)
    y = normalise(exact, gamma)
    xbar, weight_bar = torch.autograd.grad(y, (exact, gamma), d.double(), retain_graph=True)
    result, sums = cuda_operations.norm_project(d[None], *constants, second)
    near(result[0], xbar + second.double(), dtype)
    near(sums[0, 1], weight_bar, dtype)
    near(sums[0, 0], d.double().sum([0, *range(2, d.dim())]), dtype)

    pulled = [torch.autograd.grad(y, exact, one.double(), create_graph=True)[0] for one in u]
    total = sum((one * other.double()).sum() for one, other in zip(pulled, v, strict=True))
    xbar, weight_bar = torch.autograd.grad(total, (exact, gamma))
    found, gradient, ydot = cuda_operations.norm_meet(u, v, *constants, True)
    near(found, xbar, dtype)
    near(gradient, weight_bar, dtype)
    near(ydot, torch.stack(wanted), dtype)
    assert found.stride() == x.stride() and ydot.stride() == v.stride()
    again = cuda_operations.norm_meet(u, v, *constants, False)
    assert torch.equal(again[0], found) and torch.equal(again[1], gradient)


def near(found, wanted, dtype):
    """Equal up to rounding in this dtype, relative to the largest."""
    limit = {2: 2, 4: 200, 8: 2000}[dtype.itemsize] * torch.finfo(dtype).eps
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= limit * wanted.abs().max().clamp_min(1)


def norms(model, x):
    return [node for node in with_passes(graph_of(model), x).nodes if node and isinstance(node.rule, BatchNormPasses)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_networks(cuda_operations, outputs, affine):
    """All sweeps through the passes, against autograd's double backward; buffers as well."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=affine), nn.Tanh(), nn.Conv2d(3, 4, 2)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)),
        *(nn.BatchNorm1d(5, momentum=None), nn.Softplus(), nn.Linear(5, outputs)),
    )
    x = torch.randn(3, 2, 5, 5)
    assert len(norms(model, x)) == 3
    assert_primitives(model, x)
    assert_primitives(model, x.contiguous(memory_format=torch.channels_last))


def test_frozen_weights_and_evaluation(cuda_operations, float64):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    model[1].weight.requires_grad_(False)
    model[0].requires_grad_(False)
    assert_primitives(model, torch.randn(6, 4))
    assert norms(model.eval(), torch.randn(6, 4)) == []


def test_wrong_arguments_are_told(cuda_operations):
    x, v, one = torch.randn(3, 4, 5), torch.randn(1, 3, 4, 5), torch.ones(4)
    with pytest.raises(RuntimeError, match="mean must have a number for each channel"):
        cuda_operations.norm_project(v, x, torch.ones(3), one, None, None)
    with pytest.raises(RuntimeError, match="inverse must be float64 if x is, else float32"):
        cuda_operations.norm_project(v, x, one, one.double(), None, None)
    with pytest.raises(RuntimeError, match="x must be contiguous or channels last"):
        cuda_operations.norm_project(v, x.permute(2, 1, 0), one, one, None, None)
    with pytest.raises(RuntimeError, match="u has the wrong size"):
        cuda_operations.norm_meet(v[:, :2], v, x, one, one, None, True)
