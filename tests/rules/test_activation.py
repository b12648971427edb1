"""Activations: phi, phi' and phi'' with all options, as modules, functions, methods and in place."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast.modules import Sine
from tests.parity import (
    assert_layer,
    assert_primitives,
    compare,
    evaluate,
    is_opaque,
    jacobian_sqnorm,
    norm,
    value_and_vjp,
)

pytestmark = pytest.mark.usefixtures("float64", "each_backend")

MODULES = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU,
    "leaky relu, slope": lambda: nn.LeakyReLU(0.3),
    "leaky relu, slope zero": lambda: nn.LeakyReLU(0.0),
    "leaky relu, slope one": lambda: nn.LeakyReLU(1.0),
    "leaky relu, negative slope": lambda: nn.LeakyReLU(-0.5),
    "leaky relu in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "softplus": nn.Softplus,
    "softplus, beta": lambda: nn.Softplus(beta=5.0),
    "softplus, threshold": lambda: nn.Softplus(beta=3.0, threshold=1.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "gelu, tanh": lambda: nn.GELU(approximate="tanh"),
    "sine": lambda: Sine(1.0),
    "sine, frequency": lambda: Sine(7.0),
}

FUNCTIONS = {
    "relu": functional.relu,
    "torch relu": torch.relu,
    "relu method": lambda h: h.relu(),
    "relu keyword": lambda h: functional.relu(h, inplace=True),
    "relu positional": lambda h: functional.relu(h, True),
    "relu_": lambda h: h.relu_(),
    "torch relu_": torch.relu_,
    "functional relu_": functional.relu_,
    "leaky relu": lambda h: functional.leaky_relu(h, 0.2),
    "leaky relu in place": lambda h: functional.leaky_relu(h, 0.2, True),
    "leaky_relu_": lambda h: functional.leaky_relu_(h, 0.2),
    "softplus": lambda h: functional.softplus(h, beta=2.0, threshold=3.0),
    "tanh": torch.tanh,
    "tanh method": lambda h: h.tanh(),
    "tanh_": lambda h: h.tanh_(),
    "functional tanh": functional.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid method": lambda h: h.sigmoid(),
    "sigmoid_": lambda h: h.sigmoid_(),
    "functional sigmoid": functional.sigmoid,
    "silu": functional.silu,
    "silu in place": lambda h: functional.silu(h, True),
    "gelu": lambda h: functional.gelu(h, approximate="tanh"),
    "sin": torch.sin,
    "sin method": lambda h: h.sin(),
    "sin_": lambda h: h.sin_(),
}


class Applied(nn.Module):
    """A function between two layers; its argument is read once more afterwards, so that in place matters."""

    def __init__(self, function, again=False):
        super().__init__()
        self.function = function
        self.again = again
        self.first = nn.Linear(5, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        h = self.first(x)
        y = self.function(h)
        return self.last(y + h if self.again else y)


OUT_OF_PLACE = {name: make for name, make in MODULES.items() if "in place" not in name}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_modules(make, outputs):
    model = nn.Sequential(nn.Linear(5, 7), make(), nn.Linear(7, 5), make(), nn.Linear(5, outputs))
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(4, 5))


@pytest.mark.parametrize("make", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE)
def test_modules_on_images(make):
    assert_layer(make, (3, 5, 1), size=2)


@pytest.mark.parametrize("again", [False, True], ids=["once", "read again"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function, again):
    model = Applied(function, again)
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(4, 5))


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_far_from_zero(make):
    """Where slopes saturate, and around softplus' threshold."""
    model = nn.Sequential(nn.Linear(1, 9), make(), nn.Linear(9, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.linspace(-25, 25, 9))
    assert_primitives(model, torch.linspace(-1, 1, 5).unsqueeze(1))


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_at_zero(make):
    """A kink's slope is PyTorch's."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), make(), nn.Linear(4, 2))
    assert_primitives(model, torch.zeros(2, 3))


KINKED = {
    "clamp": lambda h: h.clamp(-0.3, 0.2),
    "clamp below": lambda h: h.clamp(min=0),
    "hardtanh": lambda h: functional.hardtanh(h, -0.3, 0.2),
    "relu6": functional.relu6,
    "threshold": lambda h: functional.threshold(h, 0.2, -1),
    "hardshrink": lambda h: functional.hardshrink(h, 0.3),
    "softshrink": lambda h: functional.softshrink(h, 0.2),
    "hardswish": functional.hardswish,
    "abs": torch.abs,
    "elu": functional.elu,
    "selu": functional.selu,
    "maximum": lambda h: torch.maximum(h, 2 * h),
    "softsign": functional.softsign,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("function", KINKED.values(), ids=KINKED)
def test_at_the_kinks(function, dtype):
    """Exactly there, the slope is PyTorch's."""
    model = Applied(function).to(dtype)
    with torch.no_grad():
        model.first.bias.copy_(torch.tensor([-3.0, -0.3, -0.2, 0.0, 0.2, 0.3, 6.0]))
    x = torch.zeros(2, 5, dtype=dtype)
    rtol, floor = (1e-9, 1e-13) if dtype == torch.float64 else (1e-6, 1e-6)
    for ours, oracle in (
        (gradreg_fast.value_and_vjp, value_and_vjp),
        (gradreg_fast.jacobian_sqnorm, jacobian_sqnorm),
    ):
        compare(evaluate(ours, model, [x]), evaluate(oracle, model, [x]), rtol, floor)


def test_subclass_is_left_to_autograd():
    class Swish(nn.ReLU):
        def forward(self, x):
            return x * torch.sigmoid(x)

    assert_primitives(nn.Sequential(nn.Linear(5, 4), Swish(), nn.Linear(4, 2)), torch.randn(3, 5))


@pytest.mark.parametrize("function", [torch.special.erfcx, torch.sinc])
def test_others_are_left_to_autograd(function):
    model = Applied(function)
    assert is_opaque(model)
    assert_primitives(model, torch.randn(3, 5))


@pytest.mark.parametrize("make", [nn.ELU, nn.CELU, nn.Hardtanh, nn.ReLU6, nn.SELU, nn.Mish])
def test_others_in_place(make):
    model = nn.Sequential(nn.Linear(5, 4), make(inplace=True), nn.Linear(4, 2), nn.Tanh())
    assert_primitives(model, torch.randn(3, 5))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: functional.elu(h, 0.5, True),
        lambda h: h.exp_(),
        lambda h: h.log1p_(),
        lambda h: functional.rrelu(h, inplace=True),
        lambda h: h.nan_to_num_(),
    ],
)
def test_other_functions_in_place(function):
    assert_primitives(Applied(function), torch.randn(4, 5))
    assert_primitives(Applied(function, again=True), torch.randn(4, 5))


@pytest.mark.parametrize("make", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outputs", [1, 3])
def test_lower_precision(make, dtype, outputs):
    """PyTorch's kernels differ by dtype: some do not take stacks as they are."""
    for model, x in (
        (nn.Sequential(nn.Linear(5, 7), make(), nn.Linear(7, outputs)), torch.randn(4, 5)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), make(), nn.Flatten(), nn.Linear(12, outputs)), torch.randn(4, 2, 4, 4)),
    ):
        model, x = model.to(dtype), x.to(dtype)
        mine = evaluate(gradreg_fast.jacobian_sqnorm, model, [x])
        theirs = evaluate(jacobian_sqnorm, model, [x])
        tolerance = 100 * torch.finfo(dtype).eps
        for group, tensors in theirs.items():
            for name, expected in tensors.items():
                assert norm(mine[group][name].double() - expected.double()) <= tolerance * max(1, norm(expected))
