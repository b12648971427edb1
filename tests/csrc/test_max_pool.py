"""Maxima over windows by compiled passes, on the CPU and, run there, on CUDA devices: against PyTorch in float64."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.max_pool_passes import MaxPoolPasses
from gradreg_fast.rules.pool import Windows
from tests.parity import assert_primitives

HALVES = (torch.bfloat16, torch.float16)
WINDOWS = {
    "tiles": ((8, 6), (2, 2), (2, 2), (0, 0)),
    "tiles and a rest": ((7, 9), (2, 3), (2, 3), (0, 0)),
    "gaps": ((9, 8), (2, 1), (3, 2), (0, 0)),
    "overlap and margins": ((7, 8), (3, 3), (2, 1), (1, 1)),
    "one window": ((4, 5), (4, 5), (1, 1), (0, 0)),
    "one behind": ((7, 6), (3, 3), (2, 2), (1, 0), True),
}
SLOPES = {"alone": (0, 1.0), "relu": (1, 0.0), "leaky_relu": (2, 0.2)}


def max_pool(x, size, stride, padding, ceil=False, **settings):
    return nn.functional.max_pool2d(x, size, stride, padding, ceil_mode=ceil, **settings)


def laid(stack, last):
    return stack.movedim(-3, -1).contiguous().movedim(-1, -3) if last else stack.contiguous()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", WINDOWS)
def test_passes(operations, name, last):
    """Values, tangents and cotangents of a stack, whatever the windows, with equal and missing numbers."""
    size, *windows = WINDOWS[name]
    halves = HALVES if operations is not torch.ops.gradreg_fast else ()
    for dtype in (torch.float32, torch.float64, *halves):
        for kind, slope in SLOPES.values():
            z = (torch.randn(2, 19, *size) * 4).round() / 4  # with equal ones
            z[0, 1, 2, 3] = torch.nan
            z, xdot = laid(z.to(dtype), last), laid(torch.randn(2, *z.shape, dtype=dtype), last)
            options = [*sum(windows[:3], ()), *size, *Windows(*windows).counts(size), last], kind, [slope, 0.0]
            exact = z.double().requires_grad_()
            maxima = max_pool(exact, *windows)
            wanted = torch.where(maxima <= 0, maxima * slope, maxima)
            u = laid(torch.randn(2, *wanted.shape, dtype=dtype), last)
            y, code = operations.max_pool(z, *options)
            near(y, wanted)
            ydot, below = operations.max_pool_push(code, xdot, *options), operations.max_pool_pull(code, u, *options)
            assert all(laid(images, last).data_ptr() == images.data_ptr() for images in (y, code, ydot, below))
            known = ~maxima.isnan()
            for k in range(2):
                cotangent = u[k].double().where(known, 0)
                (pulled,) = torch.autograd.grad(wanted, exact, cotangent, create_graph=True)
                near(operations.max_pool_pull(code, laid(cotangent.to(dtype), last)[None], *options)[0], pulled)
                tangent = xdot[k].double()
                index = max_pool(exact, *windows, return_indices=True)[1].flatten(2)
                pushed = tangent.flatten(2).gather(2, index).view_as(wanted)
                near(ydot[k][known], torch.where(maxima <= 0, pushed * slope, pushed)[known])


def near(found, wanted):
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=4 * eps, atol=16 * eps, equal_nan=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("outputs", [1, 3])
def test_networks(operations, outputs):
    """All sweeps, with an activation that is joined and one that is not, with other readers, in both layouts."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 2)
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, outputs)

        def forward(self, x):
            h = self.pool(self.first(x).relu()) - 0.7  # of both signs
            h = self.pool(nn.functional.leaky_relu(h, 0.2)) + self.pool(torch.tanh(h)) - 0.7
            h = nn.functional.leaky_relu(nn.functional.max_pool2d(h, 3, 1, 1), 0.3)
            return self.head(self.second(h).flatten(1))

    model, x = Network(), torch.randn(3, 2, 12, 12)
    rules = [node.rule for node in with_passes(graph_of(model), x).nodes if node]
    assert [rule.phi[0] for rule in rules if isinstance(rule, MaxPoolPasses)] == [1, 0, 0, 2]
    assert_primitives(model, x)
    assert_primitives(model, x.contiguous(memory_format=torch.channels_last))
    y, g = gradreg_fast.value_and_vjp(model, x[:0])
    (y.sum() + g.sum()).backward()


def test_wrong_arguments_are_told(operations):
    z, plain = torch.randn(2, 3, 6, 6), (1, [0.0, 0.0])
    for message, call in {
        "options must have 11 entries": lambda: operations.max_pool(z, [2, 2], *plain),
        "the activation must be piecewise linear": lambda: operations.max_pool(
            z, [2, 2, 2, 2, 0, 0, 6, 6, 3, 3, 0], 4, [0.0, 0.0]
        ),
        "the windows do not fit": lambda: operations.max_pool(z, [2, 2, 2, 2, 0, 0, 6, 6, 4, 3, 0], *plain),
        "the windows are too large": lambda: operations.max_pool(
            torch.randn(1, 1, 20, 20), [12, 12, 1, 1, 0, 0, 20, 20, 9, 9, 0], *plain
        ),
        "z has the wrong layout": lambda: operations.max_pool(z, [2, 2, 2, 2, 0, 0, 6, 6, 3, 3, 1], *plain),
        "z must be float32": lambda: operations.max_pool(z.int(), [2, 2, 2, 2, 0, 0, 6, 6, 3, 3, 0], *plain),
        "xdot has the wrong size": lambda: operations.max_pool_push(
            torch.zeros(2, 3, 3, 3, dtype=torch.uint8), z[None, ..., :3], [2, 2, 2, 2, 0, 0, 6, 6, 3, 3, 0], *plain
        ),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()
