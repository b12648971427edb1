"""Models of every kind: several inputs, keyword arguments, several results, what does not depend on x, and any mix."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import convert, functional
from tests.parity import assert_parity, compare, evaluate, flat, is_opaque, new_generator, recorded_gradient

pytestmark = pytest.mark.usefixtures("float64", "each_backend")

Result = namedtuple("Result", "logits features")


class Conditional(nn.Module):
    """A critic of x, given labels, a mask and a context; its result is `kind` of container."""

    def __init__(self, kind=None, untraceable=False):
        super().__init__()
        self.kind, self.untraceable = kind, untraceable
        self.embed = nn.Embedding(7, 5)
        self.context = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.first, self.last = nn.Linear(4, 5), nn.Sequential(nn.Linear(10, 6), nn.Softplus(), nn.Linear(6, 1))
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x, labels, context=None, *, mask=None, gain=1.0):
        h = torch.tanh(self.first(x)) * (gain * self.scale.exp())
        if self.untraceable and h.sum() > 1e9:
            h = h + 1
        h = torch.cat([h, self.embed(labels) if context is None else self.context(context)], 1)
        if mask is not None:
            h = h * mask
        y = self.last(h)
        return {
            None: lambda: y,
            "tuple": lambda: (h, y),
            "dict": lambda: OrderedDict(features=h, nested={"logits": [y]}),
            "named": lambda: Result(y, h),
        }[self.kind]()


OUTPUTS = {None: None, "tuple": 1, "dict": ("nested", "logits", 0), "named": "logits"}


def batch():
    return torch.randn(3, 4), torch.randint(7, (3,)), torch.randn(3, 3), (torch.rand(3, 10) < 0.7).double()


def oracle(model, x, output=None, **keywords):
    """y and the gradient of its sum with respect to x."""
    y = select(model(x, **keywords), output)
    return y, recorded_gradient(y, x, torch.ones_like(y))


def select(result, output):
    for step in output if isinstance(output, tuple) else () if output is None else (output,):
        result = getattr(result, step) if isinstance(step, str) and hasattr(result, step) else result[step]
    return result


CALLS = {
    "labels": lambda labels, context, mask: {"labels": labels},
    "labels and a mask": lambda labels, context, mask: {"labels": labels, "mask": mask},
    "context": lambda labels, context, mask: {"labels": None, "context": context, "gain": 0.5},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("untraceable", [False, True])
def test_conditional(call, kind, untraceable):
    """Gradients reach what is only given, too."""
    model, (x, labels, context, mask) = Conditional(kind, untraceable), batch()
    output = OUTPUTS[kind]

    def keywords(context, mask):
        return CALLS[call](labels, context, mask)

    def ours(model, x, context, mask):
        return gradreg_fast.value_and_vjp(model, x, model_kwargs=keywords(context, mask), output=output)

    def theirs(model, x, context, mask):
        return oracle(model, x, output, **keywords(context, mask))

    def drop_in(model, x, context, mask):
        return oracle(convert(model), x, output, **keywords(context, mask))

    def squared(model, x, context, mask):
        return functional.r1(model, x, "none", model_kwargs=keywords(context, mask), output=output)

    def squared_oracle(model, x, context, mask):
        y, g = theirs(model, x, context, mask)
        return y, g.square().sum(1)

    assert_parity(model, ours, theirs, x, context, mask)
    assert_parity(model, drop_in, theirs, x, context, mask)
    assert_parity(model, squared, squared_oracle, x, context, mask)


def test_a_conditional_critic_runs_by_rules():
    model, (x, labels, *_) = Conditional(), batch()
    y = convert(model)(x.requires_grad_(), labels)
    assert type(y.grad_fn).__name__ == "_ValueBackward"


@pytest.mark.parametrize("untraceable", [False, True])
def test_several_inputs_penalised(untraceable):
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 5), nn.Conv2d(1, 5, 2), nn.Linear(5, 1)

        def forward(self, x, image, *, offset):
            if untraceable and x.sum() > 1e9:
                x = x + 1
            h = torch.tanh(self.first(x)) + torch.tanh(self.second(image)).mean((2, 3)) + torch.sin(offset).unsqueeze(1)
            return self.last(torch.tanh(h)).squeeze(1)

    model, x, image, offset = Energy(), torch.randn(3, 4), torch.randn(3, 1, 2, 3), torch.randn(3)

    def ours(model, x, image, offset):
        y, gradients = gradreg_fast.value_and_vjp(model, (x, image), model_kwargs={"offset": offset})
        assert isinstance(gradients, tuple)
        return y, *gradients

    def theirs(model, x, image, offset):
        y = model(x, image, offset=offset)
        return y, *torch.autograd.grad(y.sum(), (x, image), create_graph=True)

    def by_name(model, x, image, offset):
        y, gradients = gradreg_fast.value_and_vjp(model, {"x": x, "image": image, "offset": offset})
        assert list(gradients) == ["x", "image", "offset"]
        return y, *gradients.values()

    def all_theirs(model, x, image, offset):
        y = model(x, image, offset=offset)
        return y, *torch.autograd.grad(y.sum(), (x, image, offset), create_graph=True)

    def drop_in(model, x, image, offset):
        return all_theirs(convert(model), x, image, offset)

    def penalty(model, x, image, offset):
        target = (torch.ones_like(x), torch.ones_like(image))
        return functional.gradient_matching(model, (x, image), target, model_kwargs={"offset": offset})

    def penalty_oracle(model, x, image, offset):
        y, first, second = theirs(model, x, image, offset)
        return y, ((first - 1).square().sum(1) + (second - 1).square().sum((1, 2, 3))).mean()

    assert_parity(model, ours, theirs, x, image, offset)
    assert_parity(model, by_name, all_theirs, x, image, offset)
    assert_parity(model, drop_in, all_theirs, x, image, offset)
    assert_parity(model, penalty, penalty_oracle, x, image, offset)


class Labelled(nn.Module):
    """Of one input, with an argument that may be anything."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x, setting=None):
        return self.inner(x) * getattr(setting, "factor", 3.0 if setting else 2.0)


NEEDS = {
    "double_backprop": {"target": torch.tensor([0, 1, 1])},
    "gradient_matching": {"target_gradient": torch.ones(3, 2, 4, dtype=torch.float64)},
    "jacobian_frobenius": {"projections": 2},
}
SEVERAL = sorted(set(functional.PENALTIES) - {"gradient_penalty", "r1", "r2", "r1_r2", "eikonal", "dragan"})


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("save", ["all", "recompute"])
def test_every_penalty_takes_them(name, save):
    """What the arguments select is the same as a model of its own."""

    class Fixed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, True)

    def keywords():
        once = {"generator": new_generator(3)}
        drawn = name in ("spectral_projection", "jacobian_frobenius", "jacobian_softmax", "jacobian_spectral_norm")
        recomputes = name not in ("jacobian_spectral_norm", "confidence_penalty")
        return {**NEEDS.get(name, {}), **(once if drawn else {}), **({"save": save} if recomputes else {})}

    model, x = Fixed(Labelled()), torch.randn(3, 4)
    penalty = getattr(functional, name)
    assert_parity(
        model,
        lambda model, x: penalty(model.model, x, **keywords(), model_args=(True,)),
        lambda model, x: penalty(model, x, **keywords()),
        x,
    )


def test_critics_penalties_take_them():
    model, (x, labels, *_) = Conditional("tuple"), batch()
    for name in ("gradient_penalty", "r1", "r2", "eikonal"):
        y, value = getattr(functional, name)(model, x, model_args=(labels,), output=1)
        assert y.shape == (3, 1)
        assert value.shape == ()
    (real, fake), value = functional.r1_r2(model, x, 2 * x, model_args=(labels,), output=1)
    expected = [functional.r1(model, z, model_args=(labels,), output=1) for z in (x, 2 * x)]
    torch.testing.assert_close(real, expected[0][0])
    torch.testing.assert_close(fake, expected[1][0])
    torch.testing.assert_close(value, expected[0][1] + expected[1][1])


def test_plain_arguments_decide_the_graph():
    """Numbers and flags are part of a call's form; objects that may change are asked every time."""

    class Setting:
        factor = 5.0

    model, x, setting = Labelled(), torch.randn(3, 4), Setting()
    for argument in (None, True, 0, setting):
        assert_parity(
            model,
            lambda model, x, argument=argument: gradreg_fast.value_and_vjp(model, x, model_args=(argument,)),
            lambda model, x, argument=argument: oracle(model, x, setting=argument),
            x,
        )
    before = gradreg_fast.value_and_vjp(model, x, model_args=(setting,))[0]
    setting.factor = 10.0
    torch.testing.assert_close(gradreg_fast.value_and_vjp(model, x, model_args=(setting,))[0], 2 * before)


def test_graphs_do_not_pile_up():
    model, x = Labelled(), torch.randn(3, 4)
    for i in range(100):
        gradreg_fast.value_and_vjp(model, x, model_args=(i,))
    assert len(gradreg_fast.tracing.__dict__) and len(graphs_of(model)) <= 16


def graphs_of(model):
    import sys

    return sys.modules["gradreg_fast.convert"]._CACHE[model][1]


def test_one_tensor_in_two_places():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x, z):
            return torch.tanh(self.first(x)) + torch.sin(self.second(z))

    model, x = Product(), torch.randn(3, 4)
    assert_parity(model, lambda m, x: oracle(convert(m), x, z=x), lambda m, x: oracle(m, x, z=x), x)
    assert_parity(
        model,
        lambda m, x: gradreg_fast.value_and_vjp(m, x, model_args=(x,)),
        lambda m, x: oracle(m, x, z=x),
        x,
    )


class Upstream(nn.Module):
    """Weights that are made from parameters, sizes read on the way, parameters as values."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.zeros(5))
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 5)), nn.Parameter(torch.randn(1, 9, 5))
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 1.0, 2.0]))
        self.last, self.places = nn.Linear(5, 2), nn.Linear(1, 5)

    def forward(self, x):
        weight = self.weight * self.filter / self.weight.shape[1] ** 0.5
        weight = weight * (weight.square().sum(1, keepdim=True) + 1e-8).rsqrt()
        h = nn.functional.linear(x, weight, self.bias * 2)  # [B, T, 5]
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), torch.tanh(h)], 1)
        h = torch.tanh(h + self.position[:, : h.size(1)])
        places = torch.arange(h.size(1)).to(h.dtype).unsqueeze(1)  # [T, 1]
        h = torch.tanh(h + self.places(places))
        return self.last(h).mean(1)


def test_what_does_not_depend_on_x():
    model, x = Upstream(), torch.randn(3, 2, 4)
    assert_parity(model, gradreg_fast.value_and_vjp, oracle, x)
    assert_parity(model, lambda m, x: oracle(convert(m), x), oracle, x)
    y = convert(model)(x.requires_grad_())
    assert type(y.grad_fn).__name__ == "_ValueBackward"


def test_buffers_that_decide():
    """A forward that asks for a buffer's value is asked at every call."""

    class Initialised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
            self.register_buffer("ready", torch.tensor(False))
            self.seen = torch.tensor(0)

        def forward(self, x):
            factor = 1.0 if self.ready else 2.0
            return self.inner(x) * (factor + float(self.seen))

    model, x = Initialised(), torch.randn(3, 4)
    for change in (lambda: None, lambda: model.ready.fill_(True), lambda: model.seen.add_(1)):
        change()
        assert_parity(model, gradreg_fast.value_and_vjp, oracle, x)
        assert_parity(model, lambda m, x: oracle(convert(m), x), oracle, x)


def test_forwards_that_set_attributes():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
            self.calls, self.features = 0, None

        def forward(self, x):
            self.calls += 1
            self.features = self.inner[0](x)
            return self.inner(x) * self.calls

    model, x = Counting(), torch.randn(3, 4)
    for function in (gradreg_fast.value_and_vjp, lambda m, x: oracle(convert(m), x)):
        model.calls = 0
        mine = evaluate(function, model, [x])
        assert model.calls == 1
        assert isinstance(model.features, torch.Tensor)
        model.calls = 0
        compare(mine, evaluate(oracle, model, [x]))


def test_x_that_only_some_parts_see():
    """The part that does not depend on x runs once, statistics included."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.condition = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())

        def forward(self, x, c):
            return self.inner(x) * self.condition(c)

    model, x, c = Net(), torch.randn(3, 4), torch.randn(3, 3)
    assert_parity(
        model,
        lambda m, x, c: gradreg_fast.value_and_vjp(m, x, model_args=(c,)),
        lambda m, x, c: oracle(m, x, c=c),
        *(x, c),
    )
    assert_parity(model, lambda m, x, c: oracle(convert(m), x, c=c), lambda m, x, c: oracle(m, x, c=c), x, c)


def test_given_arguments_are_not_penalised_with_compiled_layers():
    """A network whose input is concatenated with what is given: all but the concatenation has a rule."""
    model, (x, labels, *_) = Conditional(), batch()
    assert is_opaque(model)  # called with x alone it cannot be traced
    assert flat(gradreg_fast.jacobian_sqnorm(model, x, model_args=(labels,)))[1].shape == (3,)


def test_forwards_that_replace_buffers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.inner(x) * self.calls

    model, x = Counting(), torch.randn(3, 4)
    for function in (gradreg_fast.value_and_vjp, lambda m, x: oracle(convert(m), x)):
        assert_parity(model, function, oracle, x)


class Counters(nn.Module):
    """A count of calls in a buffer, read by nothing, by what does not depend on x, or by what does."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        y = self.inner(x)
        if self.read == "before":
            y = torch.tanh(y + self.calls)
        self.calls.add_(1)
        if self.read == "upstream":
            y = y * (self.scale * self.calls)
        return torch.tanh(y * self.calls) if self.read == "after" else y


@pytest.mark.parametrize("read", ["never", "upstream", "before", "after"])
def test_buffers_changed_in_place(read):
    model, x = Counters(read), torch.randn(3, 4)
    assert_parity(model, gradreg_fast.value_and_vjp, oracle, x)
    assert_parity(model, lambda m, x: oracle(convert(m), x), oracle, x)
    assert is_opaque(model) == (read in ("before", "after"))
