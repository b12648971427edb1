"""Averages over windows of an activation by compiled passes, on the CPU and, run there, on CUDA devices."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.average_pool_passes import AveragePoolPasses
from gradreg_fast.rules.pool import EVERYTHING, AveragePool, Windows
from tests.parity import assert_primitives

from .test_max_pool import HALVES, laid

WINDOWS = {
    "tiles": ((8, 6), (2, 2), (2, 2), (0, 0), False, True, None),
    "gaps, more than a byte": ((11, 9), (4, 3), (5, 3), (0, 0), False, True, None),
    "overlap and margins that count": ((7, 8), (3, 3), (2, 1), (1, 1), False, True, None),
    "margins that do not count, and one behind": ((8, 7), (3, 2), (2, 2), (1, 1), True, False, None),
    "a divisor": ((6, 7), (2, 3), (2, 2), (0, 1), True, True, 5),
    "everything": ((7, 10), (7, 10), (1, 1), (0, 0), False, True, None),
}
KINDS = {
    "relu": (1, [0.0, 0.0], nn.functional.relu),
    "leaky_relu": (2, [0.2, 0.0], lambda z: nn.functional.leaky_relu(z, 0.2)),
    "tanh": (4, [0.0, 0.0], torch.tanh),  # whose derivatives are told by y
    "silu": (6, [0.0, 0.0], nn.functional.silu),
}


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", WINDOWS)
def test_passes(operations, name, last):
    """Values, tangents, cotangents and second-order terms of a stack, whatever the windows."""
    size, *settings = WINDOWS[name]
    halves = HALVES if operations is not torch.ops.gradreg_fast else ()

    def average(z):
        return nn.functional.avg_pool2d(z, *settings)

    for dtype in (torch.float32, torch.float64, *halves):
        for kind, numbers, phi in KINDS.values():
            z, xdot = (laid(torch.randn(*shape, 2, 19, *size).to(dtype), last) for shape in ((), (2,)))
            exact, tangent = z.double().requires_grad_(), xdot.double()
            wanted = average(phi(exact))
            u = laid(torch.randn(2, *wanted.shape).to(dtype), last)
            rule = AveragePool(None, None, Windows(*settings[:4]), settings[4], settings[5] or 0)
            options = [*rule.shape.options(z)[:10], last, rule.counts_padding, rule.divisor], kind, numbers
            y, mask = operations.average_pool(z, *options)
            kept, smooth = (z, True) if kind > 2 else (mask, False)
            ydot, second = operations.average_pool_push(kept, xdot, *options), None
            if smooth:
                second = operations.average_pool_meet(u, xdot, *options)
            below = [operations.average_pool_pull(kept, u, None, *options)]
            below.append(operations.average_pool_pull(kept, u[:1], second, *options))
            assert all(laid(images, last).data_ptr() == images.data_ptr() for images in (y, ydot, *below))
            near(y, wanted)
            terms = 0
            for k in range(2):
                (pulled,) = torch.autograd.grad(wanted, exact, u[k].double(), create_graph=True)
                near(below[0][k], pulled)
                if smooth:
                    terms = terms + torch.autograd.grad(pulled, exact, tangent[k], retain_graph=True)[0]
                near(ydot[k], average(torch.func.jvp(phi, (exact.detach(),), (tangent[k],))[1]))
            near(below[1][0], torch.autograd.grad(wanted, exact, u[0].double())[0] + terms)


def near(found, wanted):
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=8 * eps, atol=16 * eps)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("outputs", [1, 3])
def test_networks(operations, outputs):
    """All sweeps, with activations that are joined and others that somebody else reads, in both layouts."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.ModuleList(nn.Conv2d(2 + i, 3 + i, 3, padding=1) for i in range(3))
            self.head = nn.Linear(5, outputs)

        def forward(self, x):
            h = nn.functional.avg_pool2d(self.convolutions[0](x).relu(), 2)
            h = nn.functional.silu(self.convolutions[1](h))
            h = nn.functional.avg_pool2d(h, 3, 2, 1, count_include_pad=False) + h[..., ::2, ::2]
            h = nn.functional.avg_pool2d(nn.functional.softplus(h), 2, (2, 1), ceil_mode=True)
            h = nn.functional.avg_pool2d(h.tanh(), 3, 1, 1)  # whose windows overlap too much
            h = nn.functional.leaky_relu(self.convolutions[2](h), 0.2)
            return self.head(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))

    model, x = Network(), torch.randn(3, 2, 12, 12)
    rules = [node.rule for node in with_passes(graph_of(model), x).nodes if node]
    found = [rule for rule in rules if isinstance(rule, AveragePoolPasses)]
    assert [rule.phi[0] for rule in found] == [1, 3, 2] and found[-1].windows is EVERYTHING
    assert_primitives(model, x)
    assert_primitives(model, x.contiguous(memory_format=torch.channels_last))
    y, g = gradreg_fast.value_and_vjp(model, x[:0])
    (y.sum() + g.sum()).backward()


def test_wrong_arguments_are_told(operations):
    z, plain, options = torch.randn(2, 3, 6, 6), (1, [0.0, 0.0]), [2, 2, 2, 2, 0, 0, 6, 6, 3, 3, 0, 1, 0]
    mask, u = operations.average_pool(z, options, *plain)[1], torch.ones(1, 2, 3, 3, 3)
    for message, call in {
        "options must have 13 entries": lambda: operations.average_pool(z, options[:11], *plain),
        "unknown activation": lambda: operations.average_pool(z, options, 0, [0.0, 0.0]),
        "the windows do not fit": lambda: operations.average_pool(z, [*options[:8], 4, *options[9:]], *plain),
        "the mask has the wrong size": lambda: operations.average_pool_push(mask[1:], z[None], options, *plain),
        "z has the wrong size": lambda: operations.average_pool_push(z[1:], z[None], options, 6, [0.0, 0.0]),
        "a second-order term": lambda: operations.average_pool_pull(mask, u, z, options, *plain),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()
