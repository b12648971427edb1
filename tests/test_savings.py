"""Operations counted, layer by layer: what each form costs, and what nobody asked for is not computed.

In the expectations, ``F[l]`` is one product of layer l over the batch, S their sum. The pull stops at no layer, but the
push need not pass the last one, nor the adjoints the first; a unit seed that all samples share passes the last layer
once instead of B times.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast import functional as penalties
from tests.flops import count, forward_flops
from tests.parity import jacobian, recorded_gradient, squares

pytestmark = pytest.mark.usefixtures("float64", "pytorch_lines")

B = 4


def dense(*widths, activation=lambda: nn.LeakyReLU(0.2)):
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def dcgan(activation=lambda: nn.LeakyReLU(0.2), outputs=1):
    """A convolutional critic that ends in a convolution."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, 2, 1),
        activation(),
        nn.Conv2d(4, 6, 4, 2, 1),
        activation(),
        nn.Conv2d(6, outputs, 2),
        nn.Flatten(),
    )


def headed(activation=lambda: nn.LeakyReLU(0.2)):
    """A convolutional critic that ends in a fully connected layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 5, 3),
        activation(),
        nn.Flatten(),
        nn.Linear(20, 1),
    )


CRITICS = {
    "dense": (lambda: dense(20, 16, 12, 1), (20,)),
    "ends in a convolution": (dcgan, (2, 8, 8)),
    "ends in a fully connected layer": (headed, (2, 8, 8)),
}


def layers(model, x):
    F = forward_flops(model, x)
    return F, sum(F)


def bias_sums(model):
    """A convolution's bias takes its weighted sum over the batch as a product."""
    return sum(2 * B * layer.out_channels for layer in model if isinstance(layer, nn.Conv2d))


def step(quantity, model, x):
    """Operations of a loss and its backward pass."""

    def run():
        model.zero_grad()
        quantity(model, x).backward()

    run()  # conversion and planning
    return count(run)


def leaf(x):
    """What autograd differentiates by; not quite a leaf, which the counter cannot watch."""
    return x.detach().requires_grad_().clone()


def eager_norms(model, x):
    x = leaf(x)
    y = model(x)
    return y, squares(recorded_gradient(y, x, torch.ones_like(y)))


@pytest.mark.parametrize("name", CRITICS)
def test_penalty_alone_on_a_piecewise_linear_critic_takes_four_units(name):
    make, shape = CRITICS[name]
    model, x = make(), torch.randn(B, *shape)
    F, S = layers(model, x)
    ours = step(lambda model, x: penalties.gradient_penalty(model, x)[1], model, x)
    assert ours == 4 * S - 3 * F[-1] + 2 * F[-1] // B
    eager = step(lambda model, x: ((eager_norms(model, x)[1].sqrt() - 1) ** 2).mean(), model, x)
    assert eager > 1.35 * ours
    assert eager >= 5.5 * S - 6 * F[-1] - F[0]


def by_vjp(model, x):
    y, g = gradreg_fast.value_and_vjp(model, x, torch.linspace(-1, 1, B).unsqueeze(1))
    return y, g.square().sum()


@pytest.mark.parametrize(
    "penalty",
    [penalties.r1, penalties.gradient_penalty, penalties.jacobian_frobenius, by_vjp],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", CRITICS)
def test_task_loss_and_penalty_on_a_piecewise_linear_critic_take_four_units(name, penalty):
    make, shape = CRITICS[name]
    model, x = make(), torch.randn(B, *shape)
    F, S = layers(model, x)

    def loss(model, x):
        y, value = penalty(model, x)
        return functional.softplus(-y).mean() + 5 * value

    def eager_loss(model, x):
        y, norms = eager_norms(model, x)
        return functional.softplus(-y).mean() + 5 * norms.mean()

    ours, eager = step(loss, model, x), step(eager_loss, model, x)
    assert ours == 4 * S - 3 * F[-1] + 2 * F[-1] // B + bias_sums(model)
    assert eager >= 6 * S - 2 * F[-1] - F[0]
    assert eager > 1.35 * ours


OTHERS = {
    "smooth, one output": (lambda: dense(9, 8, 7, 1, activation=nn.Tanh), (9,)),
    "smooth": (lambda: dense(9, 8, 7, 3, activation=nn.Tanh), (9,)),
    "piecewise linear, several outputs": (lambda: dense(9, 8, 7, 3, activation=nn.ReLU), (9,)),
    "convolutional, one output": (lambda: dcgan(nn.Softplus), (2, 8, 8)),
    "convolutional": (lambda: dcgan(nn.Softplus, 3), (2, 8, 8)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_network_takes_six_units(name):
    """Several outputs, or a smooth network; autograd takes the same products there."""
    make, shape = OTHERS[name]
    model, x = make(), torch.randn(B, *shape)
    F, S = layers(model, x)
    c = torch.randn_like(model(x))

    def loss(model, x):
        y, g = gradreg_fast.value_and_vjp(model, x, c)
        return y.square().sum() + g.square().sum()

    def eager_loss(model, x):
        x = leaf(x)
        y = model(x)
        return y.square().sum() + recorded_gradient(y, x, c).square().sum()

    ours, eager = step(loss, model, x), step(eager_loss, model, x)
    assert ours == 6 * S - F[-1] - F[0]
    assert eager >= ours + F[0]  # x must require a gradient there, and gets one


def test_penalty_alone_on_a_smooth_network():
    """The last layer meets no adjoint: six units less five of its products."""
    model, x = dense(9, 8, 7, 1, activation=nn.Softplus), torch.randn(B, 9)
    F, S = layers(model, x)
    ours = step(lambda model, x: penalties.eikonal(model, x)[1], model, x)
    assert ours == 6 * S - 5 * F[-1] - F[0] + 2 * F[-1] // B
    assert ours <= step(lambda model, x: ((eager_norms(model, x)[1].sqrt() - 1) ** 2).mean(), model, x)


def test_double_backprop_takes_six_units():
    model, x, target = dense(9, 8, 7, 3, activation=nn.Tanh), torch.randn(B, 9), torch.randint(3, (B,))
    F, S = layers(model, x)

    def loss(model, x):
        y, penalty = penalties.double_backprop(model, x, target)
        return functional.cross_entropy(y, target) + penalty

    assert step(loss, model, x) == 6 * S - F[0]


@pytest.mark.parametrize("task", [False, True], ids=["penalty alone", "with a task loss"])
def test_first_layer_in_gram_form(task):
    """A wide input is never reached: ``W W^T`` stands for the first layer."""
    d, n, B = 300, 6, 16
    model, x = dense(d, n, 5, 1), torch.randn(B, d)
    F, S = layers(model, x)
    inner = S - F[0] - F[-1]

    def loss(model, x):
        y, penalty = penalties.r1(model, x)
        return penalty + y.sum() if task else penalty

    def eager_loss(model, x):
        y, norms = eager_norms(model, x)
        return norms.mean() + y.sum() if task else norms.mean()

    expected = S + 3 * inner + 2 * F[-1] // B + 4 * n * n * d + 4 * B * n * n + (F[0] if task else 0)
    ours = step(loss, model, x)
    assert ours == expected
    assert 1.3 * ours < step(eager_loss, model, x)


def eager_frobenius(model, x):
    y, rows = jacobian(model, leaf(x))
    return y, squares(rows)


@pytest.mark.parametrize("task", [False, True], ids=["penalty alone", "with a task loss"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("K", [10, 40])
def test_one_hidden_layer_in_closed_form(K, activation, task):
    """Six products with n x n matrices, whatever the batch; the layers themselves as in a plain step."""
    d, n = 30, 6
    model, x = dense(d, n, K, activation=activation), torch.randn(B, d)
    F, _ = layers(model, x)

    def loss(frobenius):
        def quantity(model, x):
            y, norms = frobenius(model, x)
            return norms.sum() + y.square().sum() if task else norms.sum()

        return quantity

    expected = F[0] + F[1] + 4 * n * n * (d + K + B)
    if task:
        expected += 2 * F[1] + F[0]
    elif activation is nn.Tanh:
        expected += F[0]
    ours = step(loss(gradreg_fast.jacobian_sqnorm), model, x)
    assert ours == expected
    assert 3 * ours < step(loss(eager_frobenius), model, x)


def test_contraction_at_the_narrowest_layer():
    """Two cotangents below the bottleneck and two tangents above it, whatever the nine outputs."""
    n, d, K = 2, 12, 9
    model, x = dense(d, 10, n, 11, K, activation=nn.Tanh), torch.randn(B, d)
    F, S = layers(model, x)
    ours = step(lambda model, x: gradreg_fast.jacobian_sqnorm(model, x)[1].sum(), model, x)
    value = n * (F[0] + F[1] // B + F[2] + F[3])  # the unit seeds pass the bottleneck's layer once for all samples
    gradient = n * (2 * F[0] + F[1] // B + 2 * F[2] + 2 * F[3])
    small = 4 * B * n * n * (d + K)  # V V^T, U^T U, and their products with the other side
    adjoint = F[0] + 2 * F[1] + 2 * F[2]
    assert ours == S + value + gradient + small + adjoint
    assert 2 * ours < step(lambda model, x: eager_frobenius(model, x)[1].sum(), model, x)


def test_stacked_cotangents():
    """K rows in one sweep: K + K + K units, and the plain step's."""
    model, x, K = dense(6, 7, 7, 3, activation=nn.Tanh), torch.randn(B, 6), 3
    target = torch.randn(B, K, 6)
    F, S = layers(model, x)
    ours = step(lambda model, x: penalties.gradient_matching(model, x, target)[1], model, x)
    pull = K * (S - F[-1] + F[-1] // B)
    push = K * (S - F[-1])
    products = K * (S - F[-1] + F[-1] // B)
    adjoint = 2 * (S - F[-1]) - F[0]
    assert ours == S + pull + push + products + adjoint

    def eager(model, x):
        _, rows = jacobian(model, leaf(x))
        return squares(rows - target).mean()

    assert ours <= step(eager, model, x)


# Nothing unasked.


def counted_gradient(model, x, sources, penalty_alone=False, cotangent=True):
    c = torch.randn(B, 3) if cotangent else None

    def run():
        y, g = gradreg_fast.value_and_vjp(model, x, c)
        loss = g.square().sum() if penalty_alone else g.square().sum() + y.square().sum()
        return torch.autograd.grad(loss, sources)

    run()
    return count(run)


def test_no_weight_gradients_for_the_inputs_gradient():
    model, x = dense(9, 8, 7, 3, activation=nn.Tanh), torch.randn(B, 9, requires_grad=True)
    F, S = layers(model, x)
    assert counted_gradient(model, x, [x]) == 4 * S - F[-1]


def test_only_the_last_layers_weight():
    model, x = dense(9, 8, 7, 3, activation=nn.Tanh), torch.randn(B, 9)
    F, S = layers(model, x)
    assert counted_gradient(model, x, [model[4].weight], penalty_alone=True) == 3 * S
    assert counted_gradient(model, x, [model[4].weight]) == 3 * S + F[-1]
    assert counted_gradient(model, x, [model[4].bias], penalty_alone=False) <= 3 * S


def test_only_the_last_layers_weight_of_a_critic():
    model, x = dense(9, 8, 7, 1), torch.randn(B, 9)
    F, S = layers(model, x)

    def run():
        return torch.autograd.grad(penalties.r1(model, x)[1], [model[4].weight])

    run()
    assert count(run) == 3 * S - 2 * F[-1] + 2 * F[-1] // B


@pytest.mark.parametrize("frozen", [[0], [2], [4], [0, 2], [0, 2, 4]], ids=str)
def test_frozen_layers_are_skipped(frozen):
    model, x = dense(9, 8, 7, 3, activation=nn.Tanh), torch.randn(B, 9)
    F, S = layers(model, x)
    for i in frozen:
        model[i].requires_grad_(False)
    trained = [i // 2 for i in (0, 2, 4) if i not in frozen]

    def run():
        y, g = gradreg_fast.value_and_vjp(model, x, c)
        loss = g.square().sum() + y.square().sum()
        if loss.requires_grad:
            loss.backward()

    c = torch.randn(B, 3)
    run()
    expected = 2 * S
    if trained:
        lowest = trained[0]
        highest = max(trained[-1], 1)  # the last bend, above the second layer, lies below the last layer
        expected += sum(F[:highest])  # push, up to where something is met
        expected += 2 * sum(F[layer] for layer in trained)  # products
        expected += sum(F[lowest + 1 :])  # adjoints
        if highest == 1:
            expected += F[1]
    assert count(run) == expected
    for i in frozen:
        assert model[i].weight.grad is None


def test_nothing_is_kept_where_nothing_can_be_asked():
    model, x = dense(9, 8, 7, 1), torch.randn(B, 9, requires_grad=True)
    packed = []

    def keep(tensor):
        packed.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.no_grad():
        results = [
            *gradreg_fast.value_and_vjp(model, x),
            *gradreg_fast.jacobian_sqnorm(model, x),
            *penalties.r1(model, x),
        ]
    assert not packed
    assert not any(result.requires_grad for result in results)
    model.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = [*gradreg_fast.value_and_vjp(model, x.detach()), *gradreg_fast.jacobian_sqnorm(model, x.detach())]
    assert not packed
    assert not any(result.requires_grad for result in results)


def test_values_alone_take_two_units():
    model, x = dense(9, 8, 7, 3), torch.randn(B, 9)
    F, S = layers(model, x)
    c = torch.randn(B, 3)
    with torch.no_grad():
        gradreg_fast.value_and_vjp(model, x, c)
        assert count(lambda: gradreg_fast.value_and_vjp(model, x, c)) == 2 * S
        assert count(lambda: gradreg_fast.value_and_vjp(model, x)) == 2 * S - F[-1] + F[-1] // B
