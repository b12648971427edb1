"""``torch.func``: substituted parameters work, inner steps and ensembles too; transforms raise, or run by PyTorch."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, linearize, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.modules import WithPenalty

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def network(outputs=1):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def inside(parameters):
    """Under the names that they have in a `WithPenalty`."""
    return {f"model.{name}": parameter for name, parameter in parameters.items()}


def ours(model, parameters, x):
    return functional_call(WithPenalty(model, "r1"), inside(parameters), (x,))[1]


def by_autograd(model, parameters, x):
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(functional_call(model, parameters, (x,)).sum(), x, create_graph=True)
    return g.square().sum(1).mean()


def inner_step(penalty, model, parameters, x):
    """A penalised step of which the outer loss sees the result, held constant as in first-order MAML."""
    loss = functional_call(model, parameters, (x,)).square().mean() + penalty(model, parameters, x)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


def plain_step(penalty, model, parameters, x):
    """A step without a penalty, differentiated by the outer loss that has one."""
    loss = functional_call(model, parameters, (x,)).square().mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    return {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


STEPS = {"none": lambda penalty, model, parameters, x: parameters, "inner": inner_step, "outer": plain_step}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_gradients_reach_substituted_parameters(step):
    model, x = network(), torch.randn(5, 3)
    parameters = {name: torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    results = []
    for penalty in (ours, by_autograd):
        value = penalty(model, step(penalty, model, parameters, x), x)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        results.append([value, *(g for g in gradients if g is not None)])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_inner_step_that_is_differentiated_through_raises():
    model, x = network(), torch.randn(5, 3)
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    (g,) = torch.autograd.grad(ours(model, parameters, x), parameters["0.weight"], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again; for third derivatives use"):
        g.sum().backward()


def test_an_ensemble_member_by_member():
    members, x = [network() for _ in range(3)], torch.randn(5, 3)
    stacked, _ = stack_module_state(members)
    values = [ours(members[0], {name: p[i] for name, p in stacked.items()}, x) for i in range(3)]
    gradients = torch.autograd.grad(sum(values), list(stacked.values()), materialize_grads=True, allow_unused=True)
    for i, member in enumerate(members):
        own = dict(member.named_parameters())
        value = by_autograd(member, own, x)
        wanted = torch.autograd.grad(value, list(own.values()), materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(values[i], value, rtol=1e-9, atol=1e-12)
        for mine, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(mine[i], theirs, rtol=1e-9, atol=1e-12)


def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2, bias=False))


ENSEMBLES = {
    "r1": (network, None, functional.r1),
    "each its samples": (network, 1, functional.r1),
    "nested results": (network, None, lambda model, x: functional.r1_r2(model=model, real=x, fake=x + 1)),
    "batch statistics": (normalised, None, functional.jacobian_frobenius),
    "primitive": (network, None, lambda model, x: gradreg_fast.value_and_vjp(model, x, torch.ones(5, 1))),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_vmap_of_an_ensemble(name):
    """The same as member by member, in values, buffers and the gradients of all stacked tensors."""
    make, dim, penalty = ENSEMBLES[name]
    members, x, results = [make() for _ in range(3)], torch.randn(5, 3, 3), []

    def member(state, x):
        return tuple(tree_leaves(functional_call(Calling(members[0], penalty), inside(state), (x,))))

    def one_by_one(state, x):
        xs = [x] * 3 if dim is None else x.unbind(dim)
        each = [member({key: tensor[i] for key, tensor in state.items()}, x) for i, x in enumerate(xs)]
        return [*map(torch.stack, zip(*each, strict=True))]

    for run in (vmap(member, in_dims=(0, dim)), one_by_one):
        parameters, buffers = stack_module_state(members)
        leaf = x.clone().requires_grad_()
        values = run({**parameters, **buffers}, leaf[:, 0] if dim is None else leaf)
        loss = sum(value.square().sum() for value in values)
        gradients = torch.autograd.grad(loss, [leaf, *parameters.values()], materialize_grads=True, allow_unused=True)
        results.append([*values, *gradients, *buffers.values()])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-14)


def test_members_that_should_draw_the_same_numbers_are_refused():
    model = network(2)
    with pytest.raises(RuntimeError, match="randomness must be 'error' or 'different', got 'same'"):
        vmap(lambda p: ours(model, p, torch.randn(5, 3)), randomness="same")(stack_module_state([model] * 2)[0])


class Calling(nn.Module):
    """A function of a model as a module."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)


def dual(function, x):
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(x, x))


def dual_weight(model, x):
    names = {name: p.detach() for name, p in model.named_parameters()}
    return dual(lambda weight: ours(model, {**names, "0.weight": weight}, x), names["0.weight"])


TRANSFORMS = {
    "grad": lambda model, x: grad(lambda x: functional.r1(model, x)[1])(x),
    "grad by parameters": lambda model, x: grad(lambda p: ours(model, p, x))(dict(model.named_parameters())),
    "vmap": lambda model, x: vmap(lambda x: functional.jacobian_frobenius(model, x.unsqueeze(0))[1])(x),
    "vmap of grad": lambda model, x: vmap(grad(lambda p: ours(model, p, x)))(stack_module_state([model] * 2)[0]),
    "grad of vmap": lambda model, x: grad(lambda p: vmap(lambda p: ours(model, p, x))(p).sum())(
        stack_module_state([model] * 2)[0]
    ),
    "jvp": lambda model, x: jvp(lambda x: gradreg_fast.value_and_vjp(model, x)[1], (x,), (x,)),
    "linearize": lambda model, x: linearize(lambda x: functional.r1(model, x)[1], x),
    "dual": lambda model, x: dual(lambda x: functional.eikonal(model, x)[1], x),
    "dual weight": dual_weight,
    "dual cotangent": lambda model, x: dual(lambda c: gradreg_fast.value_and_vjp(model, x, c), torch.ones(5, 1)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_penalties_raise_early(transform):
    """Before, some gave a zero or no tangent."""
    with pytest.raises(RuntimeError, match=r"torch.func's grad, vmap, jvp .* use torch.autograd.grad"):
        transform(network(), torch.randn(5, 3))


def test_transforms_of_converted_models_run_by_pytorch():
    model, x = network(2), torch.randn(5, 3)
    converted, ensemble = gradreg_fast.convert(model), stack_module_state([network(2), network(2)])[0]

    def results(model):
        twice = grad(lambda x: grad(lambda x: model(x).square().sum())(x).square().sum())(x)
        forward = jvp(model, (x,), (x,))[1]
        return twice, jacrev(model)(x), forward, vmap(lambda p: functional_call(model, p, (x,)))(ensemble)

    for mine, wanted in zip(results(converted), results(model), strict=True):
        torch.testing.assert_close(mine, wanted)
