"""Mixed precision: under autocast never much worse than eager autograd there, both against float64 without it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradreg_fast
from gradreg_fast import autocast, functional, reference
from gradreg_fast.convert import graph_of
from gradreg_fast.rules.opaque import Opaque
from tests.parity import evaluate, jacobian_sqnorm, manual_seed, new_generator, value_and_vjp

EACH_BACKEND = pytest.mark.usefixtures("each_backend")
SEEDS = 2
LOW = [torch.bfloat16, torch.float16]


def region(dtype=torch.bfloat16, **settings):
    """An autocast region of the device that the tests run on."""
    return torch.autocast(torch.get_default_device().type, dtype, **settings)


def mlp(outputs, make=nn.Softplus):
    return nn.Sequential(nn.Linear(16, 24), make(), nn.Linear(24, 20), make(), nn.Linear(20, outputs))


def leaky():
    return nn.LeakyReLU(0.2)


def lenet():
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(4, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 5))


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a third around them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.around = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        y = torch.tanh(self.norms[0](self.first(x)))
        return self.head(torch.tanh(self.norms[1](self.second(y)) + self.around(x)).mean((2, 3)))


class Attending(nn.Module):
    """A block of attention: products of matrices, softmax, layer normalisation, a parameter in float32 added."""

    def __init__(self, fused=False):
        super().__init__()
        self.norm, self.joint = nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.place = nn.Parameter(0.1 * torch.randn(5, 16))
        self.fused = fused

    def forward(self, x, single=None):
        x = x + self.place
        q, k, v = self.joint(self.norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1, dtype=single) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(torch.nn.functional.gelu(x).mean(1))


class InDouble(nn.Module):
    """Has no rule, and asks for a dtype."""

    def forward(self, x):
        return torch.tanh(x.double()) if x.dtype == torch.float64 else torch.tanh(x.float())


class Switching(nn.Module):
    """Leaves autocast in the middle."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 8), nn.Linear(8, 3)])

    def forward(self, x):
        y = torch.tanh(self.layers[0](x))
        with region(enabled=False):
            return self.layers[1](y.to(self.layers[1].weight.dtype))


NETWORKS = {
    "dense": (lambda: mlp(5), (8, 16)),
    "one hidden layer": (lambda: nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 7)), (8, 16)),
    "critic": (lambda: mlp(1, leaky), (8, 16)),
    "LeNet": (lenet, (4, 1, 8, 8)),
    "residual": (Residual, (6, 3, 6, 6)),
    "residual, evaluated": (lambda: Residual().eval(), (6, 3, 6, 6)),
    "attention": (Attending, (4, 5, 16)),
    "fused attention": (lambda: Attending(True), (4, 5, 16)),
    "narrow in the middle": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3), nn.Tanh(), nn.Linear(3, 20), nn.Tanh()),
        (8, 16),
    ),
    "padded": (
        lambda: nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(2, 3, 3), nn.ReflectionPad2d(1), nn.PReLU(3), nn.Conv2d(3, 1, 3)
        ),
        (3, 2, 5, 5),
    ),
    "bilinear": (lambda: Applied(nn.Bilinear(4, 4, 3), lambda layer, x: layer(x, x)), (5, 4)),
    "by autograd in the middle": (
        lambda: nn.Sequential(nn.Linear(16, 8), InDouble(), nn.Linear(8, 3)),
        (8, 16),
    ),
    "switches autocast": (Switching, (8, 16)),
}


class Applied(nn.Module):
    """A layer, applied by a function."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


QUANTITIES = {
    "vjp": (gradreg_fast.value_and_vjp, value_and_vjp),
    "norm": (gradreg_fast.jacobian_sqnorm, jacobian_sqnorm),
    "converted": (lambda model, x: value_and_vjp(gradreg_fast.convert(model), x), value_and_vjp),
}


@pytest.fixture(autouse=True)
def differentiable_attention():
    """Eager has a double backward for this one alone."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def assert_no_worse(make, shape, ours, theirs, dtype):
    """Each value and gradient norm-wise, root mean square over seeds; and of the same dtypes."""
    errors = {}
    for seed in range(SEEDS):
        manual_seed(seed)
        model, x = make(), torch.randn(shape)
        exact = evaluate(theirs, copy.deepcopy(model).double(), [x.double()], seed)
        results = [evaluate(inside(quantity, dtype), model, [x], seed) for quantity in (ours, theirs)]
        for group, tensors in exact.items():
            scale = max([float(tensor.double().norm()) for tensor in tensors.values()], default=0.0)
            for entry, expected in tensors.items():
                mine, eager = (result[group][entry] for result in results)
                assert mine.dtype == eager.dtype, f"{entry} of {group}"
                size = max(float(expected.double().norm()), 0.1 * scale) or 1.0  # some are zero but for rounding
                pair = errors.setdefault((group, entry), [0.0, 0.0])
                for i, result in enumerate((mine, eager)):
                    pair[i] += (float((result.double() - expected.double()).norm()) / size) ** 2 / SEEDS
    eps = torch.finfo(dtype).eps
    for key, (mine, eager) in errors.items():
        assert mine**0.5 <= 2 * eager**0.5 + eps, f"{key}: ours {mine**0.5:.2e}, eager {eager**0.5:.2e}"


def inside(quantity, dtype):
    """The quantity computed in a region; its gradients, outside of it."""

    def computed(model, *tensors):
        with region(dtype):
            return quantity(model, *tensors)

    return computed


@EACH_BACKEND
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_error_is_at_most_twice_eagers(name, quantity, dtype):
    assert_no_worse(*NETWORKS[name], *QUANTITIES[quantity], dtype)


NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, evaluated": lambda: nn.BatchNorm2d(4).eval(),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm([4, 5, 5]),
    "root mean square": lambda: nn.RMSNorm([4, 5, 5], eps=1e-5),
}


@EACH_BACKEND
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, dtype):
    """In half precision behind a convolution, in float32 ahead of one."""

    def make():
        ends = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3)
        return nn.Sequential(NORMS[name](), ends[0], NORMS[name](), nn.Tanh(), ends[1], nn.Flatten(), nn.Linear(18, 2))

    assert_no_worse(make, (6, 4, 5, 5), *QUANTITIES["norm"], dtype)


TARGETS = torch.tensor([0, 1, 2, 4, 3, 2, 1, 0])
PENALTIES = {
    "double_backprop": (5, {"target": TARGETS}),
    "jacobian_frobenius": (5, {}),
    "contractive": (5, {}),
    "jacobian_softmax": (5, {}),
    "gradient_penalty": (1, {}),
    "r1": (1, {}),
    "r2": (1, {}),
    "eikonal": (1, {}),
    "confidence_penalty": (5, {}),
}


def test_recomputed():
    """The second forward is in the region, too."""
    make, shape = NETWORKS["attention"]
    ours = partial(gradreg_fast.jacobian_sqnorm, save="recompute")
    assert_no_worse(make, shape, ours, jacobian_sqnorm, torch.bfloat16)


@EACH_BACKEND
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name):
    outputs, settings = PENALTIES[name]

    def quantity(of):
        def values(model, x):
            y, penalty = getattr(of, name)(model, x, **settings)
            return y, penalty.float() if of is reference and penalty.dtype == torch.bfloat16 else penalty

        return values

    assert_no_worse(lambda: mlp(outputs), (8, 16), quantity(functional), quantity(reference), torch.bfloat16)


@EACH_BACKEND
@pytest.mark.parametrize("outputs", [1, 3])
def test_gradient_matching(outputs):
    target = torch.randn(8, outputs, 16).bfloat16().squeeze(1)

    def quantity(of):
        return lambda model, x: of.gradient_matching(model, x, target.to(x.dtype))

    assert_no_worse(lambda: mlp(outputs), (8, 16), quantity(functional), quantity(reference), torch.bfloat16)


@EACH_BACKEND
def test_both_batches():
    def quantity(of):
        def values(model, x):
            (first, second), penalty = of.r1_r2(model, x, x + 1)
            return first, second, penalty

        return values

    assert_no_worse(lambda: mlp(1, leaky), (8, 16), quantity(functional), quantity(reference), torch.bfloat16)


DRAWN = {
    "jacobian_frobenius": (5, {"projections": 2}),
    "jacobian_softmax": (5, {"projections": 2}),
    "spectral_projection": (5, {}),
    "jacobian_spectral_norm": (5, {"iterations": 3}),
    "dragan": (1, {}),
}


@EACH_BACKEND
@pytest.mark.parametrize("name", DRAWN)
def test_penalties_that_draw(name):
    """What is drawn in half precision has no counterpart in float64: eager's in the same region, then."""
    outputs, settings = DRAWN[name]
    model, x = mlp(outputs), torch.randn(8, 16)
    results = []
    for of in (functional, reference):
        generator = new_generator(1)
        with region():
            y, penalty = getattr(of, name)(model, x, generator=generator, **settings)
        gradients = torch.autograd.grad(penalty, list(model.parameters()), materialize_grads=True)
        results.append([y, penalty, *gradients])
    assert results[0][1].dtype == torch.float32
    scale = max(gradient.norm() for gradient in results[1][2:])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype or theirs is results[1][1]
        assert (mine.double() - theirs.double()).norm() <= 3e-2 * max(theirs.double().norm(), scale)


def test_casts_of_cuda(monkeypatch):
    """Softmax, norms and sums in float32: on a CPU like a model that asks for it."""
    monkeypatch.setitem(autocast.SINGLE, "cpu", autocast.SINGLE["cuda"])

    def theirs(model, x):
        single = torch.promote_types(x.dtype, torch.float32)
        return jacobian_sqnorm(lambda x: model(x, single).sum(1, keepdim=True, dtype=single), x)

    def ours(model, x):
        return gradreg_fast.jacobian_sqnorm(Applied(model, lambda model, x: model(x).sum(1, keepdim=True)), x)

    assert_no_worse(Attending, (4, 5, 16), ours, theirs, torch.bfloat16)


def test_nothing_is_left_to_autograd():
    for name in ("dense", "LeNet", "residual", "attention", "fused attention"):
        make, _ = NETWORKS[name]
        with region():
            graph = graph_of(make())
        assert not any(isinstance(node.rule, Opaque) for node in graph.nodes if node)


def test_what_switches_autocast_is():
    with region():
        assert "it switches autocast" in graph_of(Switching()).whole.reason


def test_a_forward_may_ask_for_the_region():
    model = Applied(
        nn.Linear(4, 3), lambda layer, x: torch.tanh(layer(x)) if torch.is_autocast_enabled("cpu") else layer(x)
    )
    x = torch.randn(5, 4)
    for _ in range(2):
        torch.testing.assert_close(gradreg_fast.value_and_vjp(model, x)[0], model(x))
        with region():
            torch.testing.assert_close(gradreg_fast.value_and_vjp(model, x)[0], model(x))


@EACH_BACKEND
@pytest.mark.parametrize("quantity", ["vjp", "norm", "converted"])
def test_backward_within_a_region_gives_the_same(quantity):
    """The sweeps remember the forward's casts, and heed no others."""
    model, x = Attending(), torch.randn(4, 5, 16, requires_grad=True)
    ours, _ = QUANTITIES[quantity]

    def gradients(forward, backward):
        with region(enabled=forward):
            _, value = ours(model, x)
        with region(enabled=backward):
            return torch.autograd.grad(value.square().sum(), [x, *model.parameters()], materialize_grads=True)

    for forward in (True, False):
        for within, without in zip(gradients(forward, True), gradients(forward, False), strict=True):
            assert torch.equal(within, without)


def test_outside_of_regions_nothing_changes():
    model, x = mlp(3), torch.randn(8, 16)
    before = gradreg_fast.jacobian_sqnorm(model, x)
    with region():
        assert gradreg_fast.jacobian_sqnorm(model, x)[0].dtype == torch.bfloat16
        with region(enabled=False):
            inner = gradreg_fast.jacobian_sqnorm(model, x)
    for after in (inner, gradreg_fast.jacobian_sqnorm(model, x)):
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_without_gradients():
    model, x = Residual(), torch.randn(6, 3, 6, 6)
    with region():
        expected = gradreg_fast.jacobian_sqnorm(model, x)
        with torch.no_grad():
            results = gradreg_fast.jacobian_sqnorm(model, x)
            assert gradreg_fast.value_and_vjp(model, x)[1].dtype == torch.float32
    for mine, theirs in zip(results, expected, strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad


def test_explanation():
    with region():
        text = str(gradreg_fast.explain(lenet(), torch.randn(4, 1, 8, 8), "jacobian_frobenius"))
    assert "Conv" in text and "Cast" not in text and "autograd runs" not in text


# Loss scaling: the whole loss is scaled once, behind the penalty, which is made of the network's unscaled outputs.


def step(model, x, quantity, dtype, scaler=None):
    """One step of the recipe in the README; the penalty's value."""
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    with region(dtype):
        y, penalty = quantity(model, x)
        loss = torch.nn.functional.softplus(-y).mean() + 5.0 * penalty
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    return penalty.detach()


@EACH_BACKEND
@pytest.mark.parametrize("network", [partial(mlp, 1), partial(mlp, 1, leaky)], ids=["softplus", "LeakyReLU"])
def test_scaled_steps_are_those_without(network):
    """The penalty is the unscaled one, and so is its gradient: the parameters after the step are the same."""
    model, x = network(), torch.randn(8, 16)
    twin, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    penalties = [
        step(model, x, functional.r1, torch.float16, scaler),
        step(twin, x, functional.r1, torch.float16),
    ]
    assert torch.equal(*penalties) and penalties[0].dtype == torch.float32
    y, penalty = reference.r1(exact, x.double())
    (torch.nn.functional.softplus(-y).mean() + 5.0 * penalty).backward()
    torch.testing.assert_close(penalties[0].double(), penalty.detach(), rtol=1e-2, atol=0)
    for scaled, plain, truth in zip(model.parameters(), twin.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=0, atol=2e-4)
        torch.testing.assert_close(scaled.double(), truth - 0.1 * truth.grad, rtol=0, atol=2e-3)


def test_steps_that_overflow_are_skipped():
    model, x = mlp(1), torch.randn(8, 16)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    scales = [scaler.get_scale()]
    while all(torch.equal(before[name], now) for name, now in model.state_dict().items()):
        model.zero_grad()
        assert step(model, x, functional.r1, torch.float16, scaler).isfinite()
        scales.append(scaler.get_scale())
        assert len(scales) < 60
    assert len(scales) > 3 and scales[-2] < scales[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_scales_beyond_half_precision():
    """What multiplies the float32 norms is never cast down by itself, only together with the small gradients."""
    model, x, scale = mlp(3), torch.randn(8, 16), 2.0**18
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    gradients = []
    for low in (True, False):
        with region(torch.float16, enabled=low):
            _, norms = gradreg_fast.jacobian_sqnorm(model, x)
        gradients.append(torch.autograd.grad(scale * norms.sum(), [layer.weight for layer in model[::2]]))
    for mine, expected in zip(*gradients, strict=True):
        assert (mine - expected).norm() <= 1e-2 * expected.norm()


@EACH_BACKEND
def test_scaled_losses_of_critics_stay_in_range():
    """Adjoints are scaled, as eager scales them, never activations: these are large here and the adjoints small."""
    model, x, scale = mlp(1, leaky), 200 * torch.randn(8, 16), 2.0**10
    with torch.no_grad():
        model[2].weight.mul_(1e-2)
    gradients = []
    for low in (True, False):
        with region(torch.float16, enabled=low):
            y, g = gradreg_fast.value_and_vjp(model, x)
        loss = scale * (y.float().sum() + g.square().sum())
        gradients.append(torch.autograd.grad(loss, model[0].weight)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-2 * gradients[1].norm()


@pytest.mark.parametrize("around", [False, True], ids=["region within", "region around"])
def test_compiled_steps(around):
    make, shape = NETWORKS["dense"]
    model, x, kind = make(), torch.randn(shape), torch.get_default_device().type

    def penalised():
        y, penalty = functional.jacobian_frobenius(model, x)
        return y.float().square().mean() + penalty

    def within():
        with torch.autocast(kind, torch.bfloat16):
            return penalised()

    def gradients(loss):
        return torch.autograd.grad(loss, list(model.parameters()))

    expected = within()
    if around:
        with region():
            loss = torch.compile(penalised, fullgraph=True, backend="aot_eager")()
    else:
        loss = torch.compile(within, fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    for mine, theirs in zip(gradients(loss), gradients(expected), strict=True):
        assert mine.dtype == torch.float32 and (mine - theirs).norm() <= 1e-2 * theirs.norm()
