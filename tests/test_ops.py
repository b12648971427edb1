"""The primitives as ordinary operations: gradchecked, asked twice, accumulated, changed in place, given bad input."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.modules import Sine
from tests.parity import assert_parity, assert_primitives, jacobian_sqnorm, manual_seed, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def mlp(outputs=2, make=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 5), make(), nn.Linear(5, 3), make(), nn.Linear(3, outputs))


def convolutional(outputs=2, make=nn.Softplus):
    layers = [nn.Conv2d(1, 2, 3, padding=1), make(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), make(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2, outputs))


SMOOTH = {
    "dense": (mlp, (3, 4)),
    "one output": (lambda: mlp(1, Sine), (3, 4)),
    "piecewise linear critic": (lambda: mlp(1, nn.LeakyReLU), (3, 4)),
    "convolutional": (convolutional, (2, 1, 4, 4)),
    "batch statistics": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Linear(3, 2)), (3, 4)),
    "without a rule": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Mish(), nn.Linear(3, 2)), (3, 4)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_value_and_vjp(name):
    """Against finite differences, with respect to x, the cotangent and every parameter."""
    make, shape = SMOOTH[name]
    model, x = make(), torch.randn(shape, requires_grad=True)
    c = torch.randn(model(x).shape, requires_grad=True)

    def quantity(x, c, *parameters):
        return gradreg_fast.value_and_vjp(model, x, c)

    assert torch.autograd.gradcheck(quantity, (x, c, *model.parameters()))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_jacobian_sqnorm(name):
    make, shape = SMOOTH[name]
    model, x = make(), torch.randn(shape, requires_grad=True)

    def quantity(x, *parameters):
        return gradreg_fast.jacobian_sqnorm(model, x)

    assert torch.autograd.gradcheck(quantity, (x, *model.parameters()))


NETWORKS = {
    "smooth": lambda: mlp(2),
    "critic": lambda: mlp(1, nn.LeakyReLU),
    "without a rule": lambda: nn.Sequential(nn.Linear(4, 3), nn.Mish(), nn.Linear(3, 2)),
}
QUANTITIES = {
    "vjp": gradreg_fast.value_and_vjp,
    "norm": gradreg_fast.jacobian_sqnorm,
    "estimate": lambda model, x: gradreg_fast.jacobian_sqnorm(model, x, 2),
}
everything = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
either = pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)


def loss_of(quantity, model, x):
    y, g = quantity(model, x)
    return y.sin().sum() + g.square().sum()


@everything
@either
def test_differentiating_twice_names_the_alternative(make, quantity):
    model, x = make(), torch.randn(3, 4, requires_grad=True)
    loss = loss_of(quantity, model, x)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        gradient.square().sum().backward()
    (gradient,) = torch.autograd.grad(loss_of(quantity, model, x), model[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"torch\.autograd\.grad\(model\(x\), x"):
        torch.autograd.grad(gradient.sum(), model[0].weight)


@everything
@either
def test_create_graph_with_a_single_derivative(make, quantity):
    model, x = make(), torch.randn(3, 4, requires_grad=True)
    sources = [x, *model.parameters()]
    manual_seed(1)
    plain = torch.autograd.grad(loss_of(quantity, model, x), sources)
    manual_seed(1)
    recorded = torch.autograd.grad(loss_of(quantity, model, x), sources, create_graph=True)
    for one, other in zip(plain, recorded, strict=True):
        assert torch.equal(one, other)
    manual_seed(1)
    loss_of(quantity, model, x).backward(create_graph=True)
    for one, source in zip(plain, sources, strict=True):
        assert torch.equal(one, source.grad)
        source.grad = None


@everything
@either
def test_backward_twice(make, quantity):
    model, x = make(), torch.randn(3, 4, requires_grad=True)
    sources = [x, *model.parameters()]
    loss = loss_of(quantity, model, x)
    first = torch.autograd.grad(loss, sources, retain_graph=True)
    second = torch.autograd.grad(loss, sources)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, sources)


@everything
@either
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_a_parameter_changed_in_place(make, quantity, which):
    model, x = make(), torch.randn(3, 4)
    loss = loss_of(quantity, model, x)
    with torch.no_grad():
        model[which].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("make", [convolutional, lambda: convolutional(1, nn.ReLU)])
def test_a_convolutions_weight_or_the_input_changed_in_place(make):
    for which in (0, 3, None):
        model, x = make(), torch.randn(2, 1, 4, 4)
        loss = loss_of(gradreg_fast.value_and_vjp, model, x)
        with torch.no_grad():
            (x if which is None else model[which].weight).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@everything
@either
def test_an_optimiser_step_between_forwards(make, quantity):
    """Parameters are read at every call."""
    model, x = make(), torch.randn(3, 4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(quantity, model, x).backward()
        optimiser.step()
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x)
    assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


@everything
@either
def test_gradients_accumulate(make, quantity):
    model, x = make(), torch.randn(3, 4)
    manual_seed(1)
    loss_of(quantity, model, x).backward()
    once = [parameter.grad.clone() for parameter in model.parameters()]
    manual_seed(1)
    loss_of(quantity, model, x).backward()
    for gradient, parameter in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@everything
def test_results_are_not_shared_with_the_saved_tensors(make):
    """Whoever changes y or g in place gets an error or autograd's numbers, never others."""
    for which in (0, 1):
        model, x = make(), torch.randn(3, 4, requires_grad=True)
        expected = torch.autograd.grad(
            sum((2 * r if i == which else r).square().sum() for i, r in enumerate(value_and_vjp(model, x))), x
        )
        results = list(gradreg_fast.value_and_vjp(model, x))
        try:
            results[which].mul_(2)
            found = torch.autograd.grad(sum(result.square().sum() for result in results), x)
        except RuntimeError as error:
            assert "inplace" in str(error) or "in-place" in str(error) or "view" in str(error)
        else:
            torch.testing.assert_close(found, expected)


@everything
def test_x_that_is_no_leaf(make):
    """Gradients reach a generator below."""
    generator, model, z = nn.Linear(2, 4), make(), torch.randn(3, 2)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.model = generator, model

    def through(quantity):
        return lambda both, z: quantity(both.model, torch.tanh(both.generator(z)))

    assert_parity(Both(), through(gradreg_fast.value_and_vjp), through(value_and_vjp), z)
    assert_parity(Both(), through(gradreg_fast.jacobian_sqnorm), through(jacobian_sqnorm), z)


@everything
@pytest.mark.parametrize("frozen", [[0], [-1], [0, -1]], ids=str)
def test_frozen_parameters(make, frozen):
    model = make()
    for i in frozen:
        model[i].requires_grad_(False)
    assert_primitives(model, torch.randn(3, 4))
    for i in frozen:
        assert model[i].weight.grad is None


def test_tied_weights():
    for make in (nn.Tanh, nn.ReLU):
        model = nn.Sequential(nn.Linear(4, 4), make(), nn.Linear(4, 4), make(), nn.Linear(4, 4))
        model[4].weight = model[0].weight
        model[2].bias = model[0].bias
        assert_primitives(model, torch.randn(3, 4))
        model = nn.Sequential(nn.Linear(4, 4), make(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        assert_primitives(model, torch.randn(3, 4))


def test_a_module_used_twice():
    layer = nn.Linear(4, 4)
    for make in (nn.Tanh, nn.ReLU):
        assert_primitives(nn.Sequential(layer, make(), layer, make(), layer), torch.randn(3, 4))
    conv = nn.Conv2d(2, 2, 3, padding=1)
    assert_primitives(
        nn.Sequential(conv, nn.Softplus(), conv, nn.MaxPool2d(2), conv, nn.Flatten()), torch.randn(2, 2, 4, 4)
    )


def test_one_weight_of_two_kinds_of_layers():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 3)

        def forward(self, x):
            return nn.functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t())

    assert_primitives(Autoencoder(), torch.randn(3, 4))


def test_a_cotangent_shared_by_all_samples():
    for make in NETWORKS.values():
        model, x = make(), torch.randn(3, 4)
        K = model(x).shape[1]
        for c in (torch.randn(1, K).expand(3, K), torch.randn(3, 1).expand(3, K), torch.zeros(3, K)):
            assert_parity(
                model,
                lambda m, x, c=c: gradreg_fast.value_and_vjp(m, x, c),
                lambda m, x, c=c: value_and_vjp(m, x, c),
                x,
            )


def test_models_without_parameters():
    assert_primitives(nn.Tanh(), torch.randn(3, 4))
    assert_primitives(nn.Sequential(nn.Softplus(), nn.Flatten()), torch.randn(3, 2, 2))
    y, g = gradreg_fast.value_and_vjp(nn.ReLU(), torch.randn(3, 4))
    assert not y.requires_grad
    assert not g.requires_grad


# Bad input.


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x):
        y = self.inner(x)
        return y, y


CALLS = {
    "vjp": gradreg_fast.value_and_vjp,
    "norm": gradreg_fast.jacobian_sqnorm,
    "gradient_penalty": functional.gradient_penalty,
    "frobenius": functional.jacobian_frobenius,
    "double_backprop": lambda model, x: functional.double_backprop(model, x, torch.zeros(3, dtype=torch.long)),
    "spectral norm": functional.jacobian_spectral_norm,
    "dragan": functional.dragan,
    "matching": lambda model, x: functional.gradient_matching(model, x, torch.zeros(3, 4)),
    "r1_r2": lambda model, x: functional.r1_r2(model, x, torch.zeros(3, 4)),
}


@pytest.fixture
def watched():
    """A model in training, with gradients and statistics; whatever a test does must leave it untouched."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    yield model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestX:
    @pytest.mark.parametrize("x", [[1.0], None, 3.0], ids=str)
    def test_no_tensor(self, call, x, watched):
        with pytest.raises(TypeError, match=r"\b(x|real) must be a torch\.Tensor"):
            call(watched, x)

    @pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex128])
    def test_dtype(self, call, dtype, watched):
        with pytest.raises(TypeError, match=r"\b(x|real) must have a real floating-point dtype"):
            call(watched, torch.ones(3, 4, dtype=dtype))

    def test_scalar(self, call, watched):
        with pytest.raises(ValueError, match=r"\b(x|real|fake|target)\b"):
            call(watched, torch.tensor(1.0))

    def test_device(self, call, watched):
        with pytest.raises(ValueError, match=r"\b(x|fake|target|target_gradient) must be on .*device"):
            call(watched, torch.ones(3, 4, device="meta"))

    def test_other_precision_than_the_model(self, call, watched):
        with pytest.raises((TypeError, ValueError, RuntimeError), match="dtype"):
            call(watched, torch.ones(3, 4, dtype=torch.float32))

    def test_shape(self, call, watched):
        with pytest.raises((ValueError, RuntimeError), match=r"shape|fake|target"):
            call(watched, torch.ones(3, 5))

    @pytest.mark.parametrize(
        "model", [torch.tanh, lambda x: x, None, "model"], ids=["function", "lambda", "none", "name"]
    )
    def test_model(self, call, model):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            call(model, torch.ones(3, 4))

    def test_model_that_returns_a_tuple(self, call):
        with pytest.raises(TypeError, match=r"must return one tensor"):
            call(Pair(), torch.ones(3, 4))


@pytest.mark.parametrize(
    ("c", "error"),
    [
        (torch.ones(3, 3), ValueError),
        (torch.ones(3), ValueError),
        (torch.ones(1, 2), ValueError),
        (torch.tensor(1.0), ValueError),
        (torch.ones(3, 2, dtype=torch.long), TypeError),
        (torch.ones(3, 2, dtype=torch.complex64), TypeError),
        (torch.ones(3, 2, dtype=torch.float32), (TypeError, ValueError)),
        (torch.ones(3, 2, dtype=torch.float64, device="meta"), ValueError),
        ([1.0], TypeError),
    ],
    ids=str,
)
def test_cotangent(c, error, watched):
    with pytest.raises(error, match="cotangent"):
        gradreg_fast.value_and_vjp(watched, torch.ones(3, 4), c)


@pytest.mark.parametrize("model", [lambda: mlp(1), lambda: mlp(1, nn.ReLU)], ids=["smooth", "piecewise linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cotangent_of_another_precision(model, dtype):
    with pytest.raises((TypeError, ValueError), match="cotangent"):
        gradreg_fast.value_and_vjp(model(), torch.randn(3, 4), torch.ones(3, 1, dtype=dtype))


@pytest.mark.parametrize("projections", [0, -1, 1.5, True, "2"])
def test_projections(projections, watched):
    for call in (gradreg_fast.jacobian_sqnorm, functional.jacobian_frobenius, functional.jacobian_softmax):
        with pytest.raises(ValueError, match="projections must be a positive integer"):
            call(watched, torch.ones(3, 4), projections)


@pytest.mark.parametrize("name", functional.PENALTIES)
def test_reduction(name, watched):
    x = torch.ones(3, 4)
    needed = {
        "double_backprop": {"target": torch.zeros(3, 2), "loss": "mse"},
        "gradient_matching": {"target_gradient": torch.zeros(3, 2, 4)},
        "r1_r2": {"fake": x},
    }.get(name, {})
    for reduction in ("average", None, 1):
        with pytest.raises(ValueError, match="reduction must be"):
            getattr(functional, name)(watched, x, **needed, reduction=reduction)


ONE_OUTPUT = ["gradient_penalty", "r1", "r2", "eikonal", "dragan"]


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_several_outputs_where_one_is_needed(name, watched):
    with pytest.raises(ValueError, match="model must return one output"):
        getattr(functional, name)(watched, torch.randn(3, 4))
    with pytest.raises(ValueError, match="model must return one output"):
        functional.r1_r2(watched, torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("centre", [float("nan"), float("inf"), "1", None, torch.ones(2)])
def test_centre(centre, watched):
    with pytest.raises((TypeError, ValueError), match="centre"):
        functional.gradient_penalty(watched, torch.ones(3, 4), centre)


@pytest.mark.parametrize(
    ("loss", "error"),
    [("nll", ValueError), (None, TypeError), (3, TypeError), (nn.functional.mse_loss, ValueError)],
    ids=["unknown name", "None", "number", "not per sample"],
)
def test_loss(loss, error, watched):
    """Also a function that reduces over the batch."""
    with pytest.raises(error, match="loss"):
        functional.double_backprop(watched, torch.ones(3, 4), torch.zeros(3, 2), loss)


TARGETS = {
    "no tensor": ("mse", [1.0], TypeError),
    "too few": ("mse", torch.zeros(2, 2), ValueError),
    "scalar": ("mse", torch.tensor(1.0), ValueError),
    "trained": ("mse", torch.zeros(3, 2, dtype=torch.float64, requires_grad=True), ValueError),
    "elsewhere": ("mse", torch.zeros(3, 2, device="meta"), ValueError),
    "too wide": ("mse", torch.zeros(3, 3), ValueError),
    "too narrow": ("mse", torch.zeros(3), ValueError),
    "bce, too wide": ("bce_with_logits", torch.zeros(3, 3), ValueError),
    "classes, too wide": ("cross_entropy", torch.zeros(3, 2, dtype=torch.long), (TypeError, ValueError)),
    "classes, not whole": ("cross_entropy", torch.zeros(3), (TypeError, ValueError)),
    "probabilities of other classes": ("cross_entropy", torch.zeros(3, 5), (TypeError, ValueError)),
    "a class too many": ("cross_entropy", torch.tensor([0, 1, 2]), ValueError),
    "complex": ("mse", torch.zeros(3, 2, dtype=torch.complex128), (TypeError, ValueError)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name, watched):
    loss, target, error = TARGETS[name]
    with pytest.raises(error, match="target"):
        functional.double_backprop(watched, torch.ones(3, 4), target, loss)


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(3, 5),
        torch.zeros(2, 4),
        torch.zeros(3, 3, 4),
        torch.zeros(3, 4),
        torch.zeros(3),
        torch.zeros(3, 2, 5),
    ],
    ids=lambda target: str(tuple(target.shape)),
)
def test_target_gradient(target, watched):
    with pytest.raises(ValueError, match="target_gradient"):
        functional.gradient_matching(watched, torch.randn(3, 4), target.double())


def test_target_gradient_kinds(watched):
    with pytest.raises(TypeError, match="target_gradient"):
        functional.gradient_matching(watched, torch.randn(3, 4), [0.0])
    with pytest.raises(TypeError, match="target_gradient"):
        functional.gradient_matching(watched, torch.randn(3, 4), torch.zeros(3, 2, 4, dtype=torch.long))


@pytest.mark.parametrize("iterations", [-1, 1.5, None, "1"])
def test_iterations(iterations, watched):
    with pytest.raises((TypeError, ValueError), match="iterations"):
        functional.jacobian_spectral_norm(watched, torch.ones(3, 4), iterations)


@pytest.mark.parametrize("vector", [torch.zeros(3, 3), torch.zeros(3), torch.zeros(2, 3, 2), [1.0]], ids=str)
def test_vector(vector, watched):
    with pytest.raises((TypeError, ValueError), match="vector"):
        functional.jacobian_spectral_norm(watched, torch.ones(3, 4), vector=vector)


def test_r1_r2_shapes(watched):
    with pytest.raises(ValueError, match="fake"):
        functional.r1_r2(watched, torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(TypeError, match="fake"):
        functional.r1_r2(watched, torch.ones(3, 4), None)
