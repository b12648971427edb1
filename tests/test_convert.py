"""Conversion: remembered by identity, forgotten with the model, renewed when the model has changed."""

import copy
import gc
import pickle
import random
import weakref

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import gradreg_fast
from gradreg_fast.convert import graph_of
from tests.parity import assert_parity, assert_primitives, compare, evaluate, is_opaque, manual_seed, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64")


def network():
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.5),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    )


X = (5, 4)


def test_converted_once():
    model, twin = network(), network()
    graph = graph_of(model)
    assert graph_of(model) is graph
    assert graph_of(twin) is not graph
    gradreg_fast.value_and_vjp(model, torch.randn(X))[1].sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    assert graph_of(model) is graph


@pytest.mark.parametrize("make", [network, lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()), lambda: nn.PReLU()])
def test_forgotten_with_the_model(make):
    model = make()
    for quantity in (
        gradreg_fast.value_and_vjp,
        gradreg_fast.jacobian_sqnorm,
        gradreg_fast.functional.jacobian_softmax,
    ):
        quantity(model, torch.randn(X))[1].sum().backward()
    dead = [weakref.ref(model), weakref.ref(graph_of(model)), *map(weakref.ref, model.children())]
    dead += [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert [reference() for reference in dead] == [None] * len(dead)


def test_results_are_freed():
    """A step leaves nothing behind."""
    model = network()
    y, g = gradreg_fast.value_and_vjp(model, torch.randn(X))
    (y.sum() + g.square().sum()).backward()
    dead = [weakref.ref(y.grad_fn), weakref.ref(g)]
    del y, g
    assert [reference() for reference in dead] == [None, None]


def swap_layer(model):
    model[5] = nn.Sigmoid()


def replace_activation_of_the_same_type(model):
    model[2] = nn.LeakyReLU(0.7)


def add_hook(model):
    model[4].register_forward_hook(lambda module, inputs, output: output * 2)


def add_hook_to_the_model(model):
    model.register_forward_hook(lambda module, inputs, output: output.square())


def change_slope(model):
    model[2].negative_slope = 0.9


def change_dropout(model):
    model[3].p = 0.1


def change_eps(model):
    model[1].eps = 0.5


def change_momentum(model):
    model[1].momentum = None


def evaluate_all(model):
    model.eval()


def evaluate_normalisation(model):
    model[1].eval()


def evaluate_dropout(model):
    model[3].eval()


def freeze(model):
    model[0].requires_grad_(False)


def freeze_all(model):
    model.requires_grad_(False)


def replace_parameter(model):
    model[4].weight = nn.Parameter(torch.randn(5, 6))


def replace_data(model):
    model[4].weight.data = torch.randn(5, 6)


def remove_bias(model):
    model[4].bias = None


def parametrise(model):
    parametrizations.weight_norm(model[4])


def append(model):
    model.append(nn.Softplus())


def delete(model):
    del model[3]


def replace_forward(model):
    model[5].forward = torch.sin


def untrack(model):
    model[1].track_running_stats = False
    model[1].running_mean = model[1].running_var = None


def tie(model):
    model[4].bias = nn.Parameter(torch.randn(5))
    model[0].bias = model[1].bias


CHANGES = [
    swap_layer,
    replace_activation_of_the_same_type,
    add_hook,
    add_hook_to_the_model,
    change_slope,
    change_dropout,
    change_eps,
    change_momentum,
    evaluate_all,
    evaluate_normalisation,
    evaluate_dropout,
    freeze,
    freeze_all,
    replace_parameter,
    replace_data,
    remove_bias,
    parametrise,
    append,
    delete,
    replace_forward,
    untrack,
    tie,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_models_are_converted_anew(change):
    model, x = network(), torch.randn(X)
    gradreg_fast.value_and_vjp(model, x)
    gradreg_fast.jacobian_sqnorm(model, x)
    change(model)
    assert_primitives(model, x)


@pytest.mark.parametrize("change", [freeze, evaluate_all, change_slope, add_hook], ids=lambda change: change.__name__)
def test_changed_between_forward_and_backward(change):
    """The backward pass belongs to the forward as it was."""
    model, twin = network(), None
    twin, x = copy.deepcopy(model), torch.randn(X)
    results = []
    for net, changed in ((model, True), (twin, False)):
        manual_seed(2)
        y, g = gradreg_fast.value_and_vjp(net, x)
        if changed and change is not freeze:
            change(net)
        (y.sin().sum() + g.square().sum()).backward()
        results.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_back_and_forth():
    model, x = network(), torch.randn(X)
    for training in (True, False, True):
        assert_primitives(model.train(training), x)


def test_hooks_come_and_go():
    model, x = network().eval(), torch.randn(X)
    plain = evaluate(gradreg_fast.value_and_vjp, model, [x])
    handle = model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert_primitives(model, x)
    handle.remove()
    compare(evaluate(gradreg_fast.value_and_vjp, model, [x]), plain)
    assert not is_opaque(model)


def test_parametrisations_come_and_go():
    model, x = network().eval(), torch.randn(X)
    graph_of(model)
    parametrizations.spectral_norm(model[0])
    assert_primitives(model, x)
    parametrize.remove_parametrizations(model[0], "weight")
    assert_primitives(model, x)
    assert not is_opaque(model)


class Settings(nn.Module):
    """Its forward depends on attributes of all kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.spare = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(4, 5)
        self.factor = 1.0
        self.mode = "tanh"
        self.sizes = (1, 5)
        self.function = torch.tanh
        self._private = 2.0
        self.flag = False
        self.register_buffer("offset", None)

    def forward(self, x):
        h = (self.spare if self.flag else self.first)(x) * self.factor * self._private
        h = torch.tanh(h) if self.mode == "tanh" else torch.sigmoid(h)
        if self.offset is not None:
            h = h + self.offset
        return self.last(self.function(h).view(-1, *self.sizes).flatten(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", 3.0),
        ("mode", "sigmoid"),
        ("sizes", (5, 1)),
        ("function", torch.sin),
        ("_private", -1.0),
        ("flag", True),
        ("offset", torch.ones(5, dtype=torch.float64)),
    ],
)
def test_attributes(name, value):
    model, x = Settings(), torch.randn(X)
    assert_primitives(model, x)
    setattr(model, name, value)
    assert_primitives(model, x)


def test_parameters_that_appear():
    model, x = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)), torch.randn(X)
    assert_primitives(model, x)
    model[0].bias = nn.Parameter(torch.randn(5))
    assert_primitives(model, x)


@pytest.mark.parametrize("outputs", [1, 3])
def test_autocast(outputs):
    """In an autocast region the numbers are eager autocast's."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, outputs)).float()
    x = torch.randn(6, 8, dtype=torch.float32)
    results = []
    for quantity in (gradreg_fast.value_and_vjp, value_and_vjp):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, g = quantity(model, leaf)
            loss = y.float().square().mean() + g.float().square().sum(1).mean()
        gradients = torch.autograd.grad(loss, [leaf, *model.parameters()])
        results.append([y, g, *gradients])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        error = (mine.double() - theirs.double()).norm()
        assert error <= 2e-2 * theirs.double().norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gradreg_fast.jacobian_sqnorm(model, x)[0].dtype == torch.bfloat16
    assert gradreg_fast.jacobian_sqnorm(model, x)[0].dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        assert not is_opaque(model)


def test_copies_and_pickles():
    model, x = network().eval(), torch.randn(X)
    expected = evaluate(gradreg_fast.value_and_vjp, model, [x])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        compare(evaluate(gradreg_fast.value_and_vjp, twin, [x]), expected)
        with torch.no_grad():
            twin[0].weight.zero_()
        compare(evaluate(gradreg_fast.value_and_vjp, model, [x]), expected)
        assert_parity(twin, gradreg_fast.value_and_vjp, value_and_vjp, x)
    assert "gradreg" not in repr(vars(model)).lower()


def test_random_states_are_left_alone():
    class Drawing(nn.Module):
        def forward(self, x):
            return x * torch.rand(4) * random.random() * numpy.random.rand()

    for model in (network(), Drawing()):
        random.seed(0)
        numpy.random.seed(0)
        manual_seed(0)
        states = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
        graph_of(model)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert str(numpy.random.get_state()) == states[2]


def test_a_model_is_not_changed():
    model = network()
    before = {name: (type(module), dict(module.__dict__)) for name, module in model.named_modules()}
    gradreg_fast.value_and_vjp(model, torch.randn(X))
    for name, module in model.named_modules():
        kind, attributes = before[name]
        assert type(module) is kind
        assert module.__dict__.keys() == attributes.keys()


def test_in_place_activation_changes_what_others_read():
    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            x = self.conv(x)
            y = self.function(x)
            return (x + y).flatten(1)

    for function in (torch.relu_, nn.ReLU(inplace=True), nn.functional.relu, torch.tanh_, lambda x: x.sigmoid_()):
        assert_primitives(Net(function), torch.randn(2, 1, 4, 4))


def test_in_place_changes_of_views():
    class Net(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.first(x)
            view = h.view(-1, 2, 3)
            if self.kind == "view":
                view.relu_()
            elif self.kind == "base":
                h.relu_()
            elif self.kind == "slice":
                h[:, 0].mul_(2)
            elif self.kind == "base of a detached view":
                view = view.detach()
                h.mul_(2)
            elif self.kind == "detached":
                view = h.sin().detach()
                view.mul_(h.shape[1])
            elif self.kind == "new":
                view = torch.zeros_like(h)
                view.add_(h).mul_(view > 0)
            elif self.kind == "made of parameters":
                view = functional.relu_(self.last.weight * 2).sum(0) * h
            return self.last(torch.tanh(h) + view.flatten(1))

    for kind in ("view", "base", "slice", "base of a detached view", "detached", "new", "made of parameters"):
        assert_primitives(Net(kind), torch.randn(3, 4))


def test_in_place_changes_of_a_result_reach_all_its_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.first(x)
            h.add_(1).mul_(self.last.weight[0])
            h.mul_(2).sub_(x.sum(1, keepdim=True))
            return self.last(torch.tanh(h))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(3, 4))


def test_subclasses_and_containers():
    class Wide(nn.Linear):
        def forward(self, x):
            return super().forward(x).sin()

    class Stack(nn.Sequential):
        def forward(self, x):
            for layer in reversed(self):
                x = layer(x)
            return x

    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
            self.named = nn.ModuleDict({"a": nn.Tanh(), "b": nn.ReLU()})

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = self.named["a" if i % 2 else "b"](layer(x))
            return x

    for model in (
        Wide(4, 3),
        nn.Sequential(Wide(4, 3), nn.Tanh()),
        Stack(nn.Linear(3, 2), nn.Tanh(), nn.Linear(4, 3)),
        Lists(),
    ):
        assert_primitives(model, torch.randn(X))


def test_model_called_with_defaults():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x, scale=2.0, *, shift=None):
            y = self.inner(x) * scale
            return torch.tanh(y) if shift is None else y + shift

    assert_primitives(Net(), torch.randn(X))


class BySizes(nn.Module):
    """A forward that branches on sizes, counts with them and makes tensors of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.token, self.last = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 2)

    def forward(self, x):
        if x.shape[-1] % 2:
            x = functional.pad(x, (0, 1))
        h = self.drop(self.norm(self.conv(x))).flatten(2).mT  # [B, pixels, 4]
        h = h + torch.arange(h.shape[1]).unsqueeze(1) / 10
        spread = h.reshape(min(4, len(h)), -1, *h.shape[1:]).var(0).mean().expand(len(h), 1, 4)
        h = torch.cat([self.token.expand(h.size(0), -1, -1), h, spread], 1)
        seen = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril()
        h = (h @ h.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ h
        return self.last(torch.tanh(h.mean(1)))


def test_a_forward_that_branches_on_sizes_has_a_graph_for_each():
    model = BySizes()
    assert graph_of(model).whole
    for shape in ((4, 2, 3, 3), (2, 2, 3, 2)):
        before = copy.deepcopy(model.state_dict())
        graph = graph_of(model, examples=(torch.randn(shape), []))
        assert not graph.whole and graph is graph_of(model, examples=(torch.randn(shape), []))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(hasattr(node.rule, "reason") for node in graph.nodes if node and node.inputs)
        assert_primitives(model, torch.randn(shape))
        assert_parity(
            model, lambda model, x: value_and_vjp(gradreg_fast.convert(model), x), value_and_vjp, torch.randn(shape)
        )
    graphs = {graph_of(model, examples=(torch.randn(size, 2, 2, 2), [])) for size in range(2, 16)}
    assert any(graph.whole for graph in graphs)  # not for every size that comes along


def shifted_window_attention(x, weight, bias=None):
    """Kept whole under fx, as torchvision's is, by whose name it goes: branches on sizes, writes into a new mask."""
    if x.shape[1] > 2:
        x = torch.roll(x, 1, 1)
    if bias is not None:
        bias = bias.clone()
        bias[1:].zero_()
    mask = x.new_zeros((x.shape[1], x.shape[1]))
    mask[:1, 1:] = -3.0
    h = functional.linear(x, weight, bias)
    return (h @ h.mT + mask).softmax(-1) @ h


shifted_window_attention.__module__ = "torchvision.models.swin_transformer"
torch.fx.wrap("shifted_window_attention")


@pytest.mark.parametrize("bias", [False, True], ids=["traceable", "not traceable"])
def test_torchvisions_whole_functions_are_opened_where_that_helps(bias):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.last = nn.Linear(4, 4, bias=bias), nn.Linear(4, 2)

        def forward(self, x):
            h = shifted_window_attention(x, self.linear.weight, self.linear.bias)
            return self.last(torch.tanh(h).mean(1))

    model, x = Block(), torch.randn(3, 5, 4)
    graph = graph_of(model, examples=(x, []))
    opaque = [node.name for node in graph.nodes if node and hasattr(node.rule, "reason")]
    assert not graph.whole and opaque == (["shifted_window_attention"] if bias else [])
    assert_primitives(model, x)


@pytest.mark.parametrize("make", [lambda x: x.new_zeros(x.shape), lambda x: torch.zeros(5, 4)], ids=["like x", "alone"])
@pytest.mark.parametrize(
    "write",
    [
        lambda made, x, bias: made.__setitem__((slice(None), slice(2)), x[:, :2]),
        lambda made, x, bias: made.__setitem__((slice(None), 0), bias[0]),
        lambda made, x, bias: made.masked_fill_(x > 0, 2.0),
        lambda made, x, bias: torch.mul(x.detach(), 2, out=made),
    ],
    ids=["values", "a parameter", "by a mask", "out"],
)
def test_what_is_written_into_a_new_tensor_is_not_lost(make, write):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            if x.shape[0] > 1:
                x = x * 2
            made = make(x)
            write(made, x, self.last.bias)
            return self.last(torch.tanh(made + x))

    assert_primitives(Net(), torch.randn(5, 4))


def test_a_tensor_that_somebody_else_holds_is_no_constant():
    outside = torch.ones(3)

    class Net(nn.Module):
        def forward(self, x):
            return (x * outside + torch.tensor([1.0, 2.0, 3.0]) * torch.arange(3)).sin()

    model, x = Net(), torch.randn(2, 3)
    assert graph_of(model).whole
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x)
    outside.mul_(2)
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x)
