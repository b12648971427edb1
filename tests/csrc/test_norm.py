"""Batch normalisation's passes on a CPU: what the tests of the rules, which run with both backends, leave out."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.backend import library
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.norm_passes import Passes

from ..parity import assert_primitives
from .test_norm_passes import Case

pytestmark = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")

SHAPES = {
    "vectors": (5, 3),
    "more channels than registers": (4, 83),
    "images": (3, 5, 4, 7),
    "one channel": (2, 1, 3, 3),
    "several parts of a sum": (9, 17, 41, 43),
    "sequences": (4, 3, 11),
    "volumes": (2, 3, 3, 2, 5),
}


@pytest.fixture
def compiled():
    """Kernels, wherever there are any."""
    with gradreg_fast.backend("cpp"):
        yield


def laid(stack, last):
    """Each member of a stack in the layout asked for."""
    return stack.movedim(2, -1).contiguous().movedim(-1, 2) if last else stack.contiguous()


def normalise(x, weight):
    return torch.nn.functional.batch_norm(x, None, None, weight, None, True)


@pytest.mark.each_processor
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", SHAPES)
def test_passes(name, last, dtype):
    """J v, the second-order term and the weight's gradient of two tangents and cotangents, far from the origin."""
    shape, K, operations = SHAPES[name], 2, torch.ops.gradreg_fast
    x, d, second = laid(torch.randn(3, *shape, dtype=dtype), last)
    x = x + 100
    u, v = (laid(torch.randn(K, *shape, dtype=dtype), last) for _ in range(2))
    exact, gamma = x.double().requires_grad_(), (torch.rand(shape[1]).double() + 0.5).requires_grad_()
    y = normalise(exact, gamma)
    pulled = [torch.autograd.grad(y, exact, one.double(), create_graph=True)[0] for one in u]
    total = sum((one * other.double()).sum() for one, other in zip(pulled, v, strict=True))
    wanted = torch.autograd.grad(total, (exact, gamma), retain_graph=True)
    xbar, weight_bar = torch.autograd.grad(y, (exact, gamma), d.double(), retain_graph=True)
    mapped = torch.stack([torch.autograd.grad(y, exact, one.double(), retain_graph=True)[0] for one in v])

    dims = [0, *range(2, x.dim())]
    statistics = exact.mean(dims), (exact.var(dims, unbiased=False) + 1e-5).rsqrt()
    constants = x, *(tensor.detach().to(dtype) for tensor in (*statistics, gamma))
    second_term, gradient, ydot = operations.norm_meet(u, v, *constants, True)
    near(second_term, wanted[0])
    near(gradient, wanted[1])
    near(ydot, mapped)  # P is symmetric
    assert second_term.stride() == x.stride() and ydot.stride() == v.stride()
    alone = operations.norm_meet(u, v, *constants, False)
    assert len(alone) == 2 and torch.equal(alone[0], second_term) and torch.equal(alone[1], gradient)
    (result,) = operations.norm_project(v, *constants, None, True, False)
    near(result, mapped)
    result, gradients = operations.norm_project(d[None], *constants, second, False, True)
    near(result[0], xbar + second.double())
    near(gradients, torch.stack([weight_bar, d.double().sum(dims)]))


@pytest.mark.each_processor
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 5), (3, 133), (40, 1030)], ids=str)
def test_rows(shape, dtype):
    """Layer and root mean square normalisation; rows start off any boundary."""
    u, v, rest = torch.randn(1 + 7 * shape[0] * shape[1]).to(dtype)[1:].view(7, *shape).split((2, 2, 3))
    weight = (torch.rand(shape[1]) + 0.5).double()
    for centred in (True, False):
        names = ("layer_norm_project", "layer_norm_meet")
        Case(torch.ops.gradreg_fast, names, rest[0], [1], None, weight.to(dtype).double(), centred).check(
            u, v, *rest[1:]
        )


def near(found, wanted):
    limit = 1e-9 if found.dtype == torch.float64 else 1e-4  # the mean is rounded where it is a hundred deviations away
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= limit * wanted.abs().max().clamp_min(1)


def test_networks(compiled, float64):
    """All sweeps through the passes: affine or not, one output or several, both layouts, a cumulative average."""
    x = torch.randn(3, 2, 5, 5)
    for affine, outputs in ((True, 3), (False, 1)):
        model = nn.Sequential(
            *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=affine), nn.Tanh(), nn.Conv2d(3, 4, 2)),
            *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.RMSNorm(16), nn.Linear(16, 5)),
            *(nn.BatchNorm1d(5, momentum=None), nn.LayerNorm(5, elementwise_affine=affine), nn.Linear(5, outputs)),
        )
        passes = [node for node in with_passes(graph_of(model), x).nodes if node]
        assert sum(isinstance(node.rule, Passes) for node in passes) == 5
        assert_primitives(model, x)
        assert_primitives(model, x.contiguous(memory_format=torch.channels_last))


def test_wrong_arguments_are_told():
    x, v, one = torch.randn(3, 4, 5), torch.randn(1, 3, 4, 5), torch.ones(4)
    project, meet = torch.ops.gradreg_fast.norm_project, torch.ops.gradreg_fast.norm_meet
    rows = torch.ops.gradreg_fast.layer_norm_meet
    for message, call in {
        "mean has the wrong shape": lambda: project(v, x, torch.ones(3), one, None, None, True, False),
        "inverse has the wrong dtype": lambda: project(v, x, one, one.double(), None, None, True, False),
        "x must be contiguous or channels last": lambda: project(
            v, x.permute(2, 1, 0), one, one, None, None, True, False
        ),
        "x must be float32 or float64": lambda: project(v, x.half(), one, one, None, None, True, False),
        "u has the wrong size": lambda: meet(v[:, :2], v, x, one, one, None, True),
        "second has the wrong size": lambda: project(v, x, one, one, None, x[:2], True, False),
        "a number for each row": lambda: rows(v, v, x, None, torch.ones(7), None, True),
        "weight must have 5 numbers": lambda: rows(v, v, x, None, torch.ones(3, 4), one, True),
        "mean has the wrong dtype": lambda: rows(v, v, x, torch.ones(3, 4).half(), torch.ones(3, 4), None, True),
        "u must be contiguous": lambda: rows(v.mT.contiguous().mT, v, x, None, torch.ones(3, 4), None, True),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()
