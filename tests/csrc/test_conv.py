"""Convolution blocks by compiled kernels: what the tests of the rules, which run with both backends, leave out."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import ops, planner
from gradreg_fast.backend import library
from gradreg_fast.blocks import with_blocks
from gradreg_fast.rules.conv_block import ConvBlock

from ..parity import assert_parity, assert_primitives, jacobian_sqnorm
from . import agreement

pytestmark = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")

ACTIVATIONS = {
    "none": None,
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "leaky_relu_negative": nn.LeakyReLU(-0.5),
    "softplus": nn.Softplus(3.0),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
}
POOLINGS = {
    "none": None,
    "max": nn.MaxPool2d(2),
    "max, overlapping and padded": nn.MaxPool2d(3, 2, 1),
    "max, two sizes, apart": nn.MaxPool2d((2, 1), (3, 2)),
    "average": nn.AvgPool2d(2),
    "average, overlapping and padded": nn.AvgPool2d(3, 2, 1),
    "average, two sizes, apart": nn.AvgPool2d((2, 1), (3, 2)),
}
SIZES = [(0, 1, 1), (1, 1, 6), (9, 7, 3), (17, 13, 9), (8, 2, 33), (16, 33, 2)]  # samples, channels in and out


@pytest.fixture
def compiled():
    """Kernels, wherever there are any."""
    with gradreg_fast.backend("cpp"):
        yield


def network(*layers, outputs=3, dtype=torch.float64):
    """These layers, a number for a convolution, and another convolution and a fully connected layer behind them."""
    layers = [nn.LazyConv2d(layer, 3) if isinstance(layer, int) else layer for layer in layers if layer is not None]
    return nn.Sequential(*layers, nn.LazyConv2d(3, 2), nn.Flatten(), nn.LazyLinear(outputs)).to(dtype)


def made(model, shape, dtype=torch.float64):
    """The model and a batch, once the model knows its sizes."""
    x = torch.randn(shape, dtype=dtype)
    model(x)
    return model, x


def blocks(model, x):
    """Names and rules of the blocks that serve a model."""
    graph, tensors = ops.prepare(model, x)
    return [node.rule for node in with_blocks(graph, x, tensors).nodes if node and type(node.rule) is ConvBlock]


def evaluate(backend, model, x, cotangent):
    return agreement.evaluate(backend, blocks, model, x, cotangent)


def assert_same(model, x, cotangent, terms=("y", "g")):
    agreement.assert_same(blocks, model, x, cotangent, terms, 1e-11)


@pytest.mark.parametrize("pooling", POOLINGS.values(), ids=POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_and_poolings(activation, pooling):
    """In both orders: averages end a block, so that an activation behind them is a node of its own."""
    cotangent = torch.randn(2, 3, 3, dtype=torch.float64)
    for layers in ((activation, pooling), (pooling, activation)):
        model, x = made(network(5, *layers), (3, 2, 11, 10))
        assert_same(model, x.requires_grad_(), cotangent)


@pytest.mark.each_processor
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_pytorch_lines(sizes):
    rows, inputs, outputs = sizes
    for layers in ((nn.Softplus(), nn.AvgPool2d(2)), (nn.ReLU(), nn.MaxPool2d(2)), (nn.SiLU(),)):
        model, x = made(network(outputs, *layers), (rows or 1, inputs, 9, 8))
        x = x[:rows].requires_grad_()
        for stack, terms in ((1, "yg"), (1, "y"), (3, "g")):
            cotangent = torch.randn(stack, rows, 3, dtype=torch.float64, requires_grad=True)
            assert_same(model, x, cotangent, terms)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.2), nn.Tanh()], ids=["leaky_relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_frozen_parameters_and_inputs(activation, outputs):
    model, _ = made(network(5, activation, nn.MaxPool2d(2), outputs=outputs), (2, 2, 9, 8))
    parameters = list(model.parameters())
    for frozen in range(len(parameters) + 1):
        for i, parameter in enumerate(parameters):
            parameter.requires_grad_(i >= frozen if frozen % 2 else i != frozen)
        for x_wanted in (True, False):
            x = torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=x_wanted)
            cotangent = torch.randn(1, 2, outputs, dtype=torch.float64)
            if x_wanted or any(parameter.requires_grad for parameter in parameters):
                assert_same(model, x, cotangent)


def test_every_contraction(compiled, monkeypatch):
    """Tangents also meet cotangents that are pulled behind them."""
    model, x = made(network(2, nn.SiLU(), nn.MaxPool2d(2), 5, nn.Tanh()), (2, 1, 11, 10))
    graph, tensors = ops.prepare(model, x)
    graph = with_blocks(graph, x, tensors)
    for plan in planner.candidates(gradreg_fast.engine.linearize(graph, x, tensors)[1], None):
        monkeypatch.setattr(planner, "plan", lambda *_, plan=plan: plan)
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


def test_equal_maxima_and_numbers_that_are_none(compiled):
    """The first of equals wins, as in PyTorch; not a number in, not a number out."""
    model, x = made(network(5, nn.LeakyReLU(0.5), nn.MaxPool2d(3, 2)), (3, 2, 8, 8))
    with torch.no_grad():
        model[0].weight.round_()
    assert_primitives(model, x.round())
    x[1, 0, 4, 4] = torch.nan
    y, g = gradreg_fast.value_and_vjp(model, x)
    assert y[1].isnan().all() and y[::2].isfinite().all() and g[::2].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time(threads):
    model, x = made(network(8, nn.Softplus(), nn.AvgPool2d(2), dtype=torch.float32), (67, 2, 20, 20), torch.float32)
    x.requires_grad_()
    torch.set_num_threads(threads)
    first = evaluate("cpp", model, x, None)
    for _ in range(3):
        assert all(map(torch.equal, first, evaluate("cpp", model, x, None)))
    for mine, wanted in zip(first, evaluate("torch", model, x, None), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4)


def test_changed_weights_are_noticed(compiled):
    model, x = made(network(5, nn.Tanh()), (3, 2, 8, 8))
    _, g = gradreg_fast.value_and_vjp(model, x)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        g.sum().backward()


# The operations themselves.

X, WEIGHT, SETTINGS = (9, 2, 8, 7), (5, 2, 3, 2), [3.0, 20.0]
BLOCKS = {
    "maxima": [2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2, 0, 0, 1, 1],
    "curved maxima": [2, 1, 1, 2, 1, 2, 1, 3, 2, 2, 2, 1, 1, 3, 0],
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.randn(X[1:])}, r"x must be \[B, C, H, W\]"),
        ({"x": torch.randn(9, 3, 8, 7)}, "as many inputs"),
        ({"x": torch.randn(9, 2, 0, 7)}, "smaller than the kernel"),
        ({"x": torch.randn(X).double()}, "x must have the dtype of the weight"),
        ({"weight": torch.randn(WEIGHT).half()}, "float32 or float64"),
        ({"weight": torch.randn(5, 2, 3)}, "weight must be"),
        ({"bias": torch.randn(4)}, "bias has the wrong shape"),
        ({"options": [0, *BLOCKS["maxima"][1:]]}, "wrong stride"),
        ({"options": BLOCKS["maxima"][1:]}, "15 options"),
        ({"options": [*BLOCKS["maxima"][:6], 7, *BLOCKS["maxima"][7:]]}, "unknown pooling 7"),
        ({"options": [*BLOCKS["maxima"][:7], 0, *BLOCKS["maxima"][8:]]}, "wrong pooling"),
        ({"options": [*BLOCKS["maxima"][:7], 90, *BLOCKS["maxima"][8:]]}, "smaller than the pooling window"),
        ({"options": [*BLOCKS["maxima"][:13], 99, 0]}, "unknown activation 99"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"x": torch.randn(X), "weight": torch.randn(WEIGHT), "bias": None}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gradreg_fast.conv_forward(
            **{**arguments, "options": BLOCKS["maxima"], "settings": SETTINGS, **change}
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.randn(1, 9, 5, 4, 3)}, "u has the wrong shape"),
        ({"u": None}, "nothing to pull"),
        ({"u": torch.randn(2, 9, 5, 2, 4)}, "adjoints are no stack"),
        ({"kept": torch.randn(5)}, "kept is not of this block"),
        ({"second": torch.randn(5)}, "second is not of this block"),
        ({"x": torch.randn(9, 2, 8, 8)}, "x has the wrong shape"),
        ({"shape": X[1:]}, r"x must be \[B, C, H, W\]"),
    ],
)
def test_wrong_arguments_of_the_pull_are_named(change, message):
    x, weight, options = torch.randn(X), torch.randn(WEIGHT), BLOCKS["curved maxima"]
    y, kept = torch.ops.gradreg_fast.conv_forward(x, weight, None, options, SETTINGS)
    arguments = {"u": y.unsqueeze(0), "second": None, "x": x, "kept": kept, "weight": weight, "shape": X}
    arguments |= {"options": options, "settings": SETTINGS, "pull": True, "bias": True}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gradreg_fast.conv_pull(**{**arguments, **change})
