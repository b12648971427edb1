"""Fully connected layers: values and every gradient, as autograd gives them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.parity import assert_layer, assert_primitives, is_opaque

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (7, 1), (1, 5)])
def test_sizes(inputs, outputs, bias):
    assert_layer(lambda: nn.Linear(inputs, outputs, bias=bias), (inputs,))


@pytest.mark.parametrize("size", [1, 2])
def test_small_batches(size):
    assert_layer(lambda: nn.Linear(5, 5), (5,), size)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU])
def test_over_the_last_of_several_dimensions(activation, outputs):
    layers = [nn.Linear(5, 7), activation(), nn.Linear(7, 2), activation(), nn.Flatten(), nn.Linear(6, outputs)]
    assert_primitives(nn.Sequential(*layers), torch.randn(4, 3, 5))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.LeakyReLU])
def test_output_without_a_dimension_of_its_own(activation):
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 1))

        def forward(self, x):
            return self.layers(x).squeeze(1)

    assert_primitives(Critic(), torch.randn(4, 5))


def test_output_with_positions():
    assert_primitives(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), torch.randn(4, 3, 5))


@pytest.mark.parametrize(
    "x",
    [
        lambda: torch.randn(5, 4).t(),
        lambda: torch.randn(8, 10)[::2, ::2],
        lambda: torch.randn(1, 5).expand(4, 5),
        lambda: torch.randn(4, 1).expand(4, 5),
    ],
    ids=["transposed", "strided", "shared by samples", "shared by features"],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_strides(x, outputs):
    assert_primitives(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, outputs)), x())


def test_linear_alone():
    assert_primitives(nn.Linear(5, 3), torch.randn(4, 5))
    assert_primitives(nn.Linear(5, 1), torch.randn(4, 5))


def test_functional_call_with_a_parameter_of_the_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 5))
            self.bias = nn.Parameter(torch.randn(7))
            self.last = nn.Linear(7, 2)

        def forward(self, x):
            return self.last(torch.tanh(functional.linear(x, self.weight, bias=self.bias)))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(4, 5))
