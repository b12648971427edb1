"""Branches, arithmetic with numbers, and Dropout with autograd's own masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from tests.parity import assert_layer, assert_parity, assert_primitives, is_opaque, jacobian_sqnorm, opaque_reasons

pytestmark = pytest.mark.usefixtures("float64")


class Joined(nn.Module):
    """Two branches of the input, ``[B, 4]`` and ``[B, 4]``, joined and read by a last layer."""

    def __init__(self, join, outputs=2, smooth=True):
        super().__init__()
        self.join = join
        self.smooth = smooth
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)
        joined = join(torch.ones(3, 4), torch.ones(3, 4))
        self.last = nn.Linear(joined[0].numel(), outputs)

    def forward(self, x):
        activation = torch.tanh if self.smooth else torch.relu
        a, b = activation(self.left(x)), activation(self.right(x))
        return self.last(activation(self.join(a, b)).flatten(1))


JOINS = {
    "+": lambda a, b: a + b,
    "torch add": lambda a, b: torch.add(a, b, alpha=3),
    "add method": lambda a, b: a.add(b, alpha=-0.5),
    "add to itself": lambda a, b: a + a + b,
    "add_": lambda a, b: (a + 0).add_(b),
    "-": lambda a, b: a - b,
    "torch sub": lambda a, b: torch.sub(a, b, alpha=0.5),
    "sub method": lambda a, b: a.sub(b, alpha=2),
    "cancel": lambda a, b: a - a + b,
    "broadcast": lambda a, b: a.view(-1, 4, 1) + b.view(-1, 1, 4),
    "broadcast, factor": lambda a, b: torch.add(a.view(-1, 4, 1), b.view(-1, 1, 4), alpha=2),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "cat tuple": lambda a, b: torch.cat((a, b), dim=-1),
    "cat three": lambda a, b: torch.cat([a, b, a], 1),
    "cat one": lambda a, b: torch.cat([a], 1) + b,
    "cat inner": lambda a, b: torch.cat([a.view(-1, 2, 2), b.view(-1, 2, 2)], dim=1),
    "cat last": lambda a, b: torch.cat([a.view(-1, 2, 2), b.view(-1, 2, 2)], dim=2),
    "cat negative": lambda a, b: torch.cat([a.view(-1, 2, 2), b.view(-1, 2, 2)], dim=-2),
    "cat uneven": lambda a, b: torch.concat([a.unsqueeze(1), torch.cat([b, a], 1).view(-1, 2, 4)], 1),
    "concatenate": lambda a, b: torch.concatenate([a, b], dim=1),
}

NUMBERS = {
    "+ number": lambda h: h + 2,
    "number +": lambda h: 0.5 + h,
    "torch add": lambda h: torch.add(h, 2, alpha=3),
    "- number": lambda h: h - 1.5,
    "number -": lambda h: 1 - h,
    "sub method": lambda h: h.sub(1, alpha=2),
    "* number": lambda h: h * 3,
    "number *": lambda h: -2.5 * h,
    "* zero": lambda h: h * 0 + 1,
    "mul method": lambda h: h.mul(2),
    "/ number": lambda h: h / 4,
    "div method": lambda h: h.div(0.3),
    "torch div": lambda h: torch.true_divide(h, 3),
    "negative": lambda h: -h,
    "torch neg": lambda h: torch.neg(h),
    "mul_": lambda h: (h + 0).mul_(2),
    "chain": lambda h: ((2 * h + 1) / 3 - 0.2) * -1,
}

PRODUCTS = {
    "product": lambda a, b: a * b,
    "square": lambda a, b: a * a + b,
    "power": lambda a, b: a**2 + b,
    "quotient": lambda a, b: a / (2 + b),
    "number over branch": lambda a, b: 1 / (2 + a) + b,
    "mean": lambda a, b: a + b.mean(1, keepdim=True),
    "matrix product": lambda a, b: a.view(-1, 2, 2) @ b.view(-1, 2, 2),
    "maximum": lambda a, b: torch.maximum(a, b),
    "stack": lambda a, b: torch.stack([a, b], 1),
    "exponential": lambda a, b: torch.exp(a) - b.exp(),
    "softmax": lambda a, b: a.softmax(1) + functional.log_softmax(b, 1),
}

# Left to autograd, where they are.
OTHERS = {
    "rounding": lambda a, b: torch.div(a, 0.5, rounding_mode="floor") + b,
    "power": lambda a, b: (a + 2) ** b,
    "einsum with a diagonal": lambda a, b: torch.einsum("bii->bi", (a.unsqueeze(1) * b.unsqueeze(2))),
    "norm": lambda a, b: a.norm(3, 1, keepdim=True) + b,
}


@pytest.mark.parametrize(("outputs", "smooth"), [(2, True), (1, False)], ids=["smooth", "critic"])
@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_joins(join, outputs, smooth):
    assert_primitives(Joined(join, outputs, smooth), torch.randn(3, 5))


@pytest.mark.parametrize("name", JOINS)
def test_joins_have_rules(name):
    assert opaque_reasons(Joined(JOINS[name])) == []


@pytest.mark.parametrize(("outputs", "smooth"), [(2, True), (1, False)], ids=["smooth", "critic"])
@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_numbers(function, outputs, smooth):
    model = Joined(lambda a, b: function(a) + b, outputs, smooth)
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(3, 5))


@pytest.mark.parametrize(("outputs", "smooth"), [(2, True), (1, False)], ids=["smooth", "critic"])
@pytest.mark.parametrize("join", PRODUCTS.values(), ids=PRODUCTS)
def test_products(join, outputs, smooth):
    model = Joined(join, outputs, smooth)
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(3, 5))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("join", OTHERS.values(), ids=OTHERS)
def test_others(join, outputs):
    model = Joined(join, outputs)
    assert is_opaque(model)
    assert_primitives(model, torch.randn(3, 5))


def test_residual_blocks():
    class Block(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 5), make(), nn.Linear(5, 5))
            self.make = make()

        def forward(self, x):
            return self.make(x + self.inner(x))

    for make in (nn.Softplus, nn.ReLU):
        for outputs in (1, 3):
            model = nn.Sequential(nn.Linear(4, 5), Block(make), Block(make), nn.Linear(5, outputs))
            assert_primitives(model, torch.randn(3, 4))


def test_in_place_sum_of_a_residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            out = self.first(x)
            out += x
            out *= 0.5
            return self.last(torch.tanh(out))

    assert_primitives(Net(), torch.randn(3, 5))


class Aliased(nn.Module):
    """Another name of a changed tensor sees the change."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        alias = h
        if self.change == "iadd":
            h += 1
        elif self.change == "isub":
            h -= 0.5
        elif self.change == "imul":
            h *= 3
        elif self.change == "itruediv":
            h /= 2
        elif self.change == "a branch":
            h += x[:, :4]
        elif self.change == "a view":
            alias = h.view(-1, 2, 2)
            h += 1
            alias = alias.flatten(1)
        return self.last(torch.tanh(h) + alias)


@pytest.mark.parametrize("change", ["iadd", "isub", "imul", "itruediv", "a branch", "a view"])
def test_in_place_operators_and_other_names(change):
    assert_primitives(Aliased(change), torch.randn(3, 5))


def test_samples_concatenated():
    """Rows of different samples, one after the other."""

    class Net(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim
            self.first, self.last = nn.Linear(5, 4), nn.Linear(8, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.last(torch.tanh(torch.cat([h, 2 * h], self.dim)).view(x.size(0), 8))

    for dim in (0, -2):
        assert_parity(Net(dim), gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, torch.randn(3, 5))
        assert_primitives(Net(dim), torch.randn(3, 5))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dropout(p, training):
    """The same seed draws the same mask, one for all sweeps."""
    assert_layer(lambda: nn.Dropout(p).train(training), (5,), size=4)
    assert_layer(lambda: nn.Dropout(p).train(training), (2, 3, 3))


def test_dropout_in_place():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4, inplace=True), nn.Tanh(), nn.Linear(8, 2))
    assert_primitives(model, torch.randn(3, 5))


def test_dropout_of_everything():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(1.0), nn.Linear(8, 2))
    assert_primitives(model, torch.randn(3, 5))


def test_several_dropouts():
    """Their masks differ, and come in the order of the forward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.drop = nn.Linear(5, 8), nn.Linear(8, 2), nn.Dropout(0.5)

        def forward(self, x):
            h = self.drop(torch.tanh(self.first(x)))
            return self.last(functional.dropout(self.drop(h) + h, 0.3, self.training))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(4, 5))


def test_masks_change_from_call_to_call():
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 2))
    x = torch.randn(4, 5)
    assert not torch.equal(gradreg_fast.value_and_vjp(model, x)[1], gradreg_fast.value_and_vjp(model, x)[1])


class DropPath(nn.Module):
    """As timm's, which is found by its name."""

    __module__ = "timm.layers.drop"

    def __init__(self, drop_prob, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if not self.drop_prob or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (mask.div_(1 - self.drop_prob) if self.scale_by_keep else mask)


class StochasticDepth(nn.Module):
    """As torchvision's, which is found by its name."""

    __module__ = "torchvision.ops.stochastic_depth"

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x):
        if not self.p or not self.training:
            return x
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.ndim - 1)
        return x * torch.empty(size, dtype=x.dtype).bernoulli_(1 - self.p).div_(1 - self.p)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DropPath(0.4),
        lambda: DropPath(0.4, scale_by_keep=False),
        lambda: DropPath(0.0),
        lambda: StochasticDepth(0.4, "row"),
        lambda: StochasticDepth(0.4, "batch"),
    ],
)
def test_stochastic_depth(make, training):
    """One mask for all sweeps, drawn as the library draws it."""
    assert not is_opaque(nn.Sequential(nn.Linear(5, 5), make().train(training)))
    assert_layer(lambda: make().train(training), (5,), size=4)
    assert_layer(lambda: make().train(training), (2, 3, 3))


@pytest.mark.parametrize("make", [lambda: nn.AlphaDropout(0.4), lambda: nn.RReLU()])
def test_other_random_layers_are_left_to_autograd(make):
    model = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (3, 2)), make(), nn.Flatten(), nn.Tanh(), nn.Linear(6, 2))
    assert is_opaque(model)
    assert_primitives(model, torch.randn(4, 5))
