"""Convolutions through the CUDA operations, run on the CPU or, with ``--device cuda``, on one: against autograd."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast import measured, ops
from gradreg_fast.blocks import with_blocks
from gradreg_fast.rules.conv_products import ConvProducts
from tests.parity import assert_primitives, evaluate, norm, value_and_vjp

from .operations_on_cpu import ORDERS, library
from .test_activation import CASES, derivatives

ARITHMETIC = {
    "float64": (torch.float64, False, 1e-12),
    "float32": (torch.float32, False, 1e-5),
    "tf32": (torch.float32, True, 1e-2),
    "bfloat16": (torch.bfloat16, False, 4e-2),
    "float16": (torch.float16, False, 1e-2),
}
# inputs, outputs, image, kernel, stride, padding, dilation
SHAPES = {
    "odd": (3, 5, (7, 6), (3, 2), (1, 1), (1, 0), (1, 1)),
    "whole pieces": (8, 16, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    "strides": (8, 8, (9, 8), (4, 3), (2, 3), (1, 1), (1, 1)),
    "steps beyond the kernel": (2, 3, (8, 7), (1, 2), (3, 3), (0, 0), (1, 1)),
    "dilation": (2, 8, (9, 8), (3, 3), (1, 1), (2, 1), (2, 3)),
    "strides one way, dilation the other": (1, 3, (9, 8), (3, 2), (2, 1), (0, 1), (1, 2)),
    "large tiles": (8, 130, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
}


def images(*shape, dtype):
    """Channels last, stacks too."""
    *before, C, H, W = shape
    return torch.randn(*before, H, W, C, dtype=dtype).movedim(-1, -3)


def options(stride, padding, dilation, kind):
    return [*stride, *padding, *dilation, 0, 1, 1, 1, 1, 0, 0, kind, 1]


def rounded(tensor, arithmetic):
    """What products read, where that is less than what is stored."""
    if arithmetic != "tf32":
        return tensor.double()
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


def close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs().max().item()
    assert error <= tolerance * max(wanted.abs().max().item(), 0.1), error


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("shape", SHAPES)
def test_sweeps(cuda_operations, shape, arithmetic):
    """Each operation with all its results, for an activation that keeps y and one that keeps z."""
    if shape == "large tiles" and arithmetic in ("tf32", "float16"):
        pytest.skip("slow here, and bfloat16's differ from them by an instruction")
    inputs, outputs, size, kernel, *geometry = SHAPES[shape]
    dtype, tf32, tolerance = ARITHMETIC[arithmetic]
    B, K = 2, 1 if shape == "large tiles" else 3
    x, xdot = images(B, inputs, *size, dtype=dtype), images(K, B, inputs, *size, dtype=dtype)
    weight = images(outputs, inputs, *kernel, dtype=dtype) / (inputs * kernel[0] * kernel[1]) ** 0.5
    bias = torch.randn(outputs, dtype=dtype)
    stride, padding, dilation = geometry

    def convolve(x, weight, bias=None):
        return functional.conv2d(x, weight, bias, stride, padding, dilation)

    def transposed(u, x, position):
        """The gradient of ``sum_k <u^k, W * x^k>`` in the weight (0) or in x (1)."""
        leaves = [rounded(t, arithmetic).detach().requires_grad_() for t in (weight, x)]
        return torch.autograd.grad((convolve(*leaves[::-1]) * rounded(u, arithmetic)).sum(), leaves)[position]

    exact = partial(rounded, arithmetic=arithmetic)
    for name in ("tanh", "silu"):
        kind, settings, phi = CASES[name]
        given = options(*geometry, kind), [float(value) for value in settings] + [1.0] * tf32
        y, state = cuda_operations.image_forward(x, weight, bias, *given)
        z = convolve(exact(x), exact(weight), bias.double())
        value, slope, bend = derivatives(phi, z)
        close(y, value, tolerance)
        if name == "tanh":  # whose derivatives are those of the rounded result
            state, slope = y, 1 - y.double() ** 2
            bend = -2 * y.double() * slope
        u = images(K, *y.shape, dtype=dtype)
        u_z = cuda_operations.image_slope(u, state, None, kind, given[1][:2])
        close(u_z, slope * u.double(), tolerance)
        zdot = torch.stack([convolve(exact(member), exact(weight)) for member in xdot])
        met = u_z if name == "tanh" else u
        ydot, second = cuda_operations.image_push(xdot, met, state, weight, *given, True)
        close(ydot, slope * zdot, tolerance)
        close(second, (bend * u.double() * zdot).sum(0).movedim(1, -1).flatten(), tolerance)
        gradient = cuda_operations.image_gradient(u_z, xdot, weight, *given)
        close(gradient, transposed(u_z.flatten(0, 1), xdot.flatten(0, 1), 0), tolerance)
        term = second.view(B, *y.shape[2:], outputs).movedim(-1, 1)
        d_z = cuda_operations.image_slope(u[:1], state, second, kind, given[1][:2])
        close(d_z, slope * u[:1].double() + term.double(), tolerance)
        # through the convolution to what made x: an activation like the other
        v = transposed(u_z.flatten(0, 1), xdot.flatten(0, 1), 1).unflatten(0, (K, B))
        below = 1 - x.double() ** 2 if name == "tanh" else derivatives(phi, x.double())[1]
        term = torch.randn(x.numel(), dtype=torch.promote_types(dtype, torch.float32))
        pulled, above = cuda_operations.image_pull(u_z, weight, x, None, size, *given, True)
        close(pulled, below * v, tolerance)
        close(above, v, tolerance)
        (pulled,) = cuda_operations.image_pull(u_z[:1], weight, x, term, size, *given, False)
        close(pulled[0], below * v[0] + term.double().view(B, *size, inputs).movedim(-1, 1), tolerance)


def network(phi, outputs):
    layers = nn.Conv2d(2, 3, 3, padding=1), phi, nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), phi
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, outputs))


def products(model, x):
    """How many convolutions each node of them has."""
    graph, tensors = ops.prepare(model, x)
    rules = [node.rule for node in with_blocks(graph, x, tensors).nodes if node]
    return [len(rule.layers) for rule in rules if isinstance(rule, ConvProducts)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "phi", [nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-0.2), nn.Tanh(), nn.Softplus(), nn.GELU()], ids=str
)
def test_networks(cuda_operations, phi, outputs):
    """All sweeps of two in a row, against autograd's double backward; images as they are and channels last."""
    model, x = network(phi, outputs), torch.randn(2, 2, 8, 8)
    assert products(model, x) == [2]
    assert_primitives(model, x)
    assert_primitives(model, x.contiguous(memory_format=torch.channels_last))


@pytest.mark.usefixtures("float64")
def test_networks_with_other_layers(cuda_operations):
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 2, dilation=2), nn.Conv2d(2, 2, 1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 2))
    x = torch.randn(3, 1, 8, 8)
    assert products(model, x) == [1, 2]
    assert_primitives(model, x)
    y, g = gradreg_fast.value_and_vjp(network(nn.SiLU(), 2), torch.randn(0, 2, 8, 8))
    (y.sum() + g.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_autograd(cuda_operations, dtype):
    """Errors against float64, at most twice eager autograd's."""
    model, x = network(nn.SiLU(), 3).to(dtype), torch.randn(4, 2, 8, 8).to(dtype)
    cotangent = torch.randn(4, 3).to(dtype)
    wanted = evaluate(value_and_vjp, copy.deepcopy(model).double(), [x.double(), cotangent.double()])
    ours = evaluate(gradreg_fast.value_and_vjp, model, [x, cotangent])
    theirs = evaluate(value_and_vjp, model, [x, cotangent])
    for group in ("values", "gradients"):
        for name, truth in wanted[group].items():
            limit = 2 * norm(theirs[group][name].double() - truth) + torch.finfo(dtype).eps * norm(truth)
            assert norm(ours[group][name].double() - truth) <= limit, (group, name)


def test_float32_products_are_those_that_pytorch_is_told_to_use(cuda_operations):
    model, x = network(nn.Tanh(), 1), torch.randn(4, 2, 8, 8)
    exact = gradreg_fast.value_and_vjp(copy.deepcopy(model).double(), x.double())[1].detach()

    def error():
        return norm(gradreg_fast.value_and_vjp(model, x)[1].double() - exact) / norm(exact)

    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert error() < 1e-6
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert 1e-5 < error() < 1e-2
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.skipif("torch.get_default_device().type == 'cuda'")
@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_threads(cuda_operations, order):
    """The same bits: sums do not depend on them."""
    x, weight = images(1, 2, 8, 6, 6, dtype=torch.bfloat16), images(16, 8, 3, 3, dtype=torch.bfloat16)
    given, found = (options((1, 1), (1, 1), (1, 1), 4), [0.0, 0.0]), []
    for choice in (0, order):
        library()[1](choice)
        y, _ = cuda_operations.image_forward(x[0], weight, None, *given)
        (pulled,) = cuda_operations.image_pull(y[None], weight, x[0], None, (6, 6), *given, False)
        found.append((y, pulled, cuda_operations.image_gradient(y[None], x, weight, *given)))
    assert all(map(torch.equal, *found))


def test_what_is_left_to_pytorch(cuda_operations, monkeypatch):
    x = torch.randn(2, 2, 9, 9)
    for conv in (nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(2, 4, 3, stride=2, dilation=2)):
        assert not products(nn.Sequential(conv, nn.Flatten()), x)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 9, 3), nn.Flatten())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with gradreg_fast.backend("auto"):
        assert not products(model, x)
        monkeypatch.setitem(measured.CHANNELS, (9, 0), {torch.float32: 8})
        assert products(model, x) == [1]


def test_wrong_arguments_are_told(cuda_operations):
    x, weight = torch.randn(2, 3, 5, 5), images(4, 3, 3, 3, dtype=torch.float32)
    given = options((1, 1), (0, 0), (1, 1), 4), [0.0, 0.0]
    with pytest.raises(RuntimeError, match="x must be channels last"):
        cuda_operations.image_forward(x, weight, None, *given)
    with pytest.raises(RuntimeError, match="do not pool"):
        cuda_operations.image_forward(x, weight, None, [*given[0][:6], 1, 2, 2, 2, 2, *given[0][11:]], given[1])
    with pytest.raises(RuntimeError, match="a stride or a dilation"):
        cuda_operations.image_forward(x, weight, None, [2, 2, 0, 0, 2, 2, *given[0][6:]], given[1])
    u = images(1, 2, 4, 3, 3, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="state has the wrong shape"):
        cuda_operations.image_pull(u, weight, u[0], None, (5, 5), *given, False)
    with pytest.raises(RuntimeError, match="an activation must have its state"):
        cuda_operations.image_pull(u, weight, None, None, (5, 5), *given, False)
    with pytest.raises(RuntimeError, match="v or second must be given"):
        cuda_operations.image_slope(None, u[0], None, 4, [0.0, 0.0])
