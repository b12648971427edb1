"""Passes over stacks of cotangents on CUDA devices, run on the CPU: against float64, norms against autograd."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from gradreg_fast import mlp
from gradreg_fast.convert import graph_of
from gradreg_fast.engine import linearize
from gradreg_fast.planner import plan
from tests.parity import assert_primitives

from .operations_on_cpu import ORDERS, library

SHAPES = {"one": (1, 1, 1), "a warp's": (3, 9, 5, 7), "blocks'": (2, 3, 4099), "parts": (5, 33, 30011)}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_passes(cuda_operations, name, dtype):
    """Odd lengths, starts off any boundary."""
    shape = SHAPES[name]
    a, b = torch.randn(1 + 2 * torch.Size(shape).numel()).to(dtype)[1:].view(2, *shape)
    factor = torch.randn(shape[1], dtype=torch.promote_types(dtype, torch.float32))
    scale = a.double().square().flatten(2).sum((0, 2)).sqrt()
    for order in ORDERS[: 1 if name == "parts" or torch.get_default_device().type == "cuda" else None]:
        if torch.get_default_device().type == "cpu":
            library()[1](order)
        for other in (a, b):
            wanted = (a.double() * other.double()).flatten(2).sum((0, 2))
            found = cuda_operations.dot_samples(a, other)
            assert found.dtype == factor.dtype
            assert ((found - wanted).abs() <= 64 * torch.finfo(found.dtype).eps * scale**2 * 2).all()
        wanted = a.double() * factor.double().view(-1, *(1,) * (len(shape) - 2))
        for other in (None, b):
            found = cuda_operations.scale_samples(a, other, factor)
            exact = wanted if other is None else wanted * b.double()
            torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


CASES = {
    "a stack": ((6, 9, 8, 3), nn.Tanh, "stack"),
    "a stack in one launch": ((6, 9, 8, 3), nn.Softplus, "kernel"),
    "units that are active": ((6, 9, 8, 3), nn.ReLU, "kernel"),
    "a cut in the middle": ((30, 12, 3, 12, 9), nn.Softplus, "cut"),
    "one hidden layer": ((30, 6, 9), nn.Tanh, "closed form"),
    "one hidden layer that keeps its result": ((30, 6, 9), nn.SiLU, "closed form"),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_norms(cuda_operations, monkeypatch, name):
    """In the form that is meant, and as autograd has them."""
    widths, phi, form = CASES[name]
    if form == "stack":
        monkeypatch.setattr(mlp, "kernel_for", lambda *arguments: None)
        monkeypatch.setattr("gradreg_fast.ops.kernel_for", mlp.kernel_for)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), phi())]
    model, x = nn.Sequential(*layers[:-1]), torch.randn(4, widths[0])
    graph = graph_of(model)
    tensors = graph.tensors(x)
    served = mlp.kernel_for(graph, x, tensors)
    chosen = plan(linearize(graph, x, tensors)[1], None)
    found = "closed form" if chosen.closed_form else "stack" if chosen.cut == graph.seed else "cut"
    assert form == ("kernel" if served and served.stacks_units(x, tensors) else found)
    assert_primitives(model, x)


def test_wrong_arguments_are_told(cuda_operations):
    a, one = torch.randn(2, 3, 4), torch.ones(3)
    with pytest.raises(RuntimeError, match="a must be a contiguous stack"):
        cuda_operations.dot_samples(a.transpose(0, 1), a)
    with pytest.raises(RuntimeError, match="b has the wrong size"):
        cuda_operations.dot_samples(a, a[:1])
    with pytest.raises(RuntimeError, match="factor must have 3 numbers"):
        cuda_operations.scale_samples(a, None, torch.ones(2))
    with pytest.raises(RuntimeError, match="factor must be float64 if x is, else float32"):
        cuda_operations.scale_samples(a, None, one.double())
    assert cuda_operations.dot_samples(a[:, :0], a[:, :0]).shape == (0,)
