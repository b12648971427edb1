"""``save="recompute"``: the same numbers from less memory."""

import pytest
import torch
from torch import nn

from gradreg_fast import functional, jacobian_sqnorm, value_and_vjp
from gradreg_fast.modules import WithPenalty
from tests.parity import new_generator

pytestmark = pytest.mark.usefixtures("float64", "each_backend")


def network(outputs=1, *between):
    return nn.Sequential(nn.Linear(5, 17), nn.Tanh(), *between, nn.Linear(17, outputs))


CALLS = {
    "vjp": lambda model, x, **save: value_and_vjp(model, x, **save),
    "sqnorm": lambda model, x, **save: jacobian_sqnorm(model, x, **save),
    "double_backprop": lambda model, x, **save: functional.double_backprop(model, x, x[:, :1].detach(), "mse", **save),
    "projections": lambda model, x, **save: functional.jacobian_frobenius(
        model, x, projections=2, generator=new_generator(5), **save
    ),
    "positional": lambda model, x, **save: functional.jacobian_frobenius(model, x, 2, new_generator(5), **save),
    "global random numbers": lambda model, x, **save: functional.spectral_projection(model, x, **save),
    "matching": lambda model, x, **save: functional.gradient_matching(model, x, x.detach().flip(0), **save),
    "wgan": lambda model, x, **save: functional.gradient_penalty(model, x, **save),
    "module": lambda model, x, **save: WithPenalty(model, "r1", **save)(x),
}
MODELS = {
    "dense": network(),
    "dropout": network(1, nn.Dropout(0.5)),
    "batch statistics": network(1, nn.BatchNorm1d(17)),
    "several outputs": network(3),
}


def numbers(call, model, **save):
    torch.manual_seed(3)
    x = torch.randn(6, 5, requires_grad=True)
    y, value = call(model, x, **save)
    (y.sum() + value.square().sum()).backward()
    gradients = [x.grad, *(parameter.grad.clone() for parameter in model.parameters())]
    model.zero_grad()
    return [y, value, *gradients, *(buffer.clone() for buffer in model.buffers())]


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["dense", "dropout", "batch statistics"])
def test_same_numbers(name, make):
    model = MODELS[name].double()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = numbers(make, model)
    model.load_state_dict(start)
    for mine, theirs in zip(numbers(make, model, save="recompute"), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_first_call_has_closed_forms_too():
    """PyTorch has no second derivative of this one."""
    model, x = nn.Sequential(nn.Linear(5, 17), nn.Hardsigmoid(), nn.Linear(17, 1)), torch.randn(6, 5)
    functional.r1(model, x, save="recompute")[1].backward()
    assert model[0].weight.grad is not None


def test_a_generator_goes_on_where_it_was():
    model, generator = MODELS["several outputs"].double(), new_generator(1)
    _, penalty = functional.jacobian_frobenius(model, torch.randn(4, 5), 1, generator, save="recompute")
    before = generator.get_state()
    penalty.backward()
    assert torch.equal(generator.get_state(), before)


def test_nothing_is_kept():
    model, x = network(3).double(), torch.randn(50, 5)

    def kept(**save):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            functional.jacobian_frobenius(model, x, **save)
        return sum(sizes)

    assert kept(save="recompute") < kept() / 10


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="save must be 'all' or 'recompute', got 'half'"):
        value_and_vjp(MODELS["dense"], torch.randn(2, 5), save="half")
