"""The benchmark's networks are the same functions for every peer, and its check finds wrong numbers."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.peers import PEERS, Autograd, FlopCounter, Func
from benchmarks.speed import WRONG, balanced, difference

SMALL = [replace(case, rows=4) for case in CASES if case.outputs < 100 and "64, 64" not in str(case.shape)]
UNCOMPILED = [peer for peer in PEERS.values() if not peer.compiled and peer.name != "plain"]


def named(*names):
    cases = [case for case in SMALL if case.name in names]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_builds_and_fits_its_batch(case):
    case = replace(case, rows=2)
    batch = case.batch()
    y = case.model()(batch.x)
    assert y.shape == (2, case.outputs)
    assert torch.isfinite(case.loss(y, torch.tensor(0.0), batch))


@named("coordinate-64x2-tanh", "lenet-softplus-double-backprop", "r3gan-critic-r1-r2", "frobenius-784-512-10-tanh")
def test_peers_agree_with_float64(case):
    case = balanced(case)
    truth = Autograd(case, dtype=torch.float64).numbers()
    for peer in UNCOMPILED:
        if not peer.unavailable(case, "cpu"):
            assert difference(peer(case).numbers(), truth) < 1e-3, peer.name


@named("lenet-relu-double-backprop", "frobenius-784-512-10-tanh")
def test_our_compiled_step_agrees_with_float64(case, monkeypatch):
    """As Dynamo traces it; Inductor, which takes minutes for some, is left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    case = balanced(case)
    truth = Autograd(case, dtype=torch.float64).numbers()
    assert difference(PEERS["gradreg_fast-compiled"](case).numbers(), truth) < 1e-3


@named("resnet-batchnorm-double-backprop", "lenet-relu-double-backprop", "r3gan-critic-r1-r2", "eikonal-256x8-softplus")
def test_jax_builds_the_same_networks(case):
    pytest.importorskip("jax")
    from benchmarks import jax_twin

    model, x = case.model(), case.batch().x
    parameters = {name: jax_twin.parameter_to_jax(value) for name, value in model.named_parameters()}
    y = torch.tensor(jax_twin.apply(case.layers, parameters, jax_twin.batch_to_jax(x)).tolist())
    torch.testing.assert_close(y, model(x).detach(), rtol=1e-4, atol=1e-5)


@named("coordinate-64x2-tanh", "frobenius-784-512-10-tanh")
def test_jax_agrees_with_float64(case):
    pytest.importorskip("jax")
    case = balanced(case)
    truth = Autograd(case, dtype=torch.float64).numbers()
    assert difference(PEERS["jax"](case).numbers(), truth) < 1e-4


@named("lenet-relu-double-backprop")
def test_check_finds_a_missing_penalty_and_nan(case):
    case = balanced(case)
    truth = Autograd(case, dtype=torch.float64).numbers()
    unpenalised = PEERS["plain"](case).numbers()
    assert difference(unpenalised, truth) > WRONG
    loss, gradients = truth
    assert difference((loss, {name: value * float("nan") for name, value in gradients.items()}), truth) == float("inf")


@named("eikonal-256x8-softplus")
def test_units_of_autograd_are_six(case):
    assert Autograd(case).units() == pytest.approx(6, abs=0.01)
    assert Func(case).units() == pytest.approx(6, abs=0.01)


def test_counter_knows_grouped_convolutions():
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1, groups=4)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    with FlopCounter() as forward:
        y = convolution(x)
    with FlopCounter() as backward:
        y.sum().backward()
    assert backward.total == 2 * forward.total
