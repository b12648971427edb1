"""The passes of activations, on CUDA devices run on the CPU, and on the CPU: against float64, and in whole networks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.backend import library as cpu_library
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.activation_passes import ActivationPasses
from tests.parity import assert_primitives, evaluate, norm, value_and_vjp

from .operations_on_cpu import ORDERS, library
from .test_activation import CASES, derivatives

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KEEPS_RESULT = (4, 5)
MEETS_BELOW = (3, 4, 5)
MASKED = (1, 2)


HAS_CPU = pytest.mark.skipif(cpu_library()[0] is None, reason=f"no compiled library: {cpu_library()[1]}")


@pytest.fixture
def operations(request):
    """The operations of a device."""
    return torch.ops.gradreg_fast if request.param == "cpp" else request.getfixturevalue("cuda_operations")


each_device = pytest.mark.parametrize(
    ("operations", "dtype"),
    [
        *(pytest.param("cuda", dtype, id=f"cuda {dtype}") for dtype in DTYPES),
        *(
            pytest.param("cpp", dtype, id=f"cpp {dtype}", marks=[pytest.mark.each_processor, HAS_CPU])
            for dtype in DTYPES[:2]
        ),
    ],
    indirect=["operations"],
)


def nearly(found, wanted, dtype, factor=1):
    """Equal up to a few roundings in this dtype; in those of the results alone where computed in a wider one."""
    eps = torch.finfo(dtype).eps
    scale = wanted.abs().max().clamp_min(1).item()
    roundings = 4 if dtype.itemsize == 2 else 256 * factor
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=4 * eps, atol=roundings * eps * scale)


@each_device
@pytest.mark.parametrize("name", CASES)
def test_passes(operations, name, dtype):
    """Odd lengths, starts off any boundary, stacks; in place where that is possible."""
    kind, settings, phi = CASES[name]
    close = partial(nearly, dtype=dtype, factor=max(1, settings[0]))  # of the angle, or exponent
    phi_of = kind, [float(value) for value in settings]
    for count, K, offset in ((1, 1, 0), (37, 3, 1), (256, 2, 0), (2051, 1, 3)):
        memory = torch.randn(offset + (1 + 2 * K + 2) * count, dtype=dtype)[offset:] * 2
        z, u, xdot, d, w = memory.split([count, K * count, K * count, count, count])
        u, xdot = u.view(K, count), xdot.view(K, count)
        z.masked_fill_(z == 0.5, 0.25)  # PyTorch's own derivatives disagree where softplus_low turns
        value, slope, bend = derivatives(phi, z)
        y, mask = operations.activate(z, *phi_of, kind in MASKED)
        close(y, value)
        kept = mask if kind in MASKED else y if kind in KEEPS_RESULT else z
        if kind in KEEPS_RESULT:  # their derivatives are those of the rounded result
            y = y.double()
            slope, bend = (1 - y**2, -2 * y * (1 - y**2)) if kind == 4 else (y * (1 - y), y * (1 - y) * (1 - 2 * y))
        sloped = operations.activation_slope(kept, u, *phi_of)
        close(sloped, slope * u.double())
        overwritten = u.clone()
        operations.activation_slope_(kept, overwritten, *phi_of)
        assert torch.equal(overwritten, sloped)
        overwritten = z.clone()
        assert torch.equal(operations.activate_(overwritten, *phi_of, kind in MASKED), mask)
        assert torch.equal(overwritten, operations.activate(z, *phi_of, False)[0])
        if kind in (0, *MASKED):
            continue
        met, ydot = operations.activation_meet(kept, u, xdot, *phi_of, True)
        close(met, (u.double() * xdot.double()).sum(0))
        close(ydot, slope * xdot.double())
        assert torch.equal(operations.activation_meet(kept, u, xdot, *phi_of, False)[0], met)
        wanted = bend * w.double()
        close(operations.activation_bend(kept, None, w, *phi_of, False), wanted)
        close(operations.activation_bend(kept, d, w, *phi_of, False), slope * d.double() + wanted)
        if kind in MEETS_BELOW:
            below = (slope * w.double()).to(dtype)
            found = operations.activation_bend(kept, d, below, *phi_of, True)
            close(found, slope * d.double() + wanted)


@pytest.mark.skipif("torch.get_default_device().type == 'cuda'")
@pytest.mark.parametrize("order", ORDERS)
def test_threads_do_not_depend_on_one_another(cuda_operations, order):
    z, v = torch.randn(1001), torch.randn(2, 1001)
    results = []
    for choice in (0, order):
        library()[1](choice)
        y, mask = cuda_operations.activate(z, 2, [0.2, 0.0], True)
        results.append((y, mask, cuda_operations.activation_slope(mask, v, 2, [0.2, 0.0])))
    assert all(map(torch.equal, *results))


def test_wrong_arguments_are_told(cuda_operations):
    z, none = torch.randn(4, 6), [0.0, 0.0]
    with pytest.raises(RuntimeError, match="z must have no gaps"):
        cuda_operations.activate(z[:, :3], 4, none, False)
    with pytest.raises(RuntimeError, match="z must be float32, float64, bfloat16 or float16"):
        cuda_operations.activate(z.int(), 4, none, False)
    with pytest.raises(RuntimeError, match="unknown activation 99"):
        cuda_operations.activate(z, 99, none, False)
    with pytest.raises(RuntimeError, match="kept does not fit"):
        cuda_operations.activation_slope(z[:2].clone(), z[None], 4, none)
    with pytest.raises(RuntimeError, match="xdot must be shaped like u"):
        cuda_operations.activation_meet(z, z[None], torch.cat([z, z]), 4, none, True)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "softplus": nn.Softplus(beta=3, threshold=2),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}


def passes(model, x):
    return [node for node in with_passes(graph_of(model), x).nodes if node and isinstance(node.rule, ActivationPasses)]


def vectors(phi, outputs):
    return nn.Sequential(nn.Linear(5, 7), phi, nn.Linear(7, 6), phi, nn.Linear(6, outputs)), torch.randn(3, 5)


def images(phi, outputs):
    convolutions = nn.Conv2d(2, 3, 3, 2), phi, nn.Conv2d(3, 4, 2, bias=False), phi
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, outputs)), torch.randn(2, 2, 8, 8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("make", [vectors, images])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks(cuda_operations, name, make, outputs):
    """All sweeps through the passes, against autograd's double backward."""
    model, x = make(ACTIVATIONS[name], outputs)
    assert len(passes(model, x)) == 2
    assert_primitives(model, x)
    if make is images:
        assert_primitives(model, x.contiguous(memory_format=torch.channels_last))


class Shared(nn.Module):
    """Values, cotangents and tangents that several nodes have, below and above activations."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, outputs))
        self.relu, self.leaky = nn.ReLU(), nn.LeakyReLU(0.2)

    def forward(self, x):
        h = self.first(x)
        a = self.relu(h)
        b = self.leaky(self.second(a))
        c = self.leaky(a + b)
        return self.head(self.relu(c + a) + self.relu(-h) + self.leaky(self.second(c)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("operations", [pytest.param("cpp", marks=HAS_CPU), "cuda"], indirect=True)
def test_what_others_read_is_not_overwritten(operations, request):
    with gradreg_fast.backend(request.node.callspec.params["operations"]):
        for outputs in (1, 3):
            model, x = Shared(outputs), torch.randn(2, 2, 6, 6)
            assert len(passes(model, x)) == 6
            assert_primitives(model, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_autograd(cuda_operations, dtype):
    """Errors against float64, at most twice eager autograd's."""
    model, x = vectors(nn.SiLU(), 3)
    model, x = model.to(dtype), x.to(dtype)
    cotangent = torch.randn(3, 3, dtype=dtype)
    wanted = evaluate(value_and_vjp, copy.deepcopy(model).double(), [x.double(), cotangent.double()])
    ours = evaluate(gradreg_fast.value_and_vjp, model, [x, cotangent])
    theirs = evaluate(value_and_vjp, model, [x, cotangent])
    for group in ("values", "gradients"):
        for name, truth in wanted[group].items():
            limit = 2 * norm(theirs[group][name].double() - truth) + torch.finfo(dtype).eps * norm(truth)
            assert norm(ours[group][name].double() - truth) <= limit, (group, name)


def test_layouts_that_differ_and_batches_that_are_empty(cuda_operations, float64):
    model, x = images(nn.Tanh(), 3)
    assert_primitives(model, torch.randn(2, 8, 8, 2).movedim(-1, 1)[..., ::1])
    assert_primitives(nn.Sequential(nn.Tanh(), nn.Linear(6, 2)), torch.randn(6, 5).t())
    y, g = gradreg_fast.value_and_vjp(model, x[:0])
    (y.sum() + g.sum()).backward()


def test_other_dtypes_and_backends_are_left_to_pytorch(cuda_operations):
    model, x = vectors(nn.Tanh(), 1)
    with gradreg_fast.backend("torch"):
        assert passes(model, x) == []
    assert passes(nn.Sequential(nn.Linear(5, 5), nn.ELU()), x) == []
