"""verify(): agrees where the package does, and raises where anything at all is different."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import ParityError, functional, verify
from gradreg_fast.modules import Sine
from gradreg_fast.rules import activation
from gradreg_fast.verify import PRIMITIVES
from tests.parity import new_generator

pytestmark = pytest.mark.usefixtures("each_backend")

CRITICS = ("gradient_penalty", "r1", "r2", "eikonal", "dragan", "r1_r2")
SETTINGS = {
    "double_backprop": lambda x: {"target": torch.arange(len(x)) % 3},
    "gradient_matching": lambda x: {"target_gradient": torch.randn(len(x), 3, *x.shape[1:]).to(x)},
    "r1_r2": lambda x: {"fake": torch.randn_like(x)},
    "spectral_projection": lambda x: {"generator": new_generator(1)},
    "jacobian_spectral_norm": lambda x: {"iterations": 2, "vector": torch.randn(len(x), 3).to(x)},
    "jacobian_sqnorm": lambda x: {"projections": 2},
    "value_and_vjp": lambda x: {"cotangent": torch.randn(len(x), 3).to(x)},
}


def network(outputs=3, dropout=0.0):
    middle = [nn.BatchNorm1d(7), nn.Dropout(dropout), nn.Tanh(), nn.Linear(7, 5), Sine(2.0)]
    return nn.Sequential(nn.Linear(4, 7), *middle, nn.Linear(5, outputs))


def state(model):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [tensor.clone() for tensor in model.state_dict().values()], gradients, torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*functional.PENALTIES, *PRIMITIVES])
def test_every_penalty(name, dtype):
    model = network(1 if name in CRITICS else 3, dropout=0.3 if dtype == torch.float64 else 0.0).to(dtype)
    x = torch.randn(4, 4, dtype=dtype)
    verification = verify(model, x, name, **SETTINGS.get(name, lambda x: {})(x))
    assert verification.passed
    draws = name in ("dragan", "jacobian_sqnorm")  # other numbers in another precision
    assert verification.against == f"autograd in {dtype if draws and dtype == torch.float32 else 'float64'}"
    names = [row.name for row in verification.rows]
    assert {"value 0", "value 1", "gradient of x", "gradient of 0.weight", "buffer 1.running_mean"} <= {*names}


def test_leaves_everything_as_it_was():
    model, x = network(1, dropout=0.5).double(), torch.randn(4, 4, dtype=torch.float64)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = state(model)
    verify(model, x, "r1")
    for one, other in zip(before, state(model), strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


BREAKS = {
    "pull": lambda self, saved, parameters, u: (1.001 * u * self.slope(saved, u[0]),),
    "curvature": lambda self, saved, parameters, u, xdots, gradients: (None,),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", BREAKS)
def test_raises_where_a_rule_is_wrong(monkeypatch, pytorch_lines, method, dtype):  # kernels would replace the rule
    model, x = network(1).to(dtype), torch.randn(4, 4, dtype=dtype)
    monkeypatch.setattr(activation.Tanh, method, BREAKS[method])
    with pytest.raises(ParityError, match="DIFFERS") as error:
        verify(model, x, "r1")
    assert not error.value.verification.passed


def test_raises_where_a_buffer_is_wrong(monkeypatch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.inner(x).tanh()

    model, x = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    assert verify(model, x).passed
    r1 = functional.r1
    monkeypatch.setattr(functional, "r1", lambda model, x, **settings: (model(x), r1(model, x, **settings))[1])
    with pytest.raises(ParityError, match=r"buffer calls.*DIFFERS"):
        verify(model, x)


def test_half_precision_and_forms_of_calls():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1).eval()

        def forward(self, x, factor, *, shift):
            return {"y": self.inner(x) * factor + shift}

    x, factor = torch.randn(4, 4), torch.randn(4, 1)
    for dtype in (torch.float32, torch.bfloat16):
        model = Pair().to(dtype)
        assert verify(
            model, x.to(dtype), "r1", output="y", model_args=(factor.to(dtype),), model_kwargs={"shift": 2.0}
        ).passed
        assert verify(gradreg_fast.convert(model.inner), x.to(dtype), "eikonal").passed


@pytest.mark.parametrize("way", [{"save": "recompute"}, {"chunk_size": 3}, {"cotangent_chunk_size": 2}])
def test_ways_of_saving_memory(way):
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5)).double()
    verification = verify(model, torch.randn(4, 4).double(), "jacobian_frobenius", **way)
    assert verification.passed
    assert verification.against == "autograd in float64"


def test_names():
    with pytest.raises(ValueError, match="penalty must be one of"):
        verify(network(), torch.randn(2, 4), "r3")
