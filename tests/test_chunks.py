"""``chunk_size``: the same numbers from a few samples at a time; and checkpoints around converted blocks."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradreg_fast
from gradreg_fast import functional, jacobian_sqnorm, planner, value_and_vjp
from gradreg_fast.modules import WithPenalty
from tests.parity import new_generator

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def dense(outputs=1, *between):
    return nn.Sequential(nn.Linear(5, 17), nn.Tanh(), *between, nn.Linear(17, outputs))


def convolutional(outputs):
    block = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(36, outputs)).eval()


class Distances(nn.Module):
    """Of two inputs."""

    def forward(self, x, other):
        return (x - other[:, :5]).square().sum(1).tanh()


class Looping(nn.Module):
    """Cannot become a graph."""

    def forward(self, x):
        while x.detach().abs().max() > 1:
            x = x / 2
        return x


def rows(B=7):
    return torch.randn(B, 5)


def images(B=7):
    return torch.randn(B, 3, 8, 8)


CLASSES = torch.arange(7) % 3
CALLS = {
    "vjp": (dense(3), rows, lambda model, x, **n: value_and_vjp(model, x, x[:, :3].detach(), **n)),
    "sqnorm": (dense(3), rows, jacobian_sqnorm),
    "frobenius": (convolutional(3), images, functional.jacobian_frobenius),
    "softmax": (dense(3), rows, lambda model, x, **n: functional.jacobian_softmax(model, x, reduction="none", **n)),
    "double_backprop": (dense(3), rows, lambda model, x, **n: functional.double_backprop(model, x, CLASSES, **n)),
    "matching": (dense(), rows, lambda model, x, **n: functional.gradient_matching(model, x, x.detach().flip(0), **n)),
    "penalty": (convolutional(1), images, lambda m, x, **n: functional.gradient_penalty(m, x, 0.5, True, "sum", **n)),
    "module": (dense(), rows, lambda model, x, **n: WithPenalty(model, "r1", **n)(x)),
    "two inputs": (Distances(), rows, lambda model, x, **n: functional.r1(model, {"x": x, "other": x * x}, **n)),
    "both gradients": (Distances(), rows, lambda m, x, **n: (m(x, x), torch.cat(value_and_vjp(m, (x, x * x), **n)[1]))),
    "recompute": (dense(), rows, lambda model, x, **n: functional.eikonal(model, x, save="recompute", **n)),
}


def numbers(call, model, x, **chunks):
    x = x.clone().requires_grad_()
    y, value = call(model, x, **chunks)
    (y.sin().sum() + value.square().sum()).backward()
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    return [y, value, *gradients]


@pytest.mark.parametrize("name", CALLS)
def test_same_numbers(name):
    model, inputs, call = CALLS[name]
    model, x = model.double(), inputs()
    wanted = numbers(call, model, x)
    for size in (1, 3, 7, 8):
        for mine, theirs in zip(numbers(call, model, x, chunk_size=size), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def deep(outputs, *between):
    """Narrowest at its ends, wide enough an input for the first layer's Gram matrix."""
    return nn.Sequential(
        nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, 9), *between, nn.Tanh(), nn.Linear(9, outputs), nn.Tanh()
    )


STACKS = {
    "Gram matrix": (deep(7), lambda: torch.randn(5, 60), functional.jacobian_frobenius),
    "frozen below": (deep(7), lambda: torch.randn(5, 60), functional.contractive),
    "batch statistics": (deep(7, nn.BatchNorm1d(9)), lambda: torch.randn(5, 60), jacobian_sqnorm),
    "a part by autograd": (deep(7, nn.RReLU(0.2, 0.2)), lambda: torch.randn(5, 60), jacobian_sqnorm),
    "softmax": (dense(7), rows, functional.jacobian_softmax),
    "projections": (
        dense(7),
        rows,
        lambda model, x, **n: functional.jacobian_frobenius(model, x, 7, new_generator(5), **n),
    ),
    "convolutions": (convolutional(7), images, functional.jacobian_frobenius),
    "of samples, too": (dense(7), rows, lambda model, x, **n: jacobian_sqnorm(model, x, chunk_size=2, **n)),
}


@pytest.mark.parametrize("name", STACKS)
def test_same_numbers_from_a_few_cotangents_at_a_time(name):
    model, inputs, call = STACKS[name]
    model, x = model.double(), inputs()
    if name == "frozen below":
        model[0].weight.requires_grad_(False)
    start, results = {key: value.clone() for key, value in model.state_dict().items()}, []
    for size in (None, 1, 3, 7):
        model.load_state_dict(start)
        results.append([*numbers(call, model, x, cotangent_chunk_size=size), *model.buffers()])
    for mine in results[1:]:
        for found, wanted in zip(mine, results[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_no_samples():
    y, penalty = functional.r1(dense(), rows(0), chunk_size=2)
    assert y.shape == (0, 1) and penalty == 0


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that anything returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        tensors = [result for result in tree_leaves(results) if isinstance(result, torch.Tensor)]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().size() for tensor in tensors)])
        return results


def test_memory_falls(monkeypatch):
    """The largest tensor of both passes; nothing but chunks of x is kept between them."""
    monkeypatch.setattr(planner, "CPU_STACK_BYTES", 2**30)  # as on other devices: all cotangents at once
    model = nn.Sequential(nn.Linear(50, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 30))
    x = torch.randn(80, 50)

    def measured(**chunks):
        kept = []
        with saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t), Largest() as largest:
            _, penalty = functional.jacobian_frobenius(model, x, **chunks)
            between = sum(kept)
            penalty.backward()
        return largest.bytes, between

    (bytes_chunked, kept_chunked), (bytes_whole, kept_whole) = measured(chunk_size=8), measured()
    assert bytes_chunked < bytes_whole / 4
    assert kept_chunked < kept_whole / 20
    bytes_chunked, kept_chunked = measured(cotangent_chunk_size=3)
    assert bytes_chunked < bytes_whole / 4
    assert kept_chunked < kept_whole / 4


REFUSED = {
    "batch statistics": (
        dense(1, nn.BatchNorm1d(17)),
        {"chunk_size": 2},
        "may depend on one another: .*BatchNormTrain",
    ),
    "sum over samples": (nn.Sequential(nn.Linear(5, 1), nn.Softmax(0)), {"chunk_size": 2}, "may depend on one another"),
    "unknown": (nn.Sequential(nn.Linear(5, 1), nn.RReLU(0.2, 0.2)), {"chunk_size": 2}, "may depend on one another"),
    "arguments": (Distances(), {"chunk_size": 2, "model_args": (torch.ones(7, 5),)}, "rows are the samples'"),
    "zero": (dense(), {"chunk_size": 0}, "positive integer or None, got 0"),
    "no number": (dense(), {"chunk_size": "all"}, "positive integer or None, got 'all'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    model, call, message = REFUSED[name]
    model = model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="chunk_size must be .*" + message):
        functional.r1(model, rows(), **call)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "model, size, message",
    [
        (dense(3), 0, "a positive integer or None, got 0"),
        (dense(3), 2.0, "a positive integer or None, got 2.0"),
        (Looping(), 2, "None where autograd runs the model: "),
    ],
)
def test_numbers_of_cotangents_that_are_refused(model, size, message):
    with pytest.raises(ValueError, match="cotangent_chunk_size must be " + message):
        jacobian_sqnorm(model.double(), rows(), cotangent_chunk_size=size)


def test_checkpoints_around_converted_blocks():
    """The user's own lines; PyTorch has no second derivative of these blocks, so that closed forms alone can do it."""
    blocks = [dense(9, nn.Hardsigmoid()), nn.Sequential(nn.Linear(9, 8), nn.Hardswish(), nn.Linear(8, 2))]
    x = rows().requires_grad_()

    def step(run):
        y = x
        for block in map(gradreg_fast.convert, blocks):
            y = run(block, y)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (y.mean() + g.square().sum()).backward()
        leaves = [x, *(parameter for block in blocks for parameter in block.parameters())]
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return [y, g, *gradients]

    checkpointed = step(lambda block, y: checkpoint(block, y, use_reentrant=False))
    for mine, wanted in zip(checkpointed, step(lambda block, y: block(y)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
