"""The compiled MLP sweeps against the PyTorch lines and autograd: every size, activation and wanted gradient."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional, ops
from gradreg_fast.backend import library
from gradreg_fast.mlp import kernel_for
from gradreg_fast.modules import Sine

from ..parity import assert_primitives, new_generator
from . import agreement

pytestmark = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")

ACTIVATIONS = {
    "none": None,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "softplus": lambda: nn.Softplus(3.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "sine": lambda: Sine(5.0),
}
SIZES = [(3, 17, 1), (1, 65, 3, 1), (17, 8, 65, 3), (2, 64, 64, 1), (33, 1), (65, 17)]
WIDE = [(9, 517, 1), (531, 8, 3)]  # PyTorch multiplies, whatever the processor
EVERY_SIZE = ("leaky_relu", "tanh")  # the other activations with a network of one output and one of several
EACH_PROCESSOR = pytest.mark.each_processor
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def network(sizes, activation, last=False, bias=True, dtype=torch.float64):
    layers = []
    for d, n in pairwise(sizes):
        layers += [nn.Linear(d, n, bias=bias), ACTIVATIONS[activation] and ACTIVATIONS[activation]()]
    return nn.Sequential(*filter(None, layers if last else layers[:-1])).to(dtype)


def evaluate(backend, model, x, cotangent):
    return agreement.evaluate(backend, served, model, x, cotangent)


def assert_same(model, x, cotangent, terms=("y", "g")):
    agreement.assert_same(served, model, x, cotangent, terms, TOLERANCE[x.dtype])


def served(model, x):
    graph, tensors = ops.prepare(model, x)
    return kernel_for(graph, x, tensors) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("activation", "sizes"),
    [
        pytest.param(activation, sizes, id=f"{activation}-{sizes}", marks=() if sizes in WIDE else EACH_PROCESSOR)
        for activation in ACTIVATIONS
        for sizes in ([*SIZES, *WIDE] if activation in EVERY_SIZE else SIZES[:3:2])
    ],
)
def test_against_pytorch_lines(activation, sizes, dtype):
    for rows, stack, last, bias in [
        (1, 1, False, True),
        (5, 3, True, True),
        (129, 1, True, False),
        (129, 3, False, False),
    ]:
        model = network(sizes, activation, last, bias, dtype)
        x = torch.randn(rows, sizes[0], dtype=dtype, requires_grad=True)
        cotangent = torch.randn(stack, rows, sizes[-1], dtype=dtype, requires_grad=True)
        for terms in ("yg", "g", "y"):
            assert_same(model, x, cotangent, terms)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_autograd(activation):
    with gradreg_fast.backend("cpp"):
        assert_primitives(network((3, 17, 5, 1), activation), torch.randn(9, 3, dtype=torch.float64))
        assert_primitives(network((3, 17, 4), activation), torch.randn(9, 3, dtype=torch.float64))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_frozen_parameters_and_inputs(activation, outputs):
    model = network((3, 17, 8, outputs), activation)
    parameters = list(model.parameters())
    for frozen in range(len(parameters) + 1):
        for i, parameter in enumerate(parameters):
            parameter.requires_grad_(i >= frozen if frozen % 2 else i != frozen)
        for x_wanted in (True, False):
            x = torch.randn(7, 3, dtype=torch.float64, requires_grad=x_wanted)
            cotangent = torch.randn(1, 7, outputs, dtype=torch.float64)
            if x_wanted or any(parameter.requires_grad for parameter in parameters):
                assert_same(model, x, cotangent)


def test_ones_are_the_default_cotangent():
    for activation in ("leaky_relu", "tanh"):
        assert_same(network((3, 17, 1), activation), torch.randn(7, 3, dtype=torch.float64), None)


@pytest.mark.parametrize("outputs", [1, 3])
def test_cotangents_made_from_the_outputs_shape(outputs):
    model, x = network((3, 17, outputs), "tanh"), torch.randn(7, 3, dtype=torch.float64)
    target = torch.randn(7, outputs, 3, dtype=torch.float64)
    results = []
    for name in ("torch", "cpp"):
        with gradreg_fast.backend(name):
            _, penalty = gradreg_fast.functional.gradient_matching(model, x, target)
            gradients = torch.autograd.grad(penalty, model.parameters(), materialize_grads=True)
            results.append([penalty.detach(), *gradients])
    for wanted, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted)


LOSSES = {
    "classes": ("cross_entropy", torch.tensor([2, 0, -100, 1, 2, 0, 1])),
    "probabilities": ("cross_entropy", torch.rand(7, 3, dtype=torch.float64)),
    "mse": ("mse", torch.randn(7, 3, dtype=torch.float64)),
    "bce": ("bce_with_logits", torch.rand(7, 3, dtype=torch.float64)),
}


def both(call, model, x):
    """What a penalty gives with either backend: value, output and all gradients of their combination."""
    results = []
    for name in ("torch", "cpp"):
        with gradreg_fast.backend(name):
            y, penalty = call(model, x)
            gradients = torch.autograd.grad(penalty.sum() + y.square().sum(), [x, *model.parameters()])
            results.append([y.detach(), penalty.detach(), *gradients])
    for wanted, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("hidden", [17, 300])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_top(name, activation, hidden):
    loss, target = LOSSES[name]
    model = network((5, hidden, 3), activation)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    both(lambda model, x: functional.double_backprop(model, x, target, loss, reduction="none"), model, x)
    with gradreg_fast.backend("cpp"):
        graph, tensors = ops.prepare(model, x, functional._LOSSES[loss], target)
        assert kernel_for(graph, x, tensors).loss


def test_a_class_that_is_not_there_is_named():
    model = network((5, 17, 3), "tanh")
    for name in ("torch", "cpp"):
        with gradreg_fast.backend(name), pytest.raises(ValueError, match="class indices below 3, got 3"):
            functional.double_backprop(model, torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 3]))


class Energy(nn.Module):
    """One output a sample, ``[B]``, of images."""

    def __init__(self, hidden):
        super().__init__()
        self.layers = network((12, hidden, 1), "silu")

    def forward(self, x):
        return self.layers(x.flatten(1)).squeeze(-1)


@pytest.mark.parametrize("hidden", [17, 300])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: functional.r1(model, x, reduction="none"),
        lambda model, x: functional.gradient_matching(model, x, x.detach().flip(0)),
        lambda model, x: functional.double_backprop(model, x, x.detach()[:, 0, 0, 0], "mse"),
        lambda model, x: functional.spectral_projection(model, x, new_generator(2)),
        lambda model, x: [part.squeeze(0) for part in ops.stacked_vjp(*ops.prepare(model, x), x, None)],
    ],
    ids=["norm", "offset", "loss", "projection", "vjp"],
)
def test_reshapes_around_the_layers(call, hidden):
    model, x = Energy(hidden), torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    both(call, model, x)
    with gradreg_fast.backend("cpp"):
        graph, tensors = ops.prepare(model, x)
        assert kernel_for(graph, x, tensors) is not None


@pytest.mark.parametrize("outputs", [1, 3])
def test_random_projections(outputs):
    model, x = network((5, 17, outputs), "softplus"), torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    both(lambda model, x: functional.jacobian_frobenius(model, x, 2, new_generator(2)), model, x)


def test_layers_of_different_activations():
    hidden = [nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 5, bias=False), nn.Linear(5, 6), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(6, 2), nn.Sigmoid()).double()
    assert_same(model, torch.randn(11, 3, dtype=torch.float64, requires_grad=True), None)


@pytest.mark.parametrize("activation", ["leaky_relu", "softplus"])
def test_strided_tensors(activation):
    model = network((3, 17, 2), activation)
    model[0].weight = nn.Parameter(torch.randn(3, 17, dtype=torch.float64).t())
    x = torch.randn(3, 9, dtype=torch.float64).t()
    assert_same(model, x, torch.randn(2, 9, 1, dtype=torch.float64).transpose(0, 2).expand(1, 9, 2))


@pytest.mark.parametrize("hidden", [17, 600])
def test_empty_batch(hidden):
    model = network((3, hidden, 1), "tanh", dtype=torch.float32)
    found = evaluate("cpp", model, torch.randn(0, 3, requires_grad=True), None)
    assert [tuple(t.shape) for t in found[:2]] == [(0, 1), (1, 0, 3)]
    assert all(not t.any() for t in found)


def test_nothing_is_kept_without_gradients():
    model, x = network((3, 17, 1), "tanh"), torch.randn(9, 3, dtype=torch.float64)
    with gradreg_fast.backend("cpp"), torch.no_grad():
        y, g = gradreg_fast.value_and_vjp(model, x)
    assert not y.requires_grad and not g.requires_grad
    wanted = evaluate("torch", model, x, None)
    torch.testing.assert_close([y, g.unsqueeze(0)], [value.detach() for value in wanted[:2]])


def test_a_second_derivative_raises():
    model = network((3, 17, 1), "tanh")
    with gradreg_fast.backend("cpp"):
        _, g = gradreg_fast.value_and_vjp(model, torch.randn(9, 3, dtype=torch.float64))
        (first,) = torch.autograd.grad(g.sum(), model[0].weight, create_graph=True)
        with pytest.raises(RuntimeError, match="third derivatives"):
            first.sum().backward()


def test_changed_weights_are_noticed():
    model = network((3, 17, 1), "tanh")
    with gradreg_fast.backend("cpp"):
        _, g = gradreg_fast.value_and_vjp(model, torch.randn(9, 3, dtype=torch.float64))
        with torch.no_grad():
            model[0].weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            g.sum().backward()


@pytest.mark.parametrize("sizes", [(2, 64, 64, 1), (2, 600, 1)], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time(threads, sizes):
    model = network(sizes, "tanh", dtype=torch.float32)
    x = torch.randn(517, 2, requires_grad=True)
    torch.set_num_threads(threads)
    first = evaluate("cpp", model, x, None)
    for _ in range(3):
        assert all(map(torch.equal, first, evaluate("cpp", model, x, None)))
    reference = evaluate("torch", model, x, None)
    for mine, wanted in zip(first, reference, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.randn(5)}, "two dimensions"),
        ({"x": torch.randn(5, 4)}, "weight has the wrong shape"),
        ({"x": torch.randn(5, 3).half()}, "float32 or float64"),
        ({"x": torch.randn(5, 3).double()}, "wrong dtype"),
        ({"cotangent": torch.randn(2, 5, 2)}, "cotangent has the wrong shape"),
        ({"kinds": [4]}, "kinds must have an entry"),
        ({"kinds": [4, 99]}, "unknown activation 99"),
        ({"settings": [0.0]}, "settings must have two entries"),
        ({"weights": []}, "layers"),
        ({"biases": [None]}, "biases must have an entry"),
        ({"unit_seed": True}, "wrong number of cotangents"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "x": torch.randn(5, 3),
        "cotangent": None,
        "target": None,
        "offset": None,
        "weights": [torch.randn(4, 3), torch.randn(2, 4)],
        "biases": [torch.randn(4), None],
        "kinds": [4, 0],
        "settings": [0.0] * 4,
        "loss": 0,
        "stack": 1,
        "unit_seed": False,
        "keep": True,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gradreg_fast.mlp_forward_pull(**{**arguments, **change})
