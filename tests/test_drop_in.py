"""convert(): a drop-in that shares everything with its model and keeps the user's own lines."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradreg_fast
from gradreg_fast import convert
from gradreg_fast.backend import KERNELS, current
from tests.flops import count
from tests.parity import WithoutRule, assert_parity, compare, evaluate, recorded_gradient, value_and_vjp

pytestmark = [pytest.mark.usefixtures("float64", "each_backend"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def mlp(outputs=2, make=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 5), make(), nn.Linear(5, 3), make(), nn.Linear(3, outputs))


def drop_in(model, x, cotangent=None):
    return value_and_vjp(convert(model), x, cotangent)


def assert_drop_in(model, x):
    """y and g of the user's lines, with cotangents that are given, absent and made from y."""
    cotangent = torch.randn(model(x).shape) if not model.training else None
    assert_parity(model, drop_in, value_and_vjp, x)
    if cotangent is not None:
        assert_parity(model, drop_in, value_and_vjp, x, cotangent)
    assert_parity(
        model,
        lambda m, x: loss_gradient(convert(m), x),
        loss_gradient,
        x,
    )
    assert_parity(
        model,
        lambda m, x: penalty_alone(convert(m), x),
        penalty_alone,
        x,
    )


def loss_gradient(model, x):
    """Double backpropagation."""
    y = model(x)
    loss = y.sin().square().flatten(1).sum(1) if y.dim() > 1 else y.sin().square()
    return loss, recorded_gradient(loss, x, torch.ones_like(loss)).square().flatten(1).sum(1)


def penalty_alone(model, x):
    return (value_and_vjp(model, x)[1],)


def weight_normed():
    model = mlp()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    parametrizations.orthogonal(model[4])
    return model


def old_weight_normed():
    model = mlp()
    nn.utils.weight_norm(model[0])
    nn.utils.spectral_norm(model[2])
    return model


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def tied():
    layer, model = nn.Linear(4, 4), mlp()
    model[0] = layer
    model[2] = nn.Linear(4, 3)
    model.insert(1, layer)
    model[-1].weight = nn.Parameter(torch.randn(2, 3))
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 4), model)


def hooked():
    model = mlp()
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    model[2].register_full_backward_hook(lambda module, below, above: (below[0] * 1.0,))
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model.register_forward_hook(lambda module, inputs, output: output.square())
    return model


class Region(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.below, self.inner, self.above = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.below(x))
        return self.above(checkpoint(self.inner, h, use_reentrant=self.reentrant))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        h = self.act(self.first(x)) * 3
        h += 1
        return self.last(h.mul_(2).tanh_())


class ControlFlow(nn.Module):
    """Only its submodules can be traced."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
        self.branches = nn.ModuleList([mlp_of(5), mlp_of(5)])
        self.norm = nn.BatchNorm1d(2)
        self.named = nn.ModuleDict({"act": nn.Sequential(nn.Tanh(), nn.Linear(2, 2))})

    def forward(self, x):
        h = self.trunk(x)
        y = self.branches[0](h) if h.sum() > 0 else self.branches[1](h)
        return self.named["act"](self.norm(y))


def mlp_of(width):
    return nn.Sequential(nn.Linear(width, 3), nn.Softplus(), nn.Linear(3, 2))


class StochasticDepth(nn.Module):
    """As timm writes it: one random number a sample."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        branch = torch.tanh(self.branch(h))
        kept = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(0.5)
        kept.div_(0.5)
        return self.last(h + branch * kept)


MODELS = {
    "stochastic depth": StochasticDepth,
    "smooth": mlp,
    "one output": lambda: mlp(1),
    "piecewise linear": lambda: mlp(3, nn.ReLU),
    "piecewise linear critic": lambda: mlp(1, lambda: nn.LeakyReLU(0.2)),
    "a layer": lambda: nn.Linear(4, 2),
    "without a rule": lambda: nn.Sequential(nn.Linear(4, 3), WithoutRule(), nn.Linear(3, 2)),
    "nothing with a rule": WithoutRule,
    "batch statistics": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)),
    "evaluation": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).eval(),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Tanh(), nn.Linear(9, 2)),
    "synchronised statistics": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    ).eval(),
    "parametrised": weight_normed,
    "older parametrisations": old_weight_normed,
    "frozen": frozen,
    "frozen as a whole": lambda: mlp().requires_grad_(False),
    "tied": tied,
    "hooks": hooked,
    "checkpointed region": Region,
    "in place": InPlace,
    "control flow": ControlFlow,
    "control flow, evaluation": lambda: ControlFlow().eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_parity(name):
    assert_drop_in(MODELS[name](), torch.randn(3, 4))


@pytest.mark.parametrize("outputs", [1, 3])
def test_images(outputs):
    def blocks():
        yield from (nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        yield from (nn.Conv2d(3, 4, 2), nn.Softplus(), nn.Flatten(), nn.Linear(4, outputs))

    x = torch.randn(3, 2, 4, 4)
    assert_drop_in(nn.Sequential(*blocks()), x)
    assert_drop_in(nn.Sequential(*blocks()).eval(), x.to(memory_format=torch.channels_last))
    piecewise_linear = [layer for layer in blocks() if not isinstance(layer, (nn.Softplus, nn.BatchNorm2d))]
    assert_drop_in(nn.Sequential(*piecewise_linear), x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        h = self.trunk(x)
        return self.head(h + self.branch(h))


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_normalisations_by_compiled_passes():
    model, x = Residual(), torch.randn(3, 2, 5, 5)
    assert_drop_in(model, x)
    if current() == KERNELS[x.device.type]:
        with Operations() as operations:
            y, g = drop_in(model, x.requires_grad_())
            (y.sum() + g.square().sum()).backward()
        assert {"norm_project", "norm_meet"} <= operations.names


CLOSED = set(MODELS) - {"nothing with a rule", "checkpointed region", "control flow", "control flow, evaluation"}


@pytest.mark.parametrize("name", sorted(CLOSED - {"hooks"}))
def test_the_closed_form_is_used(name):
    y = convert(MODELS[name]())(torch.randn(3, 4, requires_grad=True))
    assert type(y.grad_fn).__name__ in ("_ValueBackward", "_OneOutputBackward")


@pytest.mark.parametrize("make", [ControlFlow, Region])
def test_what_cannot_be_traced_is_converted_in_pieces(make):
    y, found, seen = convert(make())(torch.randn(3, 4, requires_grad=True)), [], set()
    stack = [y.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.append(type(node).__name__)
            stack += [below for below, _ in node.next_functions]
    if make is Region:
        assert "_ValueBackward" not in found or found.count("_ValueBackward") == 1
    else:
        assert found.count("_ValueBackward") == 4


def test_everything_is_shared():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1))
    converted = convert(model)
    assert isinstance(converted, nn.Sequential)
    assert [*converted.state_dict()] == [*model.state_dict()]
    assert all(a is b for a, b in zip(converted.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(converted.modules(), model.modules(), strict=True) if a is not converted)
    converted.eval()
    assert not model.training
    assert not model[1].training
    model.train()
    assert converted.training
    converted.float()
    assert model[0].weight.dtype == torch.float32
    model.double()
    converted.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    assert not model[0].weight.any()
    model.note = "seen"
    assert converted.note == "seen"
    model.append(nn.Tanh())
    assert len(converted) == 5
    converted.register_buffer("extra", torch.ones(1))
    assert "extra" in model.state_dict()
    assert convert(converted) is converted


def test_copies_and_pickles():
    model, x = mlp(), torch.randn(3, 4)
    expected = evaluate(drop_in, model, [x])
    buffer = io.BytesIO()
    torch.save(convert(model), buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(convert(model)), pickle.loads(pickle.dumps(convert(model)))]
    for twin in (*twins, torch.load(buffer, weights_only=False)):
        assert type(twin) is type(convert(model))
        compare(evaluate(value_and_vjp, twin, [x]), expected)
        with torch.no_grad():
            twin[0].weight.zero_()
        compare(evaluate(drop_in, model, [x]), expected)
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    parametrizations.weight_norm(model[0])  # which PyTorch copies, but does not pickle
    compare(evaluate(value_and_vjp, copy.deepcopy(convert(model)), [x]), evaluate(drop_in, model, [x]))
    both = copy.deepcopy([model, convert(model)])
    assert both[0][0] is both[1][0]
    assert both[0][0] is not model[0]


def test_slices_and_replicas():
    model, x = mlp(), torch.randn(3, 4)
    converted = convert(model)
    assert_parity(model[:3], lambda m, x: value_and_vjp(convert(model)[:3], x), value_and_vjp, x)
    replica = converted._replicate_for_data_parallel()
    torch.testing.assert_close(replica(x), model(x))


def test_converted_models_are_models():
    """As a submodule, and for the penalties."""
    model, x = mlp(1), torch.randn(3, 4)
    outer = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), convert(model))
    assert_drop_in(outer, x)
    assert gradreg_fast.functional.r1(convert(model), x)[1] == gradreg_fast.functional.r1(model, x)[1]


def changed(model):
    yield model.eval()
    model[1] = nn.Sigmoid()
    yield model
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    yield model
    parametrizations.weight_norm(model[2])
    yield model
    parametrize.remove_parametrizations(model[2], "weight")
    model[4].bias = None
    yield model
    handle = model.register_forward_hook(lambda module, inputs, output: output.sin())
    yield model
    handle.remove()
    yield model.requires_grad_(False)


def test_later_changes_are_noticed():
    model, x = mlp(), torch.randn(3, 4)
    converted = convert(model)
    for state in changed(model):
        assert_parity(state, lambda m, x: value_and_vjp(converted, x), value_and_vjp, x)


@pytest.mark.parametrize("result", ["tuple", "dict", "several"])
def test_results_of_any_form(result):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            y = self.inner(x)
            return {"tuple": lambda: (y, None, 3), "dict": lambda: {"y": y}, "several": lambda: [y, y * 2]}[result]()

    model, x = Wrapped(), torch.randn(3, 4)

    def lines(model, x):
        found = model(x)
        assert type(found) is {"tuple": tuple, "dict": dict, "several": list}[result]
        y = found["y"] if result == "dict" else found[0]
        last = found[1] if result == "several" else y
        return y, recorded_gradient(last, x, torch.ones_like(y))

    assert_parity(model, lambda m, x: lines(convert(m), x), lines, x)


def test_a_plain_backward_pass():
    """Without a penalty nothing is computed that autograd would not."""
    model, x = mlp(3, nn.Softplus), torch.randn(64, 4)

    def step(model, x):
        model(x.clone().requires_grad_()).square().sum().backward()

    with gradreg_fast.backend("torch"):
        assert count(lambda: step(convert(model), x)) == count(lambda: step(model, x))
    assert_parity(model, lambda m, x: (convert(m)(x),), lambda m, x: (m(x),), x)
    assert type(convert(model)(x).grad_fn).__name__ != "_ValueBackward"  # x requires no gradient
    with torch.no_grad():
        assert convert(model)(x.requires_grad_()).grad_fn is None


@pytest.mark.parametrize(("make", "outputs", "units"), [(nn.Tanh, 3, 6), (nn.ReLU, 1, 4)], ids=["smooth", "critic"])
def test_a_penalised_step_takes_the_four_sweeps(make, outputs, units):
    """In units of one forward's products: 6, or 4 for piecewise linear critics."""
    model = nn.Sequential(nn.Linear(16, 16), make(), nn.Linear(16, 16), make(), nn.Linear(16, outputs))
    x = torch.randn(8, 16, requires_grad=True) * 1  # PyTorch's counter takes no leaf

    def step():
        y = convert(model)(x)
        g = recorded_gradient(y, x, torch.ones_like(y))
        (y.square().sum() + g.square().sum()).backward()

    with gradreg_fast.backend("torch"):
        assert count(step) <= units * count(lambda: model(x.detach()))


def test_parameter_gradients_that_nobody_asked_for():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    x = torch.randn(8, 16, requires_grad=True) * 1
    forward = count(lambda: model(x.detach()))
    with gradreg_fast.backend("torch"):
        y = convert(model)(x)
        for create in (False, True):
            ask = partial(torch.autograd.grad, y.square().sum(), x, create_graph=create, retain_graph=True)
            assert count(ask) == forward
        g = recorded_gradient(y, x, torch.ones_like(y))
        only_x = count(lambda: torch.autograd.grad(g.square().sum(), x, retain_graph=True))
        everything = count(lambda: torch.autograd.grad(g.square().sum(), [x, *model.parameters()], allow_unused=True))
    assert only_x < everything


def test_third_derivatives_name_the_alternative():
    model, x = mlp(), torch.randn(3, 4, requires_grad=True)
    y = convert(model)(x)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        h.sum().backward()
    (w,) = torch.autograd.grad(convert(model)(x).sum(), model[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        w.square().sum().backward()


def test_two_gradients_of_one_result():
    """Each with a cotangent of its own; one of them not used in the end; asked again with a retained graph."""
    for make in (nn.Tanh, nn.ReLU):
        for outputs in (1, 3):

            def lines(model, x, first, second):
                y = model(x)
                a = recorded_gradient(y, x, first)
                b = recorded_gradient(y, x, second)
                recorded_gradient(y, x, second)
                return y, a, b, a * b

            model, x = mlp(outputs, make), torch.randn(3, 4)
            c = torch.randn(2, 3, outputs)
            assert_parity(model, lambda m, *a: lines(convert(m), *a), lines, x, *c)


def test_what_one_backward_pass_leaves_is_not_the_nexts():
    """Of two backward passes through one pull, the first asks for the cotangent's gradient alone."""
    model, x, c = mlp(), torch.randn(3, 4, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    found = []
    for net in (model, convert(model)):
        y = net(x)
        (g,) = torch.autograd.grad(y, x, c, create_graph=True)
        penalty = g.square().sum()
        first = torch.autograd.grad(penalty, c, retain_graph=True)
        second = torch.autograd.grad(y.sum(), [x, *model.parameters()], retain_graph=True)
        third = torch.autograd.grad(penalty + y.sum(), [x, c, *model.parameters()], retain_graph=True)
        fourth = torch.autograd.grad(penalty + y.sum(), [x, c, *model.parameters()])
        found.append([*first, *second, *third, *fourth])
    for mine, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_backward_with_create_graph_fills_the_inputs_gradient():
    """The other way to write it: ``y.backward(create_graph=True)`` and then ``x.grad``."""
    model, x = mlp(), torch.randn(3, 4)

    def lines(model, x):
        y = model(x)
        y.sum().backward(create_graph=True, inputs=[x])
        g, x.grad = x.grad, None
        return y, g

    assert_parity(model, lambda m, x: lines(convert(m), x), lines, x)


@pytest.mark.parametrize("model", [torch.tanh, None, "model"], ids=["function", "none", "name"])
def test_only_modules(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        convert(model)


def test_scripts_are_left_alone():
    script = torch.jit.script(mlp())
    assert convert(script) is script


@pytest.mark.parametrize("outputs", [1, 3])
def test_what_is_too_small_to_gain_is_left_to_autograd(outputs):
    """From the second call on, unless a backend was chosen; and buffers are not updated twice."""
    model, x = mlp(outputs), torch.randn(3, 4, requires_grad=True)
    parametrizations.spectral_norm(model[0])
    twin = copy.deepcopy(model)
    with gradreg_fast.backend("auto"):
        names = [type(convert(model)(x).grad_fn).__name__ for _ in range(3)]
        assert names[0] in ("_ValueBackward", "_OneOutputBackward")
        assert names[1] == names[2] == type(model(x).grad_fn).__name__
        for _ in range(4):
            twin(x)
        assert_same_buffers(model, twin)
        wide = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))
        rows = torch.randn(64, 512, requires_grad=True)
        names = [type(convert(wide)(rows).grad_fn).__name__ for _ in range(2)]
        assert names[0] == names[1] != type(wide(rows).grad_fn).__name__


def assert_same_buffers(model, twin):
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)
