"""Frobenius norms of ReLU networks from their active units, by compiled kernels: against autograd and PyTorch lines."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import active, functional, ops, planner
from gradreg_fast.backend import library
from gradreg_fast.engine import linearize
from tests.parity import assert_parity, evaluate, jacobian_sqnorm, new_generator

pytestmark = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")

SIZES = {
    "wide input": (70, 9, 17, 3),
    "narrow input": (8, 33, 65, 4),
    "three hidden layers": (40, 16, 37, 8, 5),
    "four hidden layers": (6, 20, 19, 18, 17, 2),
    "many outputs": (200, 150, 160, 131),
    "several chunks": (9, 300, 290, 3),
}
sizes = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@pytest.fixture(autouse=True)
def kernels():
    with gradreg_fast.backend("cpp"):
        yield


def network(sizes, bias=True, dtype=torch.float64):
    layers = []
    for d, n in pairwise(sizes):
        layers += [nn.Linear(d, n, bias=bias, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(sizes, rows=5, dtype=torch.float64):
    return torch.randn(rows, sizes[0], dtype=dtype)


def chosen_plan(model, x):
    graph, tensors = ops.prepare(model, x)
    _, linearization = linearize(graph, x, tensors)
    return active.preferred(linearization, planner.plan(linearization, None))


def assert_exact(model, x):
    """Values and all gradients, of the norms alone and with those of y, are autograd's."""
    assert chosen_plan(model, x).active
    assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x)


@pytest.mark.each_processor
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@sizes
def test_against_autograd(sizes, bias):
    assert_exact(network(sizes, bias), batch(sizes))


def test_both_ways_to_end_at_the_input():
    for name, wide in (("wide input", True), ("narrow input", False)):
        plan = chosen_plan(network(SIZES[name]), batch(SIZES[name], 33))
        assert (plan.bottom != 0) == wide


@pytest.mark.each_processor
@sizes
def test_float32_is_at_most_twice_as_far_off_as_eager(sizes):
    errors = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = network(sizes, dtype=torch.float32), batch(sizes, 8, torch.float32)
        assert chosen_plan(model, x).active
        exact = evaluate(jacobian_sqnorm, copy.deepcopy(model).double(), [x.double()], seed)
        found = [evaluate(quantity, model, [x], seed) for quantity in (gradreg_fast.jacobian_sqnorm, jacobian_sqnorm)]
        for group, tensors in exact.items():
            scale = max([float(tensor.norm()) for tensor in tensors.values()], default=0.0)
            for entry, expected in tensors.items():
                size = max(float(expected.norm()), 0.1 * scale) or 1.0
                pair = errors.setdefault((group, entry), [0.0, 0.0])
                for i, result in enumerate(found):
                    assert result[group][entry].dtype == torch.float32
                    pair[i] += (float((result[group][entry].double() - expected).norm()) / size) ** 2
    eps = torch.finfo(torch.float32).eps
    for key, (mine, eager) in errors.items():
        mine, eager = (mine / 3) ** 0.5, (eager / 3) ** 0.5
        assert mine <= 2 * eager + 4 * eps, f"{key}: ours {mine:.2e}, eager {eager:.2e}"


@pytest.mark.parametrize("name", ["wide input", "narrow input"])
def test_penalty_with_a_task_loss(name):
    model, x = network(SIZES[name]), batch(SIZES[name])
    target = torch.randint(SIZES[name][-1], (5,))

    def loss(frobenius):
        def quantity(model, x):
            y, penalty = frobenius(model, x)
            return nn.functional.cross_entropy(y, target) + 0.3 * penalty.mean()

        return quantity

    assert_parity(model, loss(functional.jacobian_frobenius), loss(jacobian_sqnorm), x)


@pytest.mark.parametrize("name", ["wide input", "three hidden layers"])
def test_frozen_weights(name):
    model, x = network(SIZES[name]), batch(SIZES[name])
    matrices = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    for frozen in range(1, 2 ** len(matrices)):
        for i, matrix in enumerate(matrices):
            matrix.requires_grad_(not frozen >> i & 1)
            matrix.grad = None
        assert_exact(model, x)
        assert all(matrix.grad is None for matrix in matrices)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    model, x = network(SIZES["wide input"]), batch(SIZES["wide input"])
    asked = []
    add_gradients = active.add_gradients

    def watched(linearization, plan, state, weights, terms, *others):
        add_gradients(linearization, plan, state, weights, terms, *others)
        asked.append([total is not None for total in terms.totals])

    monkeypatch.setattr(active, "add_gradients", watched)
    _, norms = gradreg_fast.jacobian_sqnorm(model, x)
    torch.autograd.grad(norms.sum(), model[2].weight)
    assert asked == [[False, False, True, False, False, False]]


@pytest.mark.each_processor
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("shift", [-100.0, 100.0], ids=["dead", "all active"])
@pytest.mark.parametrize("name", ["wide input", "narrow input"])
def test_layers_of_one_kind_of_units(name, shift, layer):
    model, x = network(SIZES[name]), batch(SIZES[name])
    with torch.no_grad():
        model[layer].bias.fill_(shift)
    assert_exact(model, x)


def test_single_samples_without_active_units():
    model, x = network((4, 6, 5, 3)), batch((4,), 6)
    x[1] = 0
    x[4] = 0
    with torch.no_grad():
        model[0].bias.zero_()
    assert_exact(model, x)


def test_whether_a_unit_is_active_is_pytorchs_decision():
    model = network((2, 3, 3, 2), dtype=torch.float32)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 2))
        model[0].bias.zero_()
    x = torch.tensor([[0.0, -0.0], [1e-45, -1e-45], [1.0, 0.0]])
    torch.testing.assert_close(gradreg_fast.jacobian_sqnorm(model, x), jacobian_sqnorm(model, x.requires_grad_()))


@pytest.mark.parametrize("name", ["wide input", "narrow input"])
def test_empty_batch(name):
    assert_parity(network(SIZES[name]), gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, batch(SIZES[name], 0))
    hidden, weights, gram = arguments(name == "wide input")
    hidden = [tensor[:0] for tensor in hidden]
    norms, cotangents = torch.ops.gradreg_fast.active_sqnorm(hidden, weights, gram, True)
    found = torch.ops.gradreg_fast.active_sqnorm_gradients(hidden, weights, gram, cotangents, norms, [1, 1, 1])
    assert norms.shape == (0,) and all(not gradient.any() for gradient in found)


@pytest.mark.parametrize("name", ["wide input", "narrow input"])
def test_strided_tensors(name):
    sizes = SIZES[name]
    model = network(sizes)
    for i in (0, 2, 4):
        model[i].weight = nn.Parameter(model[i].weight.detach().t().contiguous().t())
    assert_exact(model, torch.randn(sizes[0], 10, dtype=torch.float64).t()[::2])


def test_nothing_is_recorded_without_gradients():
    model, x = network(SIZES["wide input"]), batch(SIZES["wide input"])
    with torch.no_grad():
        y, norms = gradreg_fast.jacobian_sqnorm(model, x)
    assert not y.requires_grad and not norms.requires_grad
    torch.testing.assert_close(
        (y, norms), tuple(value.detach() for value in jacobian_sqnorm(model, x.requires_grad_()))
    )


def test_backward_twice_and_changed_weights():
    model, x = network(SIZES["wide input"]), batch(SIZES["wide input"])
    matrices = [model[i].weight for i in (0, 2, 4)]
    _, norms = gradreg_fast.jacobian_sqnorm(model, x)
    first = torch.autograd.grad(norms.sum(), matrices, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(norms.sum(), matrices, retain_graph=True)))
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        norms.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_any_number_of_threads(dtype):
    model, x = network((80, 130, 120, 6), dtype=dtype), batch((80,), 67, dtype)
    runs = []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        hidden = [torch.rand(67, n, dtype=dtype, generator=new_generator(1)) - 0.5 for n in (130, 120)]
        weights = [torch.eye(130, dtype=dtype), *(model[i].weight.detach() for i in (2, 4))]
        norms, cotangents = torch.ops.gradreg_fast.active_sqnorm(hidden, weights, True, True)
        gradients = torch.ops.gradreg_fast.active_sqnorm_gradients(
            hidden, weights, True, cotangents, x[:, 0].contiguous(), [1, 1, 1]
        )
        runs.append([norms, *gradients])
        assert_exact(model.double(), x.double())
        model.to(dtype)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


@pytest.mark.parametrize(
    "model",
    [
        network((5, 4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()),
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3)),
        network((5, 4, 4, 3)).bfloat16(),
        network((9, 9, 2, 9, 9)),
    ],
    ids=["one hidden layer", "LeakyReLU", "ReLU at the end", "no ReLU", "bfloat16", "a bottleneck"],
)
def test_other_networks_are_left_to_pytorch(model):
    parameter = next(model.parameters())
    x = torch.randn(3, parameter.shape[1], dtype=parameter.dtype)
    assert not chosen_plan(model, x).active
    gradreg_fast.jacobian_sqnorm(model, x)


def test_the_choice_of_a_backend():
    model, x = network(SIZES["wide input"]), batch(SIZES["wide input"])
    with gradreg_fast.backend("torch"):
        assert not chosen_plan(model, x).active


@pytest.mark.parametrize("outputs, shift, expected", [(30, 0.0, True), (3, 0.0, False), (30, 100.0, False)])
def test_an_automatic_choice_looks_at_outputs_and_active_units(outputs, shift, expected):
    model, x = network((300, 400, 300, outputs), dtype=torch.float32), batch((300,), 16, torch.float32)
    with torch.no_grad():
        model[0].bias.add_(shift)
        model[2].bias.add_(shift)
    with gradreg_fast.backend("auto"):
        assert chosen_plan(model, x).active == expected


# The operations by themselves.


def arguments(gram=True, dtype=torch.float32):
    hidden = [torch.randn(4, 5, dtype=dtype).relu(), torch.randn(4, 6, dtype=dtype).relu()]
    bottom = torch.randn(5, 5 if gram else 7, dtype=dtype)
    return [hidden, [bottom, torch.randn(6, 5, dtype=dtype), torch.randn(3, 6, dtype=dtype)], gram]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": []}, "at least one hidden layer"),
        ({"hidden": arguments()[0][:1]}, "weights must have one more than hidden"),
        ({"hidden": [torch.randn(4), torch.randn(4, 6)]}, "hidden must be matrices"),
        ({"hidden": [torch.randn(4, 5), torch.randn(3, 6)]}, "hidden has the wrong shape"),
        ({"hidden": [torch.randn(4, 5).half(), torch.randn(4, 6)]}, "float32 or float64"),
        ({"weights": [torch.randn(5, 4), *arguments()[1][1:]]}, "weight has the wrong shape"),
        ({"weights": [torch.randn(5, 5).double(), *arguments()[1][1:]]}, "weight has the wrong dtype"),
        ({"weights": [torch.randn(5), *arguments()[1][1:]]}, "weights must be matrices"),
        ({"factor": torch.randn(3)}, "factor has the wrong shape"),
        ({"wanted": [1, 1]}, "wanted must have an entry"),
        ({"cotangents": []}, "cotangents must have an entry"),
        ({"cotangents": [torch.randn(4, 3, 5)] * 3}, "cotangents has the wrong shape"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    hidden, weights, gram = arguments()
    _, cotangents = torch.ops.gradreg_fast.active_sqnorm(hidden, weights, gram, True)
    given = {"hidden": hidden, "weights": weights, "gram": gram, "cotangents": cotangents}
    given |= {"factor": torch.randn(4), "wanted": [1, 1, 1]}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gradreg_fast.active_sqnorm_gradients(**{**given, **change})
