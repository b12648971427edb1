"""Batch normalisation, training and evaluating: values, every gradient, and running statistics updated once."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast import reference
from tests.parity import assert_layer, assert_primitives, between, compare, evaluate, is_opaque

pytestmark = pytest.mark.usefixtures("float64")

OPTIONS = {
    "plain": {},
    "not affine": {"affine": False},
    "cumulative": {"momentum": None},
    "momentum": {"momentum": 0.3, "eps": 1e-2},
    "untracked": {"track_running_stats": False},
    "untracked, not affine": {"track_running_stats": False, "affine": False},
}


def normalisation(kind, features, training, **options):
    """A layer whose parameters and statistics are not the initial ones."""
    layer = kind(features, **options).train(training)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return layer


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (3, 5, 1))], ids=["1d", "2d"])
def test_options(kind, shape, options, training):
    def make():
        return normalisation(kind, shape[0], training, **options)

    assert not is_opaque(nn.Sequential(nn.Linear(5, 5), make()))
    assert_layer(make, shape, size=4)


class Twice(nn.Module):
    def __init__(self, training):
        super().__init__()
        self.norm = normalisation(nn.BatchNorm1d, 5, training)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = self.norm(self.first(x))
        return self.last(self.norm(torch.tanh(h)))


class Functional(nn.Module):
    def __init__(self, training, affine):
        super().__init__()
        self.norm = normalisation(nn.BatchNorm1d, 5, training, affine=affine)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        layer = self.norm
        statistics, weights = (layer.running_mean, layer.running_var), (layer.weight, layer.bias)
        h = functional.batch_norm(self.first(x), *statistics, *weights, layer.training, momentum=0.2)
        return self.last(torch.tanh(h))


def sequences(training):
    layer = normalisation(nn.BatchNorm1d, 3, training)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.Linear(21, 2))


def volumes(training):
    layer = normalisation(nn.BatchNorm3d, 2, training)
    return nn.Sequential(nn.Linear(2, 3), layer, nn.Tanh(), nn.Flatten(), nn.Linear(36, 1))


def channels_last(training):
    return between(normalisation(nn.BatchNorm2d, 3, training), (3, 5, 4)).to(memory_format=torch.channels_last)


def frozen(training, parameter):
    layer = normalisation(nn.BatchNorm1d, 5, training)
    getattr(layer, parameter).requires_grad_(False)
    return between(layer, (5,))


NETWORKS = {
    "sequences": (sequences, (4, 3, 5)),
    "volumes": (volumes, (2, 2, 3, 2, 2)),
    "channels last": (channels_last, (3, 2, 5, 4)),
    "weight frozen": (lambda training: frozen(training, "weight"), (4, 4)),
    "bias frozen": (lambda training: frozen(training, "bias"), (4, 4)),
    "one layer used twice": (Twice, (4, 4)),
    "called as a function": (lambda training: Functional(training, True), (4, 4)),
    "called as a function, not affine": (lambda training: Functional(training, False), (4, 4)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, training):
    make, shape = NETWORKS[name]
    x = torch.randn(shape)
    if name == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    assert_primitives(make(training), x)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's, which is found by its name."""

    __module__ = "timm.layers.norm_act"

    def __init__(self, features, act):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        x = functional.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
        return self.act(self.drop(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm_with_an_activation(training):
    assert not is_opaque(nn.Sequential(BatchNormAct2d(3, nn.SiLU(inplace=True)).train(training)))
    assert_layer(lambda: BatchNormAct2d(3, nn.PReLU()).train(training), (3, 4, 2))
    assert is_opaque(nn.Sequential(BatchNormAct2d(3, nn.RReLU()).train(training)))


@pytest.mark.parametrize("channels", [4, 1])
def test_group_norm_above_all_that_gets_gradients(channels):
    """In single precision, where convolutions lay out channels last."""
    below, x = nn.Conv2d(4, channels, 1).requires_grad_(False), torch.randn(3, 4, 3, 3).float()
    above = nn.GroupNorm(1, channels), nn.Tanh(), nn.Flatten(), nn.Linear(9 * channels, 2)
    model, sides = nn.Sequential(below, *above).float(), (gradreg_fast.value_and_vjp, reference.value_and_vjp)
    compare(*(evaluate(lambda model, side=side: side(model, x), model, []) for side in sides), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_instance_norm_of_one_image_that_was_pooled(dtype):
    """Its layout is channels last, in strides that do not tell."""
    layers = nn.MaxPool2d(3, padding=1), nn.InstanceNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1)
    model, x = nn.Sequential(*layers).to(dtype), torch.randn(1, 2, 8, 8, dtype=dtype)
    found = gradreg_fast.value_and_vjp(model, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, reference.value_and_vjp(model, x), rtol=1e-4, atol=1e-6)


def test_two_samples_and_one_position():
    assert_layer(lambda: normalisation(nn.BatchNorm1d, 5, True), (5,), size=2)
    assert_layer(lambda: normalisation(nn.BatchNorm2d, 3, True), (3, 1, 2), size=1)


QUANTITIES = {
    "vjp": gradreg_fast.value_and_vjp,
    "norm": gradreg_fast.jacobian_sqnorm,
    "estimate": lambda model, x: gradreg_fast.jacobian_sqnorm(model, x, 2),
    "penalty": gradreg_fast.functional.gradient_penalty,
}


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_running_statistics_are_updated_once(quantity):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(6, 3)
    y, g = quantity(model, x)
    (y.sum() + g.sum()).backward()
    inner = model[0](x)
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(model[1].running_mean, 0.1 * inner.mean(0))
    torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * inner.var(0))


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_evaluation_updates_nothing(quantity):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    y, g = quantity(model, torch.randn(6, 3))
    (y.sum() + g.sum()).backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_a_second_forward_before_the_first_backward():
    """The running statistics that it changes are not part of the first."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    y, g = gradreg_fast.value_and_vjp(model, torch.randn(6, 3))
    gradreg_fast.value_and_vjp(model, torch.randn(6, 3))
    (y.sum() + g.square().sum()).backward()
    assert model[0].weight.grad.isfinite().all()


def test_one_value_per_channel_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="more than one value per channel"):
        gradreg_fast.value_and_vjp(model, torch.randn(1, 3))


@pytest.mark.parametrize(
    "make",
    [lambda: nn.InstanceNorm1d(4, track_running_stats=True), lambda: nn.InstanceNorm1d(4), lambda: nn.GroupNorm(4, 4)],
    ids=["instance, running statistics", "instance", "group"],
)
def test_statistics_of_one_value_are_an_error(make):
    model, x = nn.Sequential(make(), nn.Flatten(), nn.Linear(4, 1)), torch.randn(1, 4, 1)
    before = [buffer.clone() for buffer in model.buffers()]
    for call in (model, lambda x: gradreg_fast.value_and_vjp(model, x)):
        with pytest.raises(ValueError, match=r"more than (1|one)"):
            call(x)
    assert all(map(torch.equal, model.buffers(), before))


def test_a_layer_that_tracks_without_a_rule_is_updated_once():
    layer = nn.BatchNorm1d(5)
    layer.register_forward_hook(lambda *arguments: None)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer, nn.Flatten(), nn.Linear(30, 2))
    assert is_opaque(model)
    assert_primitives(model, torch.randn(3, 5, 4))
