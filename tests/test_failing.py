"""Failing well: bad input raises what names it and leaves everything as it was; odd input gives autograd's numbers."""

import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gradreg_fast
from gradreg_fast import convert, functional
from tests.parity import assert_parity, compare, evaluate, is_opaque, manual_seed, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64", "pytorch_lines")

CRITICS = ("gradient_penalty", "r1", "r2", "eikonal", "dragan", "r1_r2")


def critic(outputs=1):
    """Parameters, running statistics, power iterations and random numbers: all that an error could leave changed."""
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 6)),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Linear(6, outputs),
    )


class Untraceable(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.inner = critic(outputs)

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


MODELS = {"traced": critic, "untraceable": Untraceable}


def lines(model, x, c=None):
    """The user's own, with a drop-in."""
    x = x if x.requires_grad or not x.is_floating_point() else x.detach().requires_grad_()
    return value_and_vjp(convert(model), x, c)


def call(name, model, x, **keywords):
    needed = {
        "double_backprop": {"target": torch.zeros(len(x) if x.dim() else 1, dtype=torch.long)},
        "gradient_matching": {"target_gradient": torch.zeros_like(x) if x.is_floating_point() else x},
        "r1_r2": {"fake": x},
    }
    return getattr(functional, name)(model, x, **{**needed.get(name, {}), **keywords})


CALLS = {name: lambda model, x, name=name: call(name, model, x) for name in functional.PENALTIES}
CALLS |= {
    "value_and_vjp": gradreg_fast.value_and_vjp,
    "jacobian_sqnorm": gradreg_fast.jacobian_sqnorm,
    "drop-in": lines,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


class Watch:
    """Sees what a call has changed."""

    def __init__(self, model):
        self.model = model
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.before = self.state()

    def state(self):
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        tensors |= {f"gradient of {name}": p.grad.clone() for name, p in self.model.named_parameters()}
        tensors["random numbers"] = torch.get_rng_state()
        tensors["Python's random numbers"] = torch.tensor(random.getstate()[1][:5], dtype=torch.float64)
        tensors["training"] = torch.tensor([module.training for module in self.model.modules()])
        return tensors

    def changed(self):
        now = self.state()
        assert now.keys() == self.before.keys()
        return [name for name, tensor in now.items() if not torch.equal(tensor, self.before[name])]


X = {
    "another width": (lambda: torch.randn(3, 5), "shape|size|fake|target"),
    "no batch": (lambda: torch.randn(()), "batch|fake|target|[Dd]imension|1D"),
    "another precision": (lambda: torch.randn(3, 4, dtype=torch.float32), "dtype|type"),
    "integers": (lambda: torch.ones(3, 4, dtype=torch.long), "floating-point|dtype|target"),
    "complex": (lambda: torch.randn(3, 4, dtype=torch.complex128), "floating-point|dtype|type|target|Complex"),
    "flags": (lambda: torch.ones(3, 4, dtype=torch.bool), "floating-point|dtype|type|target"),
    "another device": (lambda: torch.ones(3, 4, device="meta"), "device|meta"),
}


@every_model
@every_call
@pytest.mark.parametrize("kind", X)
def test_x(make, call, kind):
    tensor, message = X[kind]
    model, x = make(), tensor()
    watch = Watch(model)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call(model, x)
    if call is not lines or (x.is_floating_point() and x.dim()):  # otherwise PyTorch itself has run the model
        assert watch.changed() == []


ARGUMENTS = {
    "cotangent: shape": (gradreg_fast.value_and_vjp, lambda: (torch.randn(3, 2),), "cotangent"),
    "cotangent: rank": (gradreg_fast.value_and_vjp, lambda: (torch.randn(3),), "cotangent"),
    "cotangent: precision": (gradreg_fast.value_and_vjp, lambda: (torch.randn(3, 1).float(),), "cotangent"),
    "cotangent: integers": (gradreg_fast.value_and_vjp, lambda: (torch.ones(3, 1).long(),), "cotangent"),
    "cotangent: device": (gradreg_fast.value_and_vjp, lambda: (torch.ones(3, 1, device="meta"),), "cotangent"),
    "projections": (gradreg_fast.jacobian_sqnorm, lambda: (0,), "projections"),
    "target: rows": (functional.double_backprop, lambda: (torch.zeros(2, 1), "mse"), "target"),
    "target: width": (functional.double_backprop, lambda: (torch.zeros(3, 2), "mse"), "target"),
    "target: a class too many": (functional.double_backprop, lambda: (torch.tensor([0, 0, 1]),), "target"),
    "target: complex": (functional.double_backprop, lambda: (torch.zeros(3, 1).cfloat(), "mse"), "target"),
    "loss: not per sample": (functional.double_backprop, lambda: (torch.zeros(3, 1), nn.functional.mse_loss), "loss"),
    "target_gradient": (functional.gradient_matching, lambda: (torch.zeros(3, 5),), "target_gradient"),
    "target_gradient: outputs": (functional.gradient_matching, lambda: (torch.zeros(3, 2, 4),), "target_gradient"),
    "vector": (functional.jacobian_spectral_norm, lambda: (1, torch.zeros(3, 3)), "vector"),
    "fake": (functional.r1_r2, lambda: (torch.zeros(3, 5),), "fake"),
    "reduction": (functional.r1, lambda: ("average",), "reduction"),
}


@every_model
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(make, name):
    function, arguments, message = ARGUMENTS[name]
    model, x, others = make(), torch.randn(3, 4), arguments()
    watch = Watch(model)
    with pytest.raises((TypeError, ValueError), match=message):
        function(model, x, *others)
    assert watch.changed() == []


CALL_FORMS = {
    "output: absent": ({"output": 1}, "output"),
    "output: a name": ({"output": "logits"}, "output"),
    "output: a list": ({"output": [0]}, "output"),
    "model_args": ({"model_args": torch.ones(3)}, "model_args"),
    "model_kwargs": ({"model_kwargs": 3}, "model_kwargs"),
}


@pytest.mark.parametrize("form", CALL_FORMS)
def test_forms_of_calls(form):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = critic()

        def forward(self, x):
            return (self.inner(x),)

    keywords, message = CALL_FORMS[form]
    model, x = Pair(), torch.randn(3, 4)
    watch = Watch(model)
    with pytest.raises((TypeError, ValueError), match=message):
        functional.r1(model, x, **keywords)
    assert watch.changed() == []


@pytest.mark.parametrize(
    "x",
    [(), (torch.ones(3, 4), [1.0]), (torch.ones(3, 4), torch.ones(2, 4)), (torch.ones(3, 4), torch.ones(3).long())],
    ids=["none", "no tensor", "another batch", "integers"],
)
def test_several_x(x):
    watch = Watch(critic())
    with pytest.raises((TypeError, ValueError), match="x must"):
        gradreg_fast.value_and_vjp(watch.model, x)
    assert watch.changed() == []


@every_model
@pytest.mark.parametrize("name", CRITICS)
def test_several_outputs_where_one_is_needed(make, name):
    model, x = make(2), torch.randn(3, 4)
    watch = Watch(model)
    with pytest.raises(ValueError, match="one output"):
        call(name, model, x)
    assert [name for name in watch.changed() if name != "random numbers" or call != "dragan"] in (
        [],
        ["random numbers"],
    )


@every_model
@every_call
def test_an_empty_batch(make, call):
    """Zero penalty, zero gradients."""
    model, x = make().eval(), torch.randn(0, 4, requires_grad=True)
    y, value = call(model, x)
    (value.sum() + (y[0] if isinstance(y, tuple) else y).sum()).backward()
    assert not value.sum()
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@every_model
@every_call
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_recording(make, call, mode):
    """The values are there; nothing can be differentiated."""
    if call is lines:
        pytest.skip("torch.autograd.grad needs a recorded graph, with or without a drop-in")
    model, x = make().eval(), torch.randn(3, 4)
    manual_seed(1)
    expected = call(model, x)[1]
    manual_seed(1)
    with mode():
        y, value = call(model, x)
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad
    assert not (y[0] if isinstance(y, tuple) else y).requires_grad


@every_model
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_autograd(make, bad):
    model, x = make().eval(), torch.randn(3, 4)
    x[1, 2] = bad
    for ours in (gradreg_fast.value_and_vjp, lambda model, x: value_and_vjp(convert(model), x)):
        mine, theirs = evaluate(ours, model, [x]), evaluate(value_and_vjp, model, [x])
        for group in theirs:
            for name, expected in theirs[group].items():
                torch.testing.assert_close(mine[group][name], expected, equal_nan=True)


class Masked(nn.Module):
    """A root that is safe to write but not to differentiate, and one that is."""

    def __init__(self, safe):
        super().__init__()
        self.first, self.safe = nn.Linear(4, 4), safe

    def forward(self, x):
        squares = (self.first(x) * (x > 0)).square()
        roots = torch.where(squares > 0, squares, 1).sqrt() if self.safe else squares.sqrt()
        return torch.where(squares > 0, roots, 0) + x[:, torch.argsort(x, 1)[0]].masked_fill(x > 1, 0)


@pytest.mark.parametrize("safe", [True, False])
def test_what_a_mask_hides_spreads_as_in_autograd(safe):
    model, x = Masked(safe), torch.randn(3, 4)
    assert not is_opaque(model)
    mine, theirs = evaluate(gradreg_fast.value_and_vjp, model, [x]), evaluate(value_and_vjp, model, [x])
    assert safe == all(bool(tensor.isfinite().all()) for tensor in theirs["gradients"].values())
    for name, expected in (theirs["values"] | theirs["gradients"]).items():
        torch.testing.assert_close((mine["values"] | mine["gradients"])[name], expected, equal_nan=True)


class Constant(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return {
            "parameter": lambda: self.weight * 2,
            "detached": lambda: x.detach()[:, :2] * self.weight,
            "zero": lambda: (x[:, :2] * 0) + self.weight,
        }[self.how]()


@pytest.mark.parametrize("how", ["parameter", "detached", "zero"])
def test_x_that_does_not_reach_y(how):
    model, x = Constant(how), torch.randn(3, 4)

    def oracle(model, x):
        y = model(x)
        return y, torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True, materialize_grads=True)[0]

    assert_parity(model, gradreg_fast.value_and_vjp, oracle, x)
    if how == "parameter":
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(convert(model)(x.requires_grad_()).sum(), x)


def swap(model):
    model[3] = nn.Sigmoid()


def hook(model):
    model[3].register_forward_hook(lambda module, inputs, output: output * 2)


def parametrise(model):
    parametrizations.weight_norm(model[4])


def hook_the_older_norm(model):
    nn.utils.weight_norm(model[4])
    model(torch.randn(3, 4))
    model[4].register_forward_hook(lambda module, inputs, output: output * 3)


def move(model):
    model.float()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [swap, hook, parametrise, hook_the_older_norm, move], ids=lambda f: f.__name__)
def test_a_model_changed_after_conversion(change):
    model, x = critic().eval(), torch.randn(3, 4)
    gradreg_fast.value_and_vjp(model, x)
    lines(model, x)
    change(model)
    x = x.to(model[4].bias.dtype)
    for ours in (gradreg_fast.value_and_vjp, lambda model, x: value_and_vjp(convert(model), x)):
        rtol = 1e-9 if x.dtype == torch.float64 else 1e-5
        compare(evaluate(ours, model, [x]), evaluate(value_and_vjp, model, [x]), rtol, 1e-13 if rtol < 1e-6 else 1e-6)


@every_call
def test_differentiated_twice(call):
    """A clear error; or, where autograd runs the whole model, the second derivative."""
    model, x = critic().eval(), torch.randn(3, 4, requires_grad=True)
    _, value = call(model, x)
    (first,) = torch.autograd.grad(value.sum(), model[4].weight, create_graph=True, allow_unused=True)
    if call is CALLS["confidence_penalty"]:
        assert torch.autograd.grad(first.square().sum(), model[4].weight)[0].isfinite().all()
    elif first is not None:
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            first.square().sum().backward()
