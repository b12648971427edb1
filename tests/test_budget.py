"""Penalties on some steps and on some samples: the plain ones on average; and the meter that watches them."""

import copy
import io
import pickle
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradreg_fast
from gradreg_fast import budget, functional
from gradreg_fast.modules import WithPenalty
from tests.parity import assert_parity, recorded_gradient, squares

pytestmark = pytest.mark.usefixtures("float64")


def mlp(outputs=1):
    return nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, outputs))


def gradients(module, x, calls=1, **keywords):
    """Gradients of a task loss and the penalty, added up over some calls."""
    module.zero_grad()
    for _ in range(calls):
        y, penalty = module(x, **keywords)
        (y.square().mean() + penalty).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


def values(module, x, calls, **keywords):
    return [float(module(x, **keywords)[1].detach().sum()) for _ in range(calls)]


def assert_same(mine, others):
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_sum_over_a_period_is_the_plain_one():
    model, x = mlp(), torch.randn(6, 5)
    lazy, plain = WithPenalty(model, "r1", every=4), WithPenalty(model, "r1")
    for calls in (4, 8):
        assert_same(gradients(lazy, x, calls), gradients(plain, x, calls))
    (value,) = values(plain, x, 1)
    assert values(lazy, x, 5) == [4 * value, 0, 0, 0, 4 * value]


def test_evaluation_is_plain_and_not_counted():
    model, x = mlp(), torch.randn(6, 5)
    lazy = WithPenalty(model, "r1", every=3, fraction=0.5)
    value = float(functional.r1(model, x)[1].detach())
    assert values(lazy.eval(), x, 4) == [value] * 4
    assert [bool(v) for v in values(lazy.train(), x, 4)] == [True, False, False, True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_no_step_that_is_counted(reentrant):
    """They raise around a schedule, and around a part of the batch they draw it again."""
    x, model = torch.randn(6, 5, requires_grad=True), mlp()

    def run(module, call):
        torch.manual_seed(3)
        return gradients(call(module), x)

    def checkpointed(module):
        return Forwarding(module, lambda x: checkpoint(module, x, use_reentrant=reentrant))

    with pytest.raises(RuntimeError, match=r"must not be inside .* save=.recompute."):
        run(WithPenalty(model, "r1", every=2), checkpointed)
    part = WithPenalty(model, "r1", fraction=0.5)
    assert_same(run(part, checkpointed), run(part, lambda module: module))


class Forwarding(nn.Module):
    """A module under another forward."""

    def __init__(self, module, forward):
        super().__init__()
        self.module, self.forward = module, forward


@pytest.mark.parametrize("way", ["state", "file", "copy", "pickle"])
def test_a_schedule_goes_on_where_it_was(way):
    model, x = mlp(), torch.randn(6, 5)
    lazy = WithPenalty(model, "r1", every=3)
    values(lazy, x, 2)
    if way in ("copy", "pickle"):
        twin = copy.deepcopy(lazy) if way == "copy" else pickle.loads(pickle.dumps(lazy))
    else:
        state = lazy.state_dict()
        if way == "file":
            torch.save(state, file := io.BytesIO())
            file.seek(0)
            state = torch.load(file)  # tensors only
        twin = WithPenalty(mlp(), "r1", every=3)
        twin.load_state_dict(state)
    assert [bool(v) for v in values(twin, x, 4)] == [False, True, False, False]
    assert_same(twin.parameters(), lazy.parameters())


@pytest.mark.parametrize(
    "penalty, outputs, needed",
    [("r1", 1, False), ("double_backprop", 3, True), ("r1_r2", 1, True), ("gradient_matching", 1, True)],
)
def test_output_is_the_models_on_every_call(penalty, outputs, needed):
    model, x = mlp(outputs), torch.randn(6, 5)
    argument = torch.arange(6) % 3 if penalty == "double_backprop" else torch.randn(6, 5)
    module = WithPenalty(model, penalty, every=2, **({} if penalty == "r1_r2" else {"fraction": 0.4}))
    expected = (model(x), model(argument)) if penalty == "r1_r2" else model(x)
    for _ in range(2):
        y, _ = module(x, argument) if needed else module(x)
        torch.testing.assert_close(y, expected)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.label = nn.Linear(5, 4), nn.Linear(3, 4), nn.Embedding(4, 4)

    def forward(self, a, b, label):
        return {"score": torch.tanh(self.first(a) + self.second(b) + self.label(label)).sum(1)}


def test_several_inputs_arguments_and_results():
    model, a, b, label = TwoInputs(), torch.randn(6, 5), torch.randn(6, 3), torch.arange(6) % 4
    call = {"model_kwargs": {"label": label}, "output": "score"}
    module = WithPenalty(model, "r1", every=2, fraction=0.5, **call)
    for x in ((a, b), {"b": b, "a": a}):
        for _ in range(2):
            torch.testing.assert_close(module(x)[0], model(a, b, label)["score"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_over_all_draws_is_the_plain_one(reduction, monkeypatch):
    """Every pair of five samples: gradients of the mean of all estimates are those of the whole batch."""
    model, x, target = mlp(), torch.randn(5, 5), torch.randn(5, 5)
    draws = [torch.tensor([*pair, *({*range(5)} - {*pair})]) for pair in combinations(range(5), 2)]

    def ours(model, x):
        module, total = WithPenalty(model, "gradient_matching", fraction=0.3, reduction=reduction), 0
        for order in draws:
            monkeypatch.setattr(budget.torch, "randperm", lambda *_, order=order, **__: order)
            y, penalty = module(x, target)
            total = total + penalty / len(draws)
        return y, total

    def plain(model, x):
        y = model(x)
        distances = squares(recorded_gradient(y, x, torch.ones_like(y)) - target)
        return y, distances.mean() if reduction == "mean" else distances.sum()

    assert_parity(model, ours, plain, x)


def test_samples_are_drawn_alike():
    x, counts = torch.zeros(10, 1), torch.zeros(10)
    for _ in range(2000):
        chosen, others = budget.draw(0.25, x)
        assert len(chosen) == 3 and sorted(torch.cat([chosen, others]).tolist()) == [*range(10)]
        counts[chosen] += 1
    assert (counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_reduction(reduction):
    lazy, x = WithPenalty(mlp(), "r1", every=2, reduction=reduction), torch.randn(6, 5)
    first, second = lazy(x)[1], lazy(x)[1]
    assert first.shape == second.shape == (() if reduction == "mean" else (6,))
    assert first.dtype == second.dtype and not second.any()


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size):
    module = WithPenalty(mlp(), "r1", fraction=0.1)
    y, penalty = module(torch.randn(size, 5))
    assert y.shape == (size, 1) and penalty.isfinite()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 2.0}, {"fraction": 0}, {"fraction": 1.5}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WithPenalty(mlp(), "r1", **wrong)


def test_what_a_part_cannot_estimate():
    x = torch.randn(6, 5)
    with pytest.raises(ValueError, match="r1_r2"):
        WithPenalty(mlp(), "r1_r2", fraction=0.5)(x, x)
    with pytest.raises(ValueError, match="reduction"):
        WithPenalty(mlp(), "r1", fraction=0.5, reduction="none")(x)
    statistics = WithPenalty(nn.Sequential(mlp(), nn.BatchNorm1d(1)), "r1", fraction=0.5)
    with pytest.raises(ValueError, match="batch statistics, which '1'"):
        statistics(x)
    statistics.model.eval()
    statistics(x)


def test_compiled_once_with_and_once_without():
    """Not once a step, though every call is another place in the schedule."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module, x = WithPenalty(mlp(), "r1", every=5, fraction=0.5), torch.randn(6, 5)
    compiled = torch.compile(lambda: module(x)[1], fullgraph=True, backend="aot_eager")
    assert [bool(compiled()) for _ in range(11)] == [True, *[False] * 4] * 2 + [True]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_meter():
    meter = gradreg_fast.PenaltyMeter()
    assert meter.compute() == {}
    steps = [torch.randn(4, dtype=torch.float32), torch.randn(4), torch.randn(0), torch.randn(4).requires_grad_()]
    for norms in steps:
        meter.update(norm=norms, penalty=norms.square().sum().bfloat16())
    found = meter.compute()
    together = torch.cat([norms.detach().double() for norms in steps])
    wanted = {"mean": together.mean(), "last": steps[-1].detach().mean(), "max": together.max()}
    assert found["norm"] == pytest.approx({name: float(value) for name, value in wanted.items()}, rel=1e-6)
    assert found["penalty"]["max"] == max(float(norms.detach().square().sum().bfloat16()) for norms in steps)
    meter.reset()
    assert meter.compute() == {}
    with pytest.raises(TypeError, match="norm must be"):
        meter.update(norm=1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the CPU waits for nobody")
def test_nothing_waits_for_a_gpu():
    module, meter = WithPenalty(mlp().cuda(), "r1", every=2, fraction=0.5), gradreg_fast.PenaltyMeter()
    x = torch.randn(6, 5, device="cuda")
    module(x)  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            meter.update(penalty=module(x)[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meter.compute()["penalty"]["max"] > 0
