"""What has no rule: autograd on that node alone, in the middle of a network, with parameters, hooks and tricks."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import gradreg_fast
from gradreg_fast.convert import graph_of
from tests.parity import WithoutRule, assert_primitives, is_opaque, opaque_reasons

pytestmark = pytest.mark.usefixtures("float64")


def around(layer, features=4, outputs=2):
    return nn.Sequential(nn.Linear(5, features), nn.Tanh(), layer, nn.Softplus(), nn.Linear(features, outputs))


class Similar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.inner = nn.CosineSimilarity(1)

    def forward(self, x):
        return torch.matmul(x, self.weight) * torch.sigmoid(x) + self.inner(x, torch.sin(x)).unsqueeze(1)


LAYERS = {
    "without parameters": WithoutRule,
    "with parameters": lambda: nn.RNNCell(4, 4),
    "two inputs": Similar,
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.TransformerEncoderLayer(2, 1, 3, 0.0, torch.special.erfcx, batch_first=True),
        nn.Flatten(),
    ),
}


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_in_the_middle(make, outputs):
    model = around(make(), outputs=outputs)
    assert is_opaque(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_primitives(model, torch.randn(3, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_the_rest_keeps_its_rules(name):
    graph = graph_of(around(LAYERS[name]()))
    rules = [type(node.rule).__name__ for node in graph.nodes if node]
    assert rules.count("Linear") >= 2
    assert "Tanh" in rules
    assert "Softplus" in rules


@pytest.mark.parametrize("make", [WithoutRule, lambda: nn.RNNCell(5, 5)])
def test_at_the_ends(make):
    assert_primitives(nn.Sequential(make(), nn.Linear(5, 5), nn.Tanh()), torch.randn(3, 5))
    assert_primitives(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), make()), torch.randn(3, 4))
    assert_primitives(make(), torch.randn(3, 5))


def test_frozen_parameters_and_buffers():
    layer = nn.RNNCell(4, 4)
    layer.weight_ih.requires_grad_(False)
    assert_primitives(around(layer), torch.randn(3, 5))

    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.rand(4))

        def forward(self, x):
            return x * self.scale + self.scale.sum() * x.square()

    assert_primitives(around(Buffered()), torch.randn(3, 5))


class Between(nn.Module):
    """A function of the hidden values between two layers, and no module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x.square() * gradient


def swapped_halves(h):
    a, b = h.chunk(2, 1)
    return torch.cat([b, a.sin()], 1)


FUNCTIONS = {
    "constant, detached": lambda h: torch.tanh(h) + h.detach(),
    "constant, zeros": lambda h: torch.tanh(h) + torch.zeros_like(h),
    "constant, signs": lambda h: torch.tanh(h) + torch.sign(h),
    "nothing but a constant": torch.ones_like,
    "linear": lambda h: torch.tanh(h.flip(1)),
    "random, like": lambda h: torch.tanh(h + torch.randn_like(h)),
    "random, sized": lambda h: torch.tanh(h * torch.rand(h.shape[0], 4)),
    "random, of a fixed size": lambda h: torch.tanh(h * torch.rand(4)),
    "random, of Python": lambda h: torch.tanh(h * random.Random(int(torch.randint(9, (1,)))).random()),
    "makes a range": lambda h: torch.tanh(h + torch.arange(4.0)),
    "makes a matrix": lambda h: torch.tanh(h @ torch.eye(4).mul(2)),
    "makes a column": lambda h: torch.tanh(h + torch.full((h.shape[0], 1), 0.5)),
    "makes a tensor of numbers": lambda h: torch.tanh(h * torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "makes ones like its input": lambda h: torch.tanh(h + h.new_ones(h.shape)),
    "several results, chunk": lambda h: torch.cat(torch.tanh(h).chunk(2, 1)[::-1], 1),
    "several results, chunk unpacked": lambda h: swapped_halves(torch.tanh(h)),
    "several results, split": lambda h: torch.cat(torch.split(torch.tanh(h), 2, 1), 1),
    "several results, unbind": lambda h: torch.stack(torch.tanh(h).unbind(1), 1),
    "several results, max": lambda h: torch.tanh(h) + torch.tanh(h).max(1, keepdim=True).values,
    "several results, max by number": lambda h: torch.tanh(h) + torch.tanh(h).max(1, keepdim=True)[0],
    "several results, sort": lambda h: torch.tanh(h).sort(1)[0],
    "control flow": lambda h: torch.tanh(h) if h.sum() > 0 else torch.sigmoid(h),
    "a backward of its own": Cubed.apply,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function):
    """Without a rule; some cannot be traced, and some have nothing to differentiate once, or twice."""
    assert_primitives(Between(function), torch.randn(3, 5))


def test_control_flow_is_reported():
    assert opaque_reasons(Between(FUNCTIONS["control flow"]))


def test_control_flow_inside_a_larger_model_and_sizes_that_vary():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            for _ in range(x.shape[0]):
                x = torch.tanh(self.inner(x))
            return x

    model = Net()
    for size in (2, 3):
        assert_primitives(model, torch.randn(size, 5))


def hooked(kind):
    layer = nn.Linear(4, 4)
    if kind == "forward":
        layer.register_forward_hook(lambda module, inputs, output: output * 2 + output.square())
    elif kind == "before":
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),))
    elif kind == "backward":
        layer.register_full_backward_hook(lambda module, below, above: None)
    return layer


@pytest.mark.parametrize("kind", ["forward", "before", "backward"])
def test_hooks(kind):
    model = around(hooked(kind))
    assert any("hooks" in reason for reason in opaque_reasons(model))
    assert_primitives(model, torch.randn(3, 5))
    assert_primitives(hooked(kind), torch.randn(3, 4))


def test_hooks_of_the_whole_model_and_of_all_modules():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    model.register_forward_hook(lambda module, inputs, output: output.square())
    assert_primitives(model, torch.randn(3, 5))
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 1.5)
    try:
        assert_primitives(model, torch.randn(3, 5))
    finally:
        handle.remove()
    assert_primitives(model, torch.randn(3, 5))


def test_hooks_on_parameters_fire_once_for_the_sum():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.RNNCell(4, 4), nn.Linear(4, 2))
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient.shape))
    y, g = gradreg_fast.value_and_vjp(model, torch.randn(3, 5))
    (y.sum() + g.square().sum()).backward()
    assert len(seen) == len(list(model.parameters()))


def test_replaced_forward():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: functional.linear(x, layer.weight).sin()
    assert_primitives(around(layer), torch.randn(3, 5))


PARAMETRISED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "old weight norm": lambda: weight_norm(nn.Linear(4, 4)),
    "old spectral norm": lambda: spectral_norm(nn.Linear(4, 4)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", PARAMETRISED.values(), ids=PARAMETRISED)
def test_parametrisations(make, training):
    """Spectral norm's power iteration takes one step a call, as in autograd."""
    assert_primitives(around(make()).train(training), torch.randn(3, 5))


def test_parametrised_convolution():
    conv = parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    model = nn.Sequential(conv, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12, 1))
    assert_primitives(model, torch.randn(3, 2, 4, 4))


def test_keyword_arguments_and_nested_modules():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, *, gain=1.0, residual=None):
            y = self.linear(x) * gain
            return y if residual is None else y + residual

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(5, 4), Inner(), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            h = torch.tanh(self.inner(h, gain=2.0))
            return self.last(self.inner(h, residual=h))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(3, 5))


def test_in_place_changes_inside_an_opaque_module_are_seen_by_later_readers():
    """A hooked block that changes its input: autograd's number, or an error, but never another number."""

    class Block(nn.Module):
        def forward(self, x):
            return x.mul_(2).tanh()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.last = nn.Linear(5, 4), Block(), nn.Linear(4, 2)
            self.block.register_forward_hook(lambda module, inputs, output: output + 1)

        def forward(self, x):
            h = self.first(x)
            y = self.block(h)
            return self.last(y + h)

    model = Net()
    try:
        gradreg_fast.value_and_vjp(model, torch.randn(3, 5))
    except RuntimeError as error:
        assert "in place" in str(error)
    else:
        assert_primitives(model, torch.randn(3, 5))


def test_tuple_between_nodes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lstm, self.last = nn.Linear(5, 4), nn.LSTM(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            h, _ = self.lstm(torch.tanh(self.first(x)))
            return self.last(h)

    assert_primitives(Net(), torch.randn(3, 5))


def test_inference_mode_is_never_silently_wrong():
    model, x = around(WithoutRule()), torch.randn(3, 5)
    _, expected = gradreg_fast.value_and_vjp(model, x)
    try:
        with torch.inference_mode():
            _, g = gradreg_fast.value_and_vjp(model, x)
    except RuntimeError:
        return
    torch.testing.assert_close(g, expected.detach())


def test_same_sample_statistics_are_flagged():
    """Whoever mixes samples in an opaque node gets autograd's number, not a per-sample contraction."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 2), nn.Linear(2, 6)

        def forward(self, x):
            h = self.first(x)
            return self.last(torch.tanh(h - h.mean(0)))

    assert_primitives(Net(), torch.randn(4, 5))
