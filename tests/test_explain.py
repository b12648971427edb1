"""explain(): every node with its rule or the reason why it has none, costs and savings, plain and rich."""

import io
import sys

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import explain
from gradreg_fast.backend import library
from tests.parity import WithoutRule

pytestmark = pytest.mark.usefixtures("pytorch_lines")


def critic():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 1)]
    return nn.Sequential(*layers)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


def test_rows():
    model = nn.Sequential(nn.Linear(4, 6), WithoutRule(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model[3].register_forward_hook(lambda module, inputs, output: output * 2)
    found = explain(model, torch.randn(5, 4), "value_and_vjp")
    assert [row.operation for row in found.rows] == ["Linear", "autograd", "BatchNormTrain", "autograd"]
    assert [row.backend for row in found.rows] == ["PyTorch", "autograd", "PyTorch", "autograd"]
    assert "no rule" in found.rows[1].reason
    assert "hooks" in found.rows[3].reason
    assert found.rows[0].products == 2 * 5 * 4 * 6
    assert found.rows[0].kept == 5 * 4 * 4
    assert found.with_rule == 0.5


@pytest.mark.parametrize(
    ("make", "shape", "penalty", "words", "units"),
    [
        (critic, (2, 3, 8, 8), "r1", "4 instead of 6", 4.0),
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
            (2, 4),
            "value_and_vjp",
            "second-order",
            6.0,
        ),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), (2, 4), "r1", "2 of 2|3 of 3", 6.0),
        (
            lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 9)),
            (32, 64),
            "contractive",
            "closed form",
            None,
        ),
    ],
    ids=["critic", "piecewise linear", "smooth", "one hidden layer"],
)
def test_savings(make, shape, penalty, words, units):
    found = explain(make(), torch.randn(shape), penalty)
    assert any(word in str(found) for word in words.split("|"))
    if units:
        assert found.units == units
        assert found.autograd_units == 6.0
    else:
        assert found.units < 0.5 * found.autograd_units


def test_a_model_left_to_autograd():
    found = explain(Untraceable(), torch.randn(3, 4))
    assert [row.backend for row in found.rows] == ["autograd"]
    assert "cannot be traced" in found.rows[0].reason
    assert "one by one" in str(found)


@pytest.mark.parametrize(
    ("make", "shape", "gains"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), (2, 4), False),
        (lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 30)), (16, 3, 32, 32), True),
        (lambda: nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Flatten()), (2, 64, 5, 5), True),
        (lambda: nn.Sequential(nn.Conv2d(64, 64, 3), nn.Flatten()), (2, 64, 3, 3), False),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Flatten()), (2, 4), True),
    ],
    ids=["small", "large", "grouped", "not grouped", "normalised"],
)
def test_what_convert_leaves_to_autograd(make, shape, gains):
    """Told before, and done from the second call on."""
    model, x = make(), torch.randn(shape, requires_grad=True)
    with gradreg_fast.backend("auto"):
        assert ("closed form" if gains else "left to autograd") in explain(model, x, "value_and_vjp").drop_in
        names = [type(gradreg_fast.convert(model)(x).grad_fn).__name__ for _ in range(2)]
    assert (names[1] == "_ValueBackward") == gains


def test_compiled_networks():
    if library()[0] is None:
        pytest.skip(f"no compiled library: {library()[1]}")
    with gradreg_fast.backend("cpp"):
        network = explain(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(3, 4))
        images = explain(critic(), torch.randn(16, 3, 8, 8))
        normalised = explain(nn.BatchNorm1d(4), torch.randn(3, 4))
    assert {row.backend for row in network.rows} == {"kernel"}
    assert "two compiled operations" in str(network)
    assert images.rows[0].operation == "ConvBlock"
    assert "1 convolution blocks" in str(images)
    assert [row.backend for row in normalised.rows] == ["kernel"]
    assert "1 normalisations, activations and poolings" in str(normalised)


def test_the_model_is_left_as_it_was():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)), torch.randn(5, 4)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    explain(model, x, "value_and_vjp")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_prints_by_rich_and_without(monkeypatch):
    found = explain(nn.Sequential(nn.Linear(4, 5), WithoutRule()), torch.randn(3, 4), "value_and_vjp")
    rich = pytest.importorskip("rich.console")
    written = io.StringIO()
    rich.Console(file=written, width=200).print(found)
    for line in (str(found), written.getvalue()):
        assert "erfcx: no rule" in line
        assert "1 of 2 nodes have a rule" in line
    monkeypatch.setitem(sys.modules, "rich.console", None)
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    from gradreg_fast.profile import show

    show(found)
    assert output.getvalue().strip() == str(found)


def test_names():
    with pytest.raises(ValueError, match="penalty must be one of"):
        explain(critic(), torch.randn(2, 3, 8, 8), "r3")
