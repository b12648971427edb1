"""The penalties as modules, the drop-in regulariser's own scaling, and Sine."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.modules import JacobianReg, Sine, WithPenalty
from tests.parity import assert_parity, jacobian, new_generator, recorded_gradient, squares

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def mlp(outputs=1):
    return nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, outputs))


def arguments(name, x):
    """What a penalty needs beside the model and x."""
    return {
        "double_backprop": {"target": torch.zeros(len(x), 1), "loss": "mse"},
        "gradient_matching": {"target_gradient": torch.zeros_like(x)},
        "r1_r2": {"fake": x.flip(0)},
    }.get(name, {})


@pytest.mark.parametrize("name", functional.PENALTIES)
def test_by_name_and_by_function(name):
    model, x = mlp(), torch.randn(4, 5)
    needed = arguments(name, x)
    results = []
    for penalty in (name, getattr(functional, name)):
        torch.manual_seed(1)
        module = WithPenalty(model, penalty, reduction="sum")
        y, value = module(x, **needed)
        results.append(value)
    torch.manual_seed(1)
    expected_y, expected = getattr(functional, name)(model, x, **needed, reduction="sum")
    assert results == [expected, expected]
    torch.testing.assert_close(y, expected_y)


def test_settings_and_arguments_meet():
    model, x, target = mlp(3), torch.randn(4, 5), torch.randint(3, (4,))
    module = WithPenalty(model, "double_backprop", reduction="sum")
    assert module(x, target)[1] == functional.double_backprop(model, x, target, reduction="sum")[1]
    assert module(x, target, reduction="mean")[1] == functional.double_backprop(model, x, target)[1]


def test_parameters_and_modes_are_the_models():
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    module = WithPenalty(model, "r1")
    assert [*module.parameters()] == [*model.parameters()]
    assert set(module.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    module.eval()
    assert not model[1].training
    y, value = module(torch.randn(4, 5))
    (y.sum() + value).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert y.shape == (4, 1)


def test_a_function_of_ones_own():
    def penalty(model, x, factor):
        y, g = gradreg_fast.value_and_vjp(model, x)
        return y, factor * g.abs().sum()

    model, x = mlp(), torch.randn(4, 5)
    assert WithPenalty(model, penalty, factor=2.0)(x)[1] == penalty(model, x, 2.0)[1]


@pytest.mark.parametrize("name", ["r3", "", "reduced"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="penalty must be one of"):
        WithPenalty(mlp(), name)


def test_no_function():
    with pytest.raises(TypeError, match="penalty"):
        WithPenalty(mlp(), 3)


def test_copies_and_pickles():
    module, x = WithPenalty(mlp(), "gradient_penalty", centre=0.5), torch.randn(4, 5)
    expected = module(x)[1]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin(x)[1] == expected
        assert twin.model is not module.model


def published_regulariser(n, directions=None):
    """Hoffman et al.'s loop: ``1/2 sum_k C ||J^T v_k||^2 / (n B)``, with all n = C units for n = -1."""

    def quantity(model, x):
        y = model(x)
        B, C = y.shape
        vectors = torch.eye(C).unsqueeze(1).expand(C, B, C) if n == -1 else directions
        total = 0
        for v in vectors:
            product = recorded_gradient(y, x, v)
            total = total + C * torch.linalg.vector_norm(product) ** 2 / (len(vectors) * B)
        return y, total / 2

    return quantity


@pytest.mark.parametrize("outputs", [1, 4])
def test_jacobian_reg_is_the_published_one(outputs):
    model, x = mlp(outputs), torch.randn(3, 5)
    exact = JacobianReg(n=-1)
    assert_parity(model, exact, published_regulariser(-1), x)
    assert_parity(
        model, exact, lambda model, x: (lambda y, rows: (y, squares(rows).mean() / 2))(*jacobian(model, x)), x
    )
    for n in (1, 3):
        v = torch.randn(n, 3, outputs, generator=new_generator(4))
        v = v / v.norm(dim=2, keepdim=True)

        def estimate(model, x, n=n):
            return JacobianReg(n)(model, x, new_generator(4))

        assert_parity(model, estimate, published_regulariser(n, v), x)


def test_jacobian_reg_projects_once_by_default():
    assert JacobianReg().n == 1
    assert inspect.signature(JacobianReg).parameters["n"].default == 1


@pytest.mark.parametrize("n", [0, -2, 1.5, True, "1", None])
def test_jacobian_reg_rejects(n):
    with pytest.raises(ValueError, match="n must be"):
        JacobianReg(n)


def test_sine():
    x = torch.randn(4, 5)
    torch.testing.assert_close(Sine(3.0)(x), torch.sin(3 * x))
    assert Sine().frequency == 30.0
