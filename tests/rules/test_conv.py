"""Convolutions with all their options: values and every gradient, as autograd gives them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from tests.parity import assert_layer, assert_primitives, compare, evaluate, is_opaque, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64", "each_backend")

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "one by one": {"kernel_size": 1},
    "one by one, stride": {"kernel_size": 1, "stride": 2},
    "one by one, two strides": {"kernel_size": 1, "stride": (1, 3), "groups": 2},
    "kernel of two sizes": {"kernel_size": (1, 5), "padding": (0, 2)},
    "stride": {"stride": 2},
    "two strides": {"stride": (2, 3)},
    "stride beyond the kernel": {"kernel_size": 2, "stride": 3},
    "padding": {"padding": 1},
    "two paddings": {"padding": (0, 2)},
    "padding beyond the kernel": {"kernel_size": 2, "padding": 3},
    "stride and padding": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2},
    "two dilations": {"dilation": (1, 2), "padding": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
    "everything": {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2, "bias": False},
    "everything but groups": {"kernel_size": (2, 3), "stride": (2, 3), "padding": (3, 1), "dilation": (3, 2)},
    "valid": {"padding": "valid", "stride": 2},
    "same": {"padding": "same"},
    "same, even kernel": {"kernel_size": 2, "padding": "same"},
    "same, even and odd kernel": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular", "stride": 2},
    "same, circular, even kernel": {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    "same, reflect": {"padding": "same", "padding_mode": "reflect", "dilation": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options):
    def make():
        return nn.Conv2d(4, 4, **{"kernel_size": 3, **options})

    assert not is_opaque(nn.Sequential(make()))
    assert_layer(make, (4, 7, 6))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_in_single_precision(options):
    """Which oneDNN computes, unlike double precision, in layouts that are chosen for it."""
    layers = nn.Conv2d(4, 4, **{"kernel_size": 3, **options}), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model, x = nn.Sequential(*layers).float(), torch.randn(4, 4, 12, 12).float()
    found = [evaluate(each, model, [x]) for each in (gradreg_fast.value_and_vjp, value_and_vjp)]
    compare(*found, rtol=1e-5, floor=1e-6)


@pytest.mark.parametrize("options", ["padding", "everything but groups", "two dilations", "stride and padding"])
def test_depthwise_on_small_images(options):
    assert_layer(lambda: nn.Conv2d(4, 4, **{"kernel_size": 3, **OPTIONS[options], "groups": 4}), (4, 3, 4))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 7)])
@pytest.mark.parametrize("channels", [(1, 1), (1, 5), (3, 1)])
def test_odd_sizes(size, channels):
    assert_layer(lambda: nn.Conv2d(*channels, 3, padding=1), (channels[0], *size), size=1)


def critic(outputs, activation=nn.LeakyReLU):
    """Ends in a convolution, as convolutional critics do."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 4, 2, 1), activation(), nn.Conv2d(5, 7, 4, 2, 1), activation(), nn.Conv2d(7, outputs, 2)
    )


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Softplus])
def test_last_layer_is_a_convolution(outputs, activation):
    assert_primitives(critic(outputs, activation), torch.randn(3, 2, 8, 8))
    assert_primitives(nn.Sequential(critic(outputs, activation), nn.Flatten(0)), torch.randn(1, 2, 8, 8))


@pytest.mark.parametrize(
    "x",
    [
        lambda: torch.randn(3, 2, 8, 8).contiguous(memory_format=torch.channels_last),
        lambda: torch.randn(3, 2, 16, 8)[:, :, ::2],
        lambda: torch.randn(8, 8, 2, 3).permute(3, 2, 0, 1),
        lambda: torch.randn(3, 2, 8, 1).expand(3, 2, 8, 8),
    ],
    ids=["channels last", "strided", "permuted", "expanded"],
)
@pytest.mark.parametrize(("outputs", "activation"), [(1, nn.LeakyReLU), (2, nn.Tanh)])
def test_strides(x, outputs, activation):
    assert_primitives(critic(outputs, activation), x())
    assert_primitives(critic(outputs, activation).to(memory_format=torch.channels_last), x())


def test_functional_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            x = torch.tanh(functional.conv2d(x, self.inner.weight, None, 2, padding=1))
            return torch.tanh(functional.conv2d(x, self.inner.weight[:, :1].repeat(1, 3, 1, 1), padding="valid"))

    assert_primitives(Net(), torch.randn(2, 2, 7, 7))


def test_functional_same_padding_is_left_to_autograd():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(2, 3, 2)

        def forward(self, x):
            return torch.tanh(functional.conv2d(x, self.inner.weight, self.inner.bias, padding="same"))

    assert_primitives(Net(), torch.randn(2, 2, 3, 4))


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv1d(2, 3, 3, padding=1), lambda: nn.ConvTranspose1d(2, 3, 3, padding=1)]
)
def test_one_dimension(make):
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Tanh(), make(), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2))
    assert_primitives(model, torch.randn(3, 2, 5))


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Tanh])
def test_weights_larger_than_images(activation):
    """Products of weights that wait for each other: of two sizes of images, of one, and of a penalty alone."""
    twice = nn.Conv2d(12, 12, 3, padding=1)
    layers = nn.Conv2d(2, 12, 3), activation(), twice, activation(), nn.MaxPool2d(2, 1), twice, activation(), twice
    assert_primitives(nn.Sequential(*layers), torch.randn(2, 2, 4, 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layouts_in_single_precision(bias, outputs):
    """Kernels that are their stride, which are products, beside large weights, which keep their images' layout."""

    def conv(*settings, **options):
        return nn.Conv2d(*settings, bias=bias, **options)

    ends = conv(2, 8, 1), conv(8, 8, (2, 3), (2, 3)), conv(8, 8, 2, 2), nn.Flatten(), nn.Linear(16, outputs)
    model = nn.Sequential(ends[0], nn.LeakyReLU(), conv(8, 40, 3, padding=1), conv(40, 8, 3, padding=1), *ends[1:])
    for x in (
        torch.randn(2, 2, 4, 14),
        torch.randn(2, 4, 14, 2).permute(0, 3, 1, 2),
        torch.randn(2, 2, 8, 14)[:, :, ::2],
    ):
        found = [evaluate(each, model.float(), [x.float()]) for each in (gradreg_fast.value_and_vjp, value_and_vjp)]
        compare(*found, rtol=1e-4, floor=1e-5)


def test_no_batch_dimension_is_an_error():
    with pytest.raises(ValueError, match="batch"):
        gradreg_fast.value_and_vjp(nn.Conv2d(2, 3, 3), torch.randn(2, 5, 5))
