"""Pooling with all its options: values and every gradient, as autograd gives them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.parity import assert_layer, assert_primitives, between, is_opaque

pytestmark = pytest.mark.usefixtures("float64", "each_backend")

LAYERS = {
    "max": lambda: nn.MaxPool2d(2),
    "max, two sizes": lambda: nn.MaxPool2d((1, 3), (2, 1)),
    "max, overlap": lambda: nn.MaxPool2d(3, stride=1),
    "max, overlap and padding": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max, dilation": lambda: nn.MaxPool2d(2, stride=1, dilation=2),
    "max, ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "max, everything": lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=(1, 2), ceil_mode=True),
    "max, window of one": lambda: nn.MaxPool2d(1),
    "average": lambda: nn.AvgPool2d(2),
    "average, two sizes": lambda: nn.AvgPool2d((1, 3), (2, 1)),
    "average, overlap and padding": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "average, padding not counted": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "average, ceil": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "average, ceil, not counted": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average, divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive average, one": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive average, one side": lambda: nn.AdaptiveAvgPool2d((None, 2)),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((2, 3)),
    "adaptive maximum, one": lambda: nn.AdaptiveMaxPool2d(1),
}

FUNCTIONS = {
    "max": lambda h: functional.max_pool2d(h, 2, stride=1),
    "torch max": lambda h: torch.max_pool2d(h, 3, 2, 1),
    "average": lambda h: functional.avg_pool2d(h, 3, 2, 1, False, False),
    "adaptive average": lambda h: functional.adaptive_avg_pool2d(h, 2),
    "adaptive maximum": lambda h: functional.adaptive_max_pool2d(h, (2, 1)),
}


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_layers(make):
    assert not is_opaque(nn.Sequential(make()))
    assert_layer(make, (3, 5, 7), size=2)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function):
    assert_layer(lambda: Function(function), (3, 5, 7), size=2)


@pytest.mark.parametrize("make", [lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2), lambda: nn.AdaptiveMaxPool2d(2)])
def test_channels_last(make):
    model = between(make(), (3, 4, 5)).to(memory_format=torch.channels_last)
    assert_primitives(model, torch.randn(3, 2, 4, 5).contiguous(memory_format=torch.channels_last))


def test_equal_values():
    """Among equals the winner is PyTorch's: all windows of rectified negatives hold zeros only."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[0].bias.fill_(-0.3)
    assert_primitives(model, torch.randn(3, 2, 6, 6))


@pytest.mark.parametrize("make", [lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2)], ids=["max", "average"])
def test_the_batch_in_the_channels_place(make):
    """PyTorch pools ``[C, H, W]`` too; here its C are the samples."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), make(), nn.Flatten(), nn.Linear(6, 2))
    assert_primitives(model, torch.randn(3, 5, 4))


def test_others_are_left_to_autograd():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LPPool1d(2, 2), nn.Flatten(), nn.Linear(15, 2))
    assert is_opaque(model)
    assert_primitives(model, torch.randn(3, 5, 4))


def test_returned_indices_are_left_to_autograd():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            h, indices = self.pool(torch.tanh(self.conv(x)))
            return self.conv(self.unpool(h, indices))

    assert_primitives(Net(), torch.randn(2, 2, 4, 4))
