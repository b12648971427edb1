"""The two primitives on every case under pytest-benchmark: `python -m pytest benchmarks/test_primitives.py`.

One round is the primitive and the backward pass of a scalar of its results to all parameters, next to eager autograd's.
"""

from __future__ import annotations

import pytest
import torch

from . import penalties
from .cases import CASES, Case
from .penalties import Jacobian

gradreg_fast = pytest.importorskip("gradreg_fast")

JACOBIANS = [case for case in CASES if isinstance(penalties.PENALTIES[case.penalty], Jacobian)]
GRADIENTS = [case for case in CASES if case not in JACOBIANS]


def _by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def _double_vjp(model, x):
    x = x.detach().requires_grad_()
    y = model(x)
    return y, torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def _squares_by_loop(model, x):
    x = x.detach().requires_grad_()
    y = model(x)
    return y, penalties.square_by_loop(y, x, penalties.one_hot(y))


@_by_name(GRADIENTS)
@pytest.mark.parametrize("engine", ["gradreg_fast", "autograd"])
def test_value_and_vjp(benchmark, case: Case, engine: str):
    """`(y, J^T 1)`, then the gradients of `mean y + mean g^2`."""
    run = gradreg_fast.value_and_vjp if engine == "gradreg_fast" else _double_vjp
    model, x = case.model(), case.batch().x

    def step():
        model.zero_grad()
        y, g = run(model, x)
        (y.mean() + g.square().mean()).backward()

    benchmark.group = case.name
    benchmark(step)


@_by_name(JACOBIANS)
@pytest.mark.parametrize("engine", ["gradreg_fast", "autograd"])
def test_jacobian_sqnorm(benchmark, case: Case, engine: str):
    """`(y, ||J||_F^2)`, then the gradients of `mean y + mean ||J||_F^2`."""
    run = gradreg_fast.jacobian_sqnorm if engine == "gradreg_fast" else _squares_by_loop
    model, x = case.model(), case.batch().x

    def step():
        model.zero_grad()
        y, square = run(model, x)
        (y.mean() + square.sum() / len(x)).backward()

    benchmark.group = case.name
    benchmark(step)
