"""Training steps under ``torch.compile(fullgraph=True)``: the numbers of the uncompiled step, few compilations."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.backend import library
from gradreg_fast.modules import WithPenalty


def mlp(outputs=1, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(5, 16), activation(), nn.Linear(16, outputs)).double()


def autoencoder(*widths):
    layers = (nn.Sequential(nn.Linear(*pair), nn.Tanh()) for pair in itertools.pairwise(widths))
    return nn.Sequential(*layers).double()


def convolutional(normalised=False):
    inner = [nn.BatchNorm2d(4), nn.Dropout(0.0)] if normalised else [nn.ReLU(), nn.MaxPool2d(2)]
    size = 144 if normalised else 36
    return nn.Sequential(nn.Conv2d(3, 4, 3), *inner, nn.Tanh(), nn.Flatten(), nn.Linear(size, 1)).double()


def relu_network():
    """Large enough for the kernels that take active units alone."""
    layers = [nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 280), nn.ReLU(), nn.Linear(280, 30)]
    return nn.Sequential(*layers).double()


def rows(B=7):
    return torch.randn(B, 5, dtype=torch.float64)


def wide_mlp():
    """Large enough for a Gram matrix, in blocks."""
    return nn.Sequential(nn.Linear(600, 260), nn.Tanh(), nn.Linear(260, 30)).double()


def wide_rows(B=7, width=40):
    return torch.randn(B, width, dtype=torch.float64)


def images(B=7):
    return torch.randn(B, 3, 8, 8, dtype=torch.float64)


def joined(result):
    outputs, penalty = result
    return torch.cat(outputs), penalty


CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0])
CALLS = {
    "double_backprop": (lambda: mlp(3), lambda model, x: functional.double_backprop(model, x, CLASSES), rows),
    "jacobian_frobenius": (lambda: mlp(3), functional.jacobian_frobenius, rows),
    "estimate": (lambda: mlp(3), lambda model, x: functional.jacobian_frobenius(model, x, 2), rows),
    "contractive": (lambda: mlp(3), functional.contractive, rows),
    "jacobian_softmax": (lambda: mlp(3), functional.jacobian_softmax, rows),
    "spectral_projection": (lambda: mlp(3), functional.spectral_projection, rows),
    "gradient_penalty": (mlp, functional.gradient_penalty, rows),
    "dragan": (mlp, functional.dragan, rows),
    "r1": (lambda: mlp(1, nn.LeakyReLU), functional.r1, rows),
    "r1_r2": (mlp, lambda model, x: joined(functional.r1_r2(model, x, x.detach() + 1)), rows),
    "eikonal": (lambda: mlp(1, nn.Softplus), functional.eikonal, rows),
    "gradient_matching": (mlp, lambda model, x: functional.gradient_matching(model, x, x.detach().flip(0)), rows),
    "confidence_penalty": (lambda: mlp(3), functional.confidence_penalty, rows),
    "value_and_vjp": (lambda: mlp(3), gradreg_fast.value_and_vjp, rows),
    "jacobian_sqnorm": (lambda: mlp(3), gradreg_fast.jacobian_sqnorm, rows),
    "recompute": (mlp, lambda model, x: functional.r1(model, x, save="recompute"), rows),
    "WithPenalty": (lambda: WithPenalty(mlp(), "r1"), lambda model, x: model(x), rows),
    "bottleneck": (lambda: autoencoder(5, 16, 2, 16, 5), functional.jacobian_frobenius, rows),
    "wide layers": (wide_mlp, functional.jacobian_frobenius, lambda: wide_rows(width=600)),
    "active units": (relu_network, functional.jacobian_frobenius, wide_rows),
    "convolutions": (convolutional, functional.jacobian_frobenius, images),
    "batch normalisation": (lambda: convolutional(True), functional.gradient_penalty, images),
}


def step(call, model, x):
    y, penalty = call(model, x)
    return y.square().mean() + penalty.square().mean()


def numbers(step, model, x):
    """The loss, all gradients and the buffers after a step."""
    torch.manual_seed(3)
    model.zero_grad()
    x = x.clone().requires_grad_()
    loss = step(model, x)
    loss.backward()
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in (x, *model.parameters())]
    return [loss.detach(), *gradients, *model.buffers()]


def assert_same(mine, wanted):
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("name", CALLS)
def test_every_function(name):
    assert_compiles_right(*CALLS[name])


@pytest.mark.parametrize(
    "name", ["value_and_vjp", "jacobian_sqnorm", "estimate", "recompute", "convolutions", "batch normalisation"]
)
def test_primitives_in_pytorch_lines(name, pytorch_lines):
    """Which Dynamo sees through, as it does not through kernels; the functions above them are the same."""
    assert_compiles_right(*CALLS[name])


def assert_compiles_right(make, call, inputs):
    model, x = make(), inputs()
    twin = copy.deepcopy(model)
    compiled = torch.compile(lambda model, x: step(call, model, x), fullgraph=True, backend="aot_eager")
    assert_same(numbers(compiled, model, x), numbers(lambda model, x: step(call, model, x), twin, x))


@pytest.mark.parametrize("name", ["r1", "double_backprop", "active units", "convolutions"])
def test_batches_of_every_size(name, each_backend):
    """At most one compilation for each form of call, whatever the batch."""
    make, call, inputs = CALLS[name]
    if name == "double_backprop":
        call = lambda model, x: functional.double_backprop(model, x, torch.zeros(x.shape[0], dtype=torch.long))  # noqa: E731
    model = make()
    compiled = torch.compile(lambda model, x: step(call, model, x), fullgraph=True, backend="aot_eager", dynamic=True)
    for B in (7, 9, 12, 20):
        x = inputs(B)
        assert_same(numbers(compiled, model, x), numbers(lambda model, x: step(call, model, x), model, x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.skipif(library()[0] is None, reason="no compiled library")
def test_active_units_are_left_to_kernels():
    seen = []

    def recording(graph, _):
        seen.append(graph.code)
        return graph.forward

    compiled = torch.compile(
        lambda model, x: step(functional.jacobian_frobenius, model, x),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=recording),
    )
    numbers(compiled, relu_network(), wide_rows())
    forward, backward = seen
    assert "active_sqnorm." in forward and "active_sqnorm_gradients." in backward


def test_what_a_graph_depends_on_is_guarded():
    """Another model, another mode: never the first one's graph."""
    compiled = torch.compile(lambda model, x: step(functional.r1, model, x), fullgraph=True, backend="aot_eager")
    gentle, steep = (nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(slope), nn.Linear(4, 1)) for slope in (0.1, 0.9))
    dropping = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    x = torch.randn(6, 5)
    for model in (gentle, steep, dropping.train(), dropping.eval()):
        for mine, wanted in zip(
            numbers(compiled, model, x), numbers(lambda model, x: step(functional.r1, model, x), model, x), strict=True
        ):
            torch.testing.assert_close(mine, wanted)


def test_frozen_parameters():
    model, x = mlp(), rows()
    model[0].weight.requires_grad_(False)
    compiled = torch.compile(lambda model, x: step(functional.r1, model, x), fullgraph=True, backend="aot_eager")
    assert_same(numbers(compiled, model, x), numbers(lambda model, x: step(functional.r1, model, x), model, x))


@pytest.fixture
def autograd_traced():
    """Dynamo follows ``torch.autograd.grad`` inside what it compiles."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


class Conditional(nn.Module):
    """Without a second derivative in PyTorch: only the closed form can take this."""

    def __init__(self):
        super().__init__()
        self.inner, self.label, self.outer = nn.Linear(5, 16), nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x, label, scale=1.0):
        return self.outer(nn.functional.hardsigmoid(self.inner(x) + self.label(label)) * scale)


class Stateful(nn.Module):
    """Cannot become a graph: its forward changes an attribute."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = mlp(), None

    def forward(self, x):
        self.last = x.detach()
        return self.layer(x)


def conditional_call(model, x):
    return model(x, label=torch.ones(x.shape[0], 3, dtype=x.dtype), scale=2.0)


def user_lines(model, x, call=lambda model, x: model(x)):
    y = call(model, x)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return y.square().mean() + ((g.flatten(1).norm(dim=1) - 1) ** 2).mean()


CONVERTED = {
    "one output": (mlp, user_lines, rows),
    "several outputs": (lambda: mlp(3), user_lines, rows),
    "convolutions": (lambda: convolutional(True), user_lines, images),
    "conditional": (lambda: Conditional().double(), lambda m, x: user_lines(m, x, conditional_call), rows),
    "no penalty": (lambda: mlp(3), lambda model, x: model(x).square().mean(), rows),
    "left to PyTorch": (lambda: Stateful().double(), user_lines, rows),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(name, each_backend, autograd_traced):
    """The user's own lines around a converted model, in one graph."""
    make, step, inputs = CONVERTED[name]
    model, x = gradreg_fast.convert(make()), inputs()
    twin = copy.deepcopy(model)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(numbers(compiled, model, x), numbers(step, twin, x))
    if name == "left to PyTorch":
        assert_same([model.last], [twin.last])


@pytest.mark.parametrize("convert", [gradreg_fast.convert, lambda model: model], ids=["converted", "functional"])
def test_compilations_are_few(convert, autograd_traced):
    """One each for: static sizes, any size, a changing weight, a changing centre, the other mode, a single row."""
    model = convert(nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.1), nn.Linear(4, 1)).double())
    converted = hasattr(model, "_original")

    def train(model, x, weight, centre):
        if not converted:
            y, penalty = functional.gradient_penalty(model, x, centre)
            return y.mean() + weight * penalty
        y = model(x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.mean() + weight * ((g.norm(dim=1) - centre) ** 2).mean()

    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    calls = [(B, 1.0, 1.0, True) for B in (7, 7, 8, 9, 30)]
    calls += [(30, weight, 1.0, True) for weight in (0.5, 0.4, 0.3)]
    calls += [(30, 1.0, centre, True) for centre in (0.5, 0.4, 0.3)]
    calls += [(30, 1.0, 1.0, mode) for mode in (False, True, False)]
    for B, weight, centre, mode in [*calls, (1, 1.0, 1.0, True)]:
        x = rows(B).requires_grad_()
        loss = compiled(model.train(mode), x, weight, centre)
        torch.testing.assert_close(loss, train(model, x, weight, centre), rtol=1e-9, atol=1e-12)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


def test_arguments_that_dynamo_keeps_symbolic():
    critic, model = mlp(), mlp(3)

    def penalties(x, n, scale):
        exact = functional.jacobian_spectral_norm(model, x, n)[1]
        estimate = functional.jacobian_frobenius(model, functional.interpolate(x, x + 1), n)[1]
        return torch.stack([exact, estimate, functional.dragan(critic, x, scale)[1]])

    compiled = torch.compile(penalties, fullgraph=True, backend="aot_eager", dynamic=True)
    for B, n, scale in ((6, 1, 0.5), (7, 1, 0.4), (8, 2, 0.3)):
        x, results = rows(B), []
        for function in (compiled, penalties):
            torch.manual_seed(3)
            results.append(function(x, n, scale))
        assert_same(*results)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


CHANGES = {
    "slope": lambda model: setattr(model[1], "negative_slope", 0.9),
    "hook": lambda model: model[0].register_forward_hook(lambda module, arguments, y: 2 * y),
    "layer": lambda model: model.__setitem__(1, nn.Tanh()),
    "parametrisation": lambda model: nn.utils.parametrizations.weight_norm(model[0]),
    "weight": lambda model: setattr(model[0], "weight", nn.Parameter(2 * model[0].weight.detach())),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_later_changes_of_the_model_are_noticed(change):
    model, x = mlp(1, lambda: nn.LeakyReLU(0.1)), rows()
    compiled = torch.compile(lambda model, x: step(functional.r1, model, x), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_same(numbers(compiled, model, x), numbers(lambda model, x: step(functional.r1, model, x), model, x))
        change(model)


def test_inductor(each_backend):
    def train(model, x):
        y, penalty = functional.double_backprop(model, x, CLASSES)
        return nn.functional.cross_entropy(y, CLASSES) + 0.1 * penalty

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(7, 3, 8, 8)
    mine = numbers(torch.compile(train, fullgraph=True), model, x)
    for a, b in zip(mine, numbers(train, model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_reduced_overhead(autograd_traced):
    """On CUDA devices as CUDA graphs, replayed from the third step on; PyTorch's own lines give wrong numbers here."""
    model = gradreg_fast.convert(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    )
    twin = copy.deepcopy(model)
    compiled = torch.compile(user_lines, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        x = torch.randn(7, 3, 8, 8)
        for mine, wanted in zip(numbers(compiled, model, x), numbers(user_lines, twin, x), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in (*model.parameters(), *twin.parameters()):
                parameter -= 0.1 * parameter.sign()  # where they are: the graphs read the same memory
