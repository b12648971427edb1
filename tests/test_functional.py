"""Every penalty against its formula written with autograd: values, reductions, gradients with a task loss shared."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradreg_fast import functional as penalties
from tests.parity import (
    assert_parity,
    compare,
    evaluate,
    jacobian,
    manual_seed,
    new_generator,
    recorded_gradient,
    squares,
)

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def mlp(outputs, smooth=True, inputs=5):
    make = nn.Softplus if smooth else lambda: nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Linear(inputs, 7), make(), nn.Linear(7, 6), make(), nn.Linear(6, outputs))


def conv_critic(smooth=False):
    make = nn.Tanh if smooth else lambda: nn.LeakyReLU(0.2)
    layers = [nn.Conv2d(2, 3, 4, 2, 1), make(), nn.Conv2d(3, 5, 4, 2, 1), make(), nn.Conv2d(5, 1, 2), nn.Flatten()]
    return nn.Sequential(*layers)


def critics():
    return {
        "smooth": (mlp(1), torch.randn(4, 5)),
        "piecewise linear": (mlp(1, smooth=False), torch.randn(4, 5)),
        "without its own dimension": (nn.Sequential(mlp(1), nn.Flatten(0)), torch.randn(4, 5)),
        "convolutional": (conv_critic(), torch.randn(3, 2, 8, 8)),
        "convolutional, smooth": (conv_critic(smooth=True), torch.randn(3, 2, 8, 8)),
        "batch statistics": (
            nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 1)),
            torch.randn(6, 5),
        ),
        "dropout": (
            nn.Sequential(nn.Linear(5, 9), nn.LeakyReLU(), nn.Dropout(0.4), nn.Linear(9, 1)),
            torch.randn(6, 5),
        ),
        "one sample": (mlp(1), torch.randn(1, 5)),
    }


CRITICS = [
    "smooth",
    "piecewise linear",
    "without its own dimension",
    "convolutional",
    "convolutional, smooth",
    "batch statistics",
    "dropout",
    "one sample",
]

# The formulas, each sample's own value [B], by autograd.


def gradients(model, x):
    """Output, and the gradient of the sum of outputs, one row a sample."""
    y = model(x)
    return y, recorded_gradient(y, x, torch.ones_like(y)).flatten(1)


def norm_distance(centre=1.0, one_sided=False):
    def quantity(model, x):
        y, g = gradients(model, x)
        distance = g.norm(dim=1) - centre
        return y, (torch.relu(distance) if one_sided else distance) ** 2

    return quantity


def squared_gradient(model, x):
    y, g = gradients(model, x)
    return y, (g**2).sum(1)


def frobenius(model, x):
    y, rows = jacobian(model, x)
    return y, squares(rows)


def frobenius_estimate(n, seed, shape, probabilities=False):
    """Directions ``[n, B, ...]``: standard normal, each sample's normalised."""
    v = torch.randn(n, *shape, generator=new_generator(seed))
    v = v / v.flatten(2).norm(dim=2).view(n, shape[0], *(1,) * (len(shape) - 1))

    def quantity(model, x):
        y = model(x)
        p = torch.softmax(y, 1) if probabilities else y
        terms = [squares(recorded_gradient(p, x, direction)) for direction in v]
        return y, sum(terms) * p[0].numel() / n

    return quantity


def softmax_frobenius(model, x):
    y = model(x)
    p = torch.softmax(y, 1)
    rows = [recorded_gradient(p[:, k], x, torch.ones(len(x))) for k in range(p.shape[1])]
    return y, squares(torch.stack(rows, 1))


def own_loss(loss, target):
    def quantity(model, x):
        y = model(x)
        return y, squares(recorded_gradient(loss(y, target).sum(), x, torch.tensor(1.0)))

    return quantity


def entropy(model, x):
    y = model(x)
    p = torch.softmax(y, 1)
    return y, (p * p.log()).sum(1)


def generator(seed=3):
    return new_generator(seed)


def assert_penalty(ours, formula, model, *tensors):
    """All three reductions of a penalty, with the output's gradient shared.

    Args:
        ours: called with the model, the tensors and a reduction.
        formula: gives the output and each sample's value.
    """
    for reduction in ("none", "mean", "sum"):

        def reference(model, *tensors, reduction=reduction):
            y, values = formula(model, *tensors)
            return y, values if reduction == "none" else getattr(values, reduction)()

        assert_parity(model, lambda *arguments, r=reduction: ours(*arguments, reduction=r), reference, *tensors)


@pytest.mark.parametrize("name", CRITICS)
class TestCritics:
    def test_gradient_penalty(self, name):
        model, x = critics()[name]
        assert_penalty(penalties.gradient_penalty, norm_distance(), model, x)

    @pytest.mark.parametrize("centre", [0.0, 0.2, 100.0])
    def test_centre(self, name, centre):
        model, x = critics()[name]

        def ours(model, x, reduction):
            return penalties.gradient_penalty(model, x, centre, reduction=reduction)

        assert_penalty(ours, norm_distance(centre), model, x)

    @pytest.mark.parametrize("centre", [0.0, 0.3, 100.0])
    def test_one_sided(self, name, centre):
        model, x = critics()[name]

        def ours(model, x, reduction):
            return penalties.gradient_penalty(model, x, centre=centre, one_sided=True, reduction=reduction)

        assert_penalty(ours, norm_distance(centre, True), model, x)

    def test_eikonal(self, name):
        model, x = critics()[name]
        assert_penalty(penalties.eikonal, norm_distance(1.0), model, x)

    @pytest.mark.parametrize("penalty", [penalties.r1, penalties.r2])
    def test_r1_and_r2(self, name, penalty):
        model, x = critics()[name]
        assert_penalty(penalty, squared_gradient, model, x)

    def test_r1_r2(self, name):
        model, x = critics()[name]
        fake = torch.randn_like(x)[: max(2, len(x) - 1)] if len(x) > 1 else torch.randn(2, 5)

        def ours(reduction):
            def quantity(model, real, fake):
                ys, penalty = penalties.r1_r2(model, real, fake, reduction)
                return *ys, penalty

            return quantity

        def reference(reduction):
            def quantity(model, real, fake):
                if name == "dropout":  # one pass: one draw for both
                    y, values = squared_gradient(model, torch.cat([real, fake]))
                    y_real, y_fake = y.split([len(real), len(fake)])
                    first, second = values.split([len(real), len(fake)])
                else:
                    y_real, first = squared_gradient(model, real)
                    y_fake, second = squared_gradient(model, fake)
                if reduction == "none":
                    return y_real, y_fake, torch.cat([first, second])
                return y_real, y_fake, getattr(first, reduction)() + getattr(second, reduction)()

            return quantity

        for reduction in ("none", "mean", "sum"):
            assert_parity(model, ours(reduction), reference(reduction), x, fake)

    def test_dragan(self, name):
        model, x = critics()[name]
        for scale, centre in ((0.5, 1.0), (0.1, 0.0)):

            def ours(model, x, reduction, scale=scale, centre=centre):
                return penalties.dragan(model, x, scale, centre, generator(), reduction)

            def formula(model, x, scale=scale, centre=centre):
                noise = torch.randn(x.shape, generator=generator())
                points = x.detach() + scale * x.detach().std(correction=0) * noise
                return norm_distance(centre)(model, points.requires_grad_())

            assert_penalty(ours, formula, model, x)

    def test_gradient_matching(self, name):
        model, x = critics()[name]
        target = torch.randn_like(x)

        def formula(model, x, target):
            y, g = gradients(model, x)
            return y, squares(g - target.flatten(1))

        assert_penalty(penalties.gradient_matching, formula, model, x, target)
        assert_penalty(penalties.gradient_matching, formula, model, x, target.unsqueeze(1))

    def test_frobenius_of_one_output(self, name):
        model, x = critics()[name]
        assert_penalty(penalties.jacobian_frobenius, frobenius, model, x)


def encoders():
    return {
        "smooth": (mlp(4), torch.randn(3, 5)),
        "piecewise linear": (mlp(4, smooth=False), torch.randn(3, 5)),
        "narrow input": (mlp(9, inputs=2), torch.randn(3, 2)),
        "one hidden layer": (nn.Sequential(nn.Linear(5, 3), nn.Sigmoid(), nn.Linear(3, 6)), torch.randn(4, 5)),
        "encoder": (nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()), torch.randn(4, 5)),
        "convolutional": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
            torch.randn(2, 1, 6, 6),
        ),
        "batch statistics": (
            nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 3)),
            torch.randn(5, 5),
        ),
        "dropout": (nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 5)),
    }


ENCODERS = [
    "smooth",
    "piecewise linear",
    "narrow input",
    "one hidden layer",
    "encoder",
    "convolutional",
    "batch statistics",
    "dropout",
]


@pytest.mark.parametrize("name", ENCODERS)
class TestSeveralOutputs:
    @pytest.mark.parametrize("penalty", [penalties.jacobian_frobenius, penalties.contractive])
    def test_frobenius(self, name, penalty):
        model, x = encoders()[name]
        assert_penalty(penalty, frobenius, model, x)

    @pytest.mark.parametrize("n", [1, 3])
    def test_projections(self, name, n):
        model, x = encoders()[name]
        shape = model(x).shape

        def ours(model, x, reduction):
            return penalties.jacobian_frobenius(model, x, n, generator(), reduction)

        assert_penalty(ours, frobenius_estimate(n, 3, shape), *encoders()[name])

    def test_softmax(self, name):
        assert_penalty(penalties.jacobian_softmax, softmax_frobenius, *encoders()[name])

    def test_softmax_projections(self, name):
        model, x = encoders()[name]

        def ours(model, x, reduction):
            return penalties.jacobian_softmax(model, x, 2, generator=generator(), reduction=reduction)

        assert_penalty(ours, frobenius_estimate(2, 3, model(x).shape, probabilities=True), *encoders()[name])

    def test_spectral_projection(self, name):
        model, x = encoders()[name]
        K = model(x)[0].numel()

        def formula(model, x):
            y, values = frobenius_estimate(1, 3, (len(x), K))(model, x)
            return y, values / K

        def ours(model, x, reduction):
            return penalties.spectral_projection(model, x, generator(), reduction)

        assert_penalty(ours, formula, *encoders()[name])

    def test_gradient_matching(self, name):
        model, x = encoders()[name]
        target = torch.randn(len(x), model(x).shape[1], *x.shape[1:])

        def formula(model, x, target):
            y, rows = jacobian(model, x)
            return y, squares(rows - target)

        assert_penalty(penalties.gradient_matching, formula, model, x, target)

    def test_double_backprop(self, name):
        model, x = encoders()[name]
        K = model(x).shape[1]
        for loss, function, target in (
            (
                "cross_entropy",
                lambda y, t: functional.cross_entropy(y, t, reduction="none"),
                torch.randint(K, (len(x),)),
            ),
            ("mse", lambda y, t: (y - t).square().mean(1), torch.randn(len(x), K)),
        ):

            def ours(model, x, reduction, loss=loss, target=target):
                return penalties.double_backprop(model, x, target, loss, reduction)

            assert_penalty(ours, own_loss(function, target), *encoders()[name])

    def test_confidence_penalty(self, name):
        assert_penalty(penalties.confidence_penalty, entropy, *encoders()[name])


def test_the_task_loss_is_shared():
    """One forward pass serves both: the gradients are those of the sum."""
    model, x, target = mlp(3), torch.randn(6, 5), torch.randint(3, (6,))

    def ours(model, x):
        y, penalty = penalties.double_backprop(model, x, target)
        return functional.cross_entropy(y, target) + 0.1 * penalty

    def reference(model, x):
        y = model(x)
        g = recorded_gradient(functional.cross_entropy(y, target, reduction="sum"), x, torch.tensor(1.0))
        return functional.cross_entropy(y, target) + 0.1 * g.square().sum(1).mean()

    assert_parity(model, ours, reference, x)


def test_interpolate():
    real, fake = torch.randn(5, 2, 3), torch.randn(5, 2, 3, requires_grad=True)
    place = torch.rand(5, 1, 1, generator=generator())
    points = penalties.interpolate(real, fake, generator())
    torch.testing.assert_close(points, real + place * (fake.detach() - real))
    assert not points.requires_grad
    with pytest.raises(ValueError, match="fake"):
        penalties.interpolate(real, fake[:, :1])


# Spectral norm.


def largest_singular_value(model, x):
    y, rows = jacobian(model, x)
    return y, torch.linalg.svdvals(rows.flatten(2))[:, 0]


@pytest.mark.parametrize("name", ["smooth", "piecewise linear", "narrow input", "encoder", "convolutional"])
def test_spectral_norm_converges(name):
    """After enough steps, value and gradients are those of the largest singular value."""

    def ours(model, x, reduction):
        return penalties.jacobian_spectral_norm(model, x, 600, generator=generator(), reduction=reduction)

    assert_penalty(ours, largest_singular_value, *encoders()[name])


def test_spectral_norm_starts_warm():
    model, x = encoders()["smooth"]
    exact = largest_singular_value(model, x.clone().requires_grad_())[1].detach()
    vector, values = torch.randn(3, 4), []
    for _ in range(300):
        _, value = penalties.jacobian_spectral_norm(model, x, 1, vector, reduction="none")
        values.append(value.detach())
    assert (values[0] < exact - 1e-6).any()
    assert all((later >= earlier - 1e-12).all() for earlier, later in itertools.pairwise(values))
    torch.testing.assert_close(values[-1], exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(3))
    _, value = penalties.jacobian_spectral_norm(model, x, 0, vector, reduction="none")
    torch.testing.assert_close(value.detach(), exact, rtol=1e-9, atol=0)


def test_spectral_norm_of_one_output_is_the_gradient_norm():
    model, x = critics()["piecewise linear"]

    def formula(model, x):
        y, g = gradients(model, x)
        return y, g.norm(dim=1)

    assert_penalty(penalties.jacobian_spectral_norm, formula, model, x)


def test_spectral_norm_holds_its_vector_constant():
    model, x = encoders()["smooth"]
    v = torch.randn(3, 4)

    def formula(model, x):
        y = model(x)
        return y, recorded_gradient(y, x, v / v.norm(dim=1, keepdim=True)).norm(dim=1)

    def ours(model, x, reduction):
        return penalties.jacobian_spectral_norm(model, x, 0, v.clone(), reduction=reduction)

    assert_penalty(ours, formula, model, x)


# Zero.


ONE_OUTPUT = {
    "gradient_penalty": penalties.gradient_penalty,
    "centre zero": lambda model, x: penalties.gradient_penalty(model, x, 0.0),
    "one-sided": lambda model, x: penalties.gradient_penalty(model, x, one_sided=True),
    "r1": penalties.r1,
    "eikonal": penalties.eikonal,
    "dragan": penalties.dragan,
    "spectral norm": penalties.jacobian_spectral_norm,
    "frobenius": penalties.jacobian_frobenius,
    "spectral projection": penalties.spectral_projection,
    "softmax": penalties.jacobian_softmax,
    "confidence": penalties.confidence_penalty,
    "matching": lambda model, x: penalties.gradient_matching(model, x, torch.zeros_like(x)),
    "double backprop": lambda model, x: penalties.double_backprop(model, x, torch.zeros(len(x)), "mse"),
    "r1_r2": lambda model, x: penalties.r1_r2(model, x, x.detach()),
}


@pytest.mark.parametrize("penalty", ONE_OUTPUT.values(), ids=ONE_OUTPUT)
@pytest.mark.parametrize("smooth", [True, False])
def test_safe_at_zero(penalty, smooth):
    """A network that is constant has a zero gradient, whose norm has no derivative; nothing becomes NaN."""
    model, x = mlp(1, smooth), torch.randn(4, 5, requires_grad=True)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    value = penalty(model, x)[1]
    value.backward()
    assert value.isfinite()
    for tensor in (*model.parameters(), x):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("penalty", ONE_OUTPUT.values(), ids=ONE_OUTPUT)
@pytest.mark.parametrize("smooth", [True, False])
def test_empty_batch(penalty, smooth):
    """No samples: nothing to penalise, and no error."""
    model, x = mlp(1, smooth), torch.randn(0, 5, requires_grad=True)
    value = penalty(model, x)[1]
    value.backward()
    assert value == 0
    for parameter in model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_empty_batch_of_images_and_several_outputs():
    for penalty in (penalties.r1, penalties.jacobian_frobenius):
        y, value = penalty(conv_critic(), torch.randn(0, 2, 8, 8), reduction="none")
        assert y.shape == (0, 1)
        assert value.shape == (0,)
    for projections in (None, 2):
        y, value = penalties.jacobian_frobenius(mlp(3), torch.randn(0, 5), projections, reduction="none")
        assert y.shape == (0, 3)
        assert value.shape == (0,)


@pytest.mark.parametrize("penalty", ONE_OUTPUT.values(), ids=ONE_OUTPUT)
def test_one_sample(penalty):
    _y, value = penalty(mlp(1), torch.randn(1, 5))
    value.backward()
    assert value.isfinite()


def test_outputs_with_and_without_their_own_dimension_agree():
    model, x, target = mlp(1), torch.randn(4, 5), torch.randn(4)
    flat = nn.Sequential(model, nn.Flatten(0))
    for penalty in (
        penalties.r1,
        penalties.gradient_penalty,
        penalties.jacobian_frobenius,
        lambda model, x: penalties.double_backprop(model, x, target, "mse"),
        lambda model, x: penalties.double_backprop(model, x, target.unsqueeze(1), "mse"),
        lambda model, x: penalties.gradient_matching(model, x, torch.ones_like(x)),
    ):
        values = [evaluate(lambda model, x, p=penalty: p(model, x)[1], net, [x])["values"] for net in (model, flat)]
        compare({"values": values[0]}, {"values": values[1]})


def test_projections_are_unbiased_and_seeded():
    model, x = mlp(4), torch.randn(2, 5)
    exact = penalties.jacobian_frobenius(model, x)[1].item()
    draws = [penalties.jacobian_frobenius(model, x, 500, generator(seed))[1].item() for seed in range(4)]
    assert math.isclose(sum(draws) / 4, exact, rel_tol=0.1)
    assert len(set(draws)) == 4
    assert penalties.jacobian_frobenius(model, x, 500, generator(0))[1].item() == draws[0]
    manual_seed(7)
    first = penalties.jacobian_frobenius(model, x, 2)[1]
    manual_seed(7)
    assert penalties.jacobian_frobenius(model, x, 2)[1] == first


def test_x_need_not_require_a_gradient():
    model, x = mlp(1), torch.randn(4, 5)
    for penalty in ONE_OUTPUT.values():
        model.zero_grad()
        penalty(model, x)[1].backward()
        assert x.grad is None
        assert not x.requires_grad


def test_the_names_are_listed():
    public = {
        name
        for name, member in vars(penalties).items()
        if callable(member)
        and getattr(member, "__module__", "") == penalties.__name__
        and "model" in member.__annotations__
    }
    assert {name for name in public if not name.startswith("_")} == set(penalties.PENALTIES)
