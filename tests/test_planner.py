"""Every contraction of the Jacobian's norm gives the same numbers, in one piece or chunks; the cheapest is chosen."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import planner
from gradreg_fast.convert import graph_of
from gradreg_fast.engine import linearize
from tests.parity import assert_parity, assert_primitives, jacobian, jacobian_sqnorm, new_generator, squares

pytestmark = pytest.mark.usefixtures("float64", "pytorch_lines")


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


NETWORKS = {
    "deep": lambda: (
        nn.Sequential(
            nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2), nn.SiLU(), nn.Linear(2, 7), nn.Sigmoid(), nn.Linear(7, 4)
        ),
        (3, 6),
    ),
    "deep, piecewise linear": lambda: (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 4)),
        (3, 6),
    ),
    "one hidden layer": lambda: (nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4)), (3, 6)),
    "one hidden layer, GELU, no bias": lambda: (
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), nn.Linear(5, 4, bias=False)),
        (3, 6),
    ),
    "one hidden layer, ReLU": lambda: (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (3, 6)),
    "tied": lambda: (tied(), (3, 5)),
    "positions": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
        (2, 4, 3),
    ),
    "output with positions": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 4, 3)),
    "flattened": lambda: (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)), (2, 4, 3)),
    "residual": lambda: (
        nn.Sequential(nn.Linear(6, 5), Residual(5), nn.Linear(5, 2), Residual(2), nn.Linear(2, 4)),
        (3, 6),
    ),
    "convolutional": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2), nn.Tanh(), nn.Linear(2, 5)
        ),
        (2, 1, 6, 6),
    ),
    "linear": lambda: (nn.Linear(6, 4), (3, 6)),
    "two linear layers": lambda: (nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 4)), (3, 6)),
    "activations at the ends": lambda: (nn.Sequential(nn.Tanh(), nn.Linear(6, 2), nn.Tanh()), (3, 6)),
}


def tied():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def plans(model, x, stack=None):
    graph = graph_of(model)
    return planner.candidates(linearize(graph, x, graph.tensors(x))[1], stack)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_gives_the_same_numbers(name, monkeypatch):
    model, shape = NETWORKS[name]()
    x = torch.randn(shape)
    candidates = plans(model, x)
    assert len(candidates) == len(set(candidates))
    for plan in candidates:
        monkeypatch.setattr(planner, "plan", lambda *_, plan=plan: plan)
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


@pytest.mark.parametrize("outputs", [1, 3])
def test_every_plan_of_given_cotangents(outputs, monkeypatch):
    model = nn.Sequential(nn.Linear(9, 2), nn.Tanh(), nn.Linear(2, outputs))
    x = torch.randn(4, 9)
    for plan in plans(model, x, stack=1):
        monkeypatch.setattr(planner, "plan", lambda *_, plan=plan: plan)

        def ours(model, x):
            generator = new_generator(1)
            return gradreg_fast.functional.jacobian_frobenius(model, x, 1, generator, "none")

        def reference(model, x):
            v = torch.randn(1, 4, outputs, generator=new_generator(1))[0]
            y = model(x)
            (g,) = torch.autograd.grad(y, x, v / v.norm(dim=1, keepdim=True), create_graph=True)
            return y, outputs * squares(g)

        assert_parity(model, ours, reference, x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [1, 300, 10**4])
def test_chunks_give_the_same_numbers(name, size, monkeypatch):
    """Whatever fits into a chunk: one cotangent, some, all."""
    model, shape = NETWORKS[name]()
    x = torch.randn(shape)
    monkeypatch.setattr(planner, "CPU_STACK_BYTES", size)
    for plan in plans(model, x):
        monkeypatch.setattr(planner, "plan", lambda *_, plan=plan: plan)
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(5), nn.Dropout(0.4), nn.PReLU()], ids=lambda layer: type(layer).__name__
)
def test_chunks_of_other_layers(layer, monkeypatch):
    monkeypatch.setattr(planner, "CPU_STACK_BYTES", 1)
    model = nn.Sequential(nn.Linear(4, 5), layer, nn.SiLU(), nn.Linear(5, 6)).double()
    assert_primitives(model, torch.randn(3, 4))


def test_chunks_of_projections(monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)), torch.randn(3, 4)

    def estimate(model, x):
        return gradreg_fast.jacobian_sqnorm(model, x, 5, new_generator(0))

    def chunked(model, x):
        with monkeypatch.context() as patch:
            patch.setattr(planner, "CPU_STACK_BYTES", 1)
            return estimate(model, x)

    assert_parity(model, chunked, estimate, x)


def test_the_cheapest_plan_is_chosen():
    def chosen(model, x):
        graph = graph_of(model)
        return planner.plan(linearize(graph, x, graph.tensors(x))[1], None)

    assert chosen(nn.Sequential(nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 20)), torch.randn(8, 30)).closed_form
    narrow = nn.Sequential(
        nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2), nn.Tanh(), nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 40)
    )
    x = torch.randn(8, 20)
    plan, graph = chosen(narrow, x), graph_of(narrow)
    assert not plan.closed_form
    assert planner.width(linearize(graph, x, graph.tensors(x))[1], plan.cut) == 2
    wide = nn.Sequential(nn.Linear(500, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    assert chosen(wide, torch.randn(64, 500)).bottom > 0
    for model, points in ((narrow, x), (wide, torch.randn(64, 500))):
        assert chosen(model, points).flops == min(plan.flops for plan in plans(model, points))


def test_batches_of_other_sizes_are_planned_anew():
    model = nn.Sequential(nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 20))
    for size in (1, 64, 2):
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, torch.randn(size, 30))


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(2), lambda: nn.Softmax(0)])
def test_coupled_samples_are_not_contracted(make):
    """A sample's Jacobian says nothing where samples see each other: autograd's sum is the reference."""
    model = nn.Sequential(nn.Linear(6, 2), make(), nn.Tanh(), nn.Linear(2, 9))
    assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, torch.randn(4, 6))


def test_half_precision_takes_no_gram_matrices():
    model = nn.Sequential(nn.Linear(300, 3), nn.Tanh(), nn.Linear(3, 30)).bfloat16()
    for plan in plans(model, torch.randn(16, 300, dtype=torch.bfloat16)):
        assert not plan.closed_form
        assert plan.bottom == 0


def test_large_symmetric_products():
    """Wide hidden layers, where symmetric products may be taken in blocks."""
    model, x = nn.Sequential(nn.Linear(4, 300), nn.Sigmoid(), nn.Linear(300, 301)), torch.randn(2, 4)
    for quantity in (gradreg_fast.jacobian_sqnorm,):
        assert_parity(model, quantity, lambda model, x: (lambda y, rows: (y, squares(rows)))(*jacobian(model, x)), x)
