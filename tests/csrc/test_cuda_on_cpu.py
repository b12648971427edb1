"""The header that runs CUDA kernels on the CPU: right kernels give right results, planted bugs are caught."""

import subprocess

import pytest
import torch

from . import native

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="no C++ compiler for x86-64")

FORWARD, REVERSED, SHUFFLED = ORDERS = range(3)
BUGS = ["none", "no barrier before", "no barrier after", "off by one", "short buffer", "divergent", "early exit"]
SIZES = 19, 33, 21


def run(bug, order, skipped_barrier=-1):
    """Largest error of a product, or what was thrown."""
    m, n, k = SIZES
    a, b, c = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    pointers = a.data_ptr(), b.data_ptr(), c.data_ptr()
    try:
        native.module("cuda_on_cpu").multiply(BUGS.index(bug), *pointers, m, n, k, order, skipped_barrier)
    except RuntimeError as error:
        return str(error)
    error = (c - a @ b).abs().max().item()
    return "right" if error < 1e-5 else "wrong"


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel(order):
    assert run("none", order) == "right"


@pytest.mark.parametrize("bug", ["no barrier before", "no barrier after", "off by one"])
def test_wrong_results_show(bug):
    assert "wrong" in [run(bug, order) for order in ORDERS]


@pytest.mark.parametrize("barrier", range(3))
def test_a_barrier_that_is_passed_over_shows(barrier):
    """Of four in this kernel; nobody needs the last."""
    assert "wrong" in [run("none", order, barrier) for order in ORDERS]


@pytest.mark.parametrize(
    "bug, message",
    [("short buffer", "beyond shared memory"), ("divergent", "barrier"), ("early exit", "a thread left")],
)
def test_what_cannot_be_is_told(bug, message):
    assert all(message in run(bug, order) for order in ORDERS)


def test_under_the_sanitizers():
    path = native.program("cuda_on_cpu")

    def outcome(bug):
        done = subprocess.run([path, str(BUGS.index(bug))], capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    assert outcome("none") == "right"
    assert "use-after-poison" in outcome("short buffer")


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(order):
    a, sums = torch.randn(5, 77, dtype=torch.float64), torch.empty(5, dtype=torch.float64)
    native.module("cuda_on_cpu").add_up(a.data_ptr(), sums.data_ptr(), *a.shape, order)
    torch.testing.assert_close(sums, a.sum(1))


def rounded(name, tensor):
    """As the product's operands are."""
    if name != "tf32":
        return tensor.to(getattr(torch, name)).double()
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("name", ["tf32", "bfloat16", "float16"])
def test_tensor_cores(name, wrong):
    """Exact products of rounded operands, summed; lanes that are exchanged show."""
    a, b, c = torch.randn(16, 48), torch.randn(48, 8), torch.empty(16, 8)
    number = ["tf32", "bfloat16", "float16"].index(name)
    native.module("cuda_on_cpu").multiply_by_warp(number, a.data_ptr(), b.data_ptr(), c.data_ptr(), 48, wrong)
    error = (c - rounded(name, a) @ rounded(name, b)).abs().max().item()
    assert (error < 1e-5) != wrong, error


def test_half_precision():
    """Every float16, and numbers on either side and half way."""
    native_module = native.module("cuda_on_cpu")
    values = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    halfway = (values[1:] + values[:-1]) / 2
    points = torch.cat([values, halfway, halfway * 1.0001, halfway * 0.9999, torch.tensor([65519.0, 65520.0, 1e9])])
    for point, half, brain in zip(points, points.half(), points.bfloat16(), strict=True):
        assert native_module.to_float16(-point.item()) == (half.view(torch.int16).item() | 0x8000)
        assert native_module.to_bfloat16(point.item()) == brain.view(torch.int16).item()
    for i, value in enumerate(values.tolist()):
        assert native_module.from_float16(i) == value
