"""Random models, changed in random ways between calls, never differ from autograd.

200 examples by default; `GRADREG_FAST_EXAMPLES=2000 python -m pytest tests/test_mutations.py` takes more, and other
ones with each seed in `GRADREG_FAST_SEED`.
"""

import os
import warnings

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import gradreg_fast
from gradreg_fast import convert
from gradreg_fast.backend import library
from tests.parity import WithoutRule, compare, evaluate, jacobian_sqnorm, recorded_gradient, value_and_vjp

EXAMPLES = int(os.environ.get("GRADREG_FAST_EXAMPLES", "200"))
SEED = int(os.environ.get("GRADREG_FAST_SEED", "0"))
BACKENDS = ["torch", "cpp"] if library()[0] is not None else ["torch"]
WIDTH = 4


class Region(nn.Module):
    """Under torch.utils.checkpoint."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Branch(nn.Module):
    """A forward that cannot be traced."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.detach().sum()) < 1e9 else x


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.factor = 0.5

    def forward(self, x):
        return x + self.factor * self.inner(x)


LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "without a rule": lambda: nn.Sequential(nn.Tanh(), WithoutRule()),  # bounded: twice, it would overflow
    "norm": lambda: nn.BatchNorm1d(WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "dropout": lambda: nn.Dropout(0.3),
    "residual": lambda: Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())),
    "region": lambda: Region(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())),
    "branch": lambda: Branch(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Sigmoid())),
}


def modules_of(model, *kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


def pick(found, number):
    return found[number % len(found)] if found else None


def free_of_norms(model):
    """Linear layers; not in a region, whose recomputation would change a norm's buffers, when is up to autograd."""
    inside = {layer for region in modules_of(model, Region) for layer in region.modules()}
    return [
        layer
        for layer in modules_of(model, nn.Linear)
        if layer not in inside
        and not parametrize.is_parametrized(layer)
        and isinstance(layer._parameters.get("weight"), nn.Parameter)
    ]


def layers_of(model):
    """All modules but those inside a parametrisation."""
    inside = {part for lists in modules_of(model, parametrize.ParametrizationList) for part in lists.modules()}
    return [module for module in model.modules() if module not in inside and type(module) is not nn.ModuleDict]


def hook_forward(model, number):
    pick(layers_of(model), number).register_forward_hook(lambda module, inputs, output: output * 1.5)


def hook_before(model, number):
    pick(layers_of(model), number).register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.5,))


def hook_backward(model, number):
    layer = pick(modules_of(model, nn.Linear, nn.Tanh), number)
    if layer is not None:
        layer.register_full_backward_hook(lambda module, below, above: None)


def unhook(model, number):
    for module in layers_of(model):
        module._forward_hooks.clear()
        module._backward_hooks.clear()
        for key, hook in [*module._forward_pre_hooks.items()]:
            if not hasattr(hook, "name"):
                del module._forward_pre_hooks[key]


def freeze(model, number):
    parameter = pick([*model.parameters()], number)
    parameter.requires_grad_(not parameter.requires_grad)


def tie(model, number):
    layers = free_of_norms(model)
    if len(layers) > 1:
        one, other = pick(layers, number), pick(layers, number // 7)
        if one.weight.shape == other.weight.shape:
            other.weight = one.weight


def weight_norm(model, number):
    layer = pick(free_of_norms(model), number)
    if layer is not None:
        (parametrizations.weight_norm if number % 2 else parametrizations.spectral_norm)(layer)


def older_norm(model, number):
    layer = pick(free_of_norms(model), number)
    if layer is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            (nn.utils.weight_norm if number % 2 else nn.utils.spectral_norm)(layer)


def unparametrise(model, number):
    layer = pick([layer for layer in modules_of(model, nn.Linear) if parametrize.is_parametrized(layer)], number)
    if layer is not None:
        parametrize.remove_parametrizations(layer, "weight")


def switch_mode(model, number):
    module = model if number % 3 == 0 else pick(layers_of(model), number)
    module.train(not module.training)


def reuse(model, number):
    model.insert(number % len(model), model[number // 5 % (len(model) - 1)])


def replace(model, number):
    model[number % (len(model) - 1)] = LAYERS[pick(sorted(LAYERS), number)]().double()


def append_layers(model, number):
    model.insert(len(model) - 1, LAYERS[pick(sorted(LAYERS), number)]().double())


def drop_bias(model, number):
    layer = pick(modules_of(model, nn.Linear), number)
    layer.bias = None if layer.bias is not None else nn.Parameter(torch.randn(layer.out_features).double())


def set_attributes(model, number):
    for module in modules_of(model, Residual):
        module.factor += 0.25
    for module in modules_of(model, nn.Dropout):
        module.p = 0.1 * (number % 5)
    for module in modules_of(model, nn.BatchNorm1d):
        module.momentum = None if number % 2 else 0.2


def train_a_step(model, number):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def replace_forward(model, number):
    layer = pick(modules_of(model, nn.Tanh, nn.Softplus), number)
    if layer is not None:
        layer.forward = torch.sin if "forward" not in vars(layer) else torch.tanh


MUTATIONS = [
    *(hook_forward, hook_before, hook_backward, unhook, freeze, tie, weight_norm, older_norm, unparametrise),
    *(switch_mode, reuse, replace, append_layers, drop_bias, set_attributes, train_a_step, replace_forward),
]


def drop_in(model, x, c):
    return value_and_vjp(convert(model), x, c)


def double_backpropagation(model, x, c):
    y = model(x)
    losses = (y.sin() * c).sum(1)
    return y, recorded_gradient(losses, x, torch.ones_like(losses)).square().sum(1)


QUANTITIES = [
    (gradreg_fast.value_and_vjp, value_and_vjp),
    (lambda model, x, c: gradreg_fast.jacobian_sqnorm(model, x), lambda model, x, c: jacobian_sqnorm(model, x)),
    (drop_in, value_and_vjp),
    (lambda model, x, c: double_backpropagation(convert(model), x, c), double_backpropagation),
]


@settings(
    max_examples=EXAMPLES, derandomize=SEED == 0, report_multiple_bugs=False, phases=[Phase.generate]
)  # to shrink takes minutes
@given(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 10**4)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.lists(st.integers(0, len(QUANTITIES) - 1), min_size=5, max_size=5),
    st.integers(0, 10**6),
    st.sampled_from(BACKENDS),
)
def test_no_difference_from_autograd(layers, mutations, outputs, quantities, seed, backend):
    torch.manual_seed(seed + SEED)
    model = nn.Sequential(*(LAYERS[name]() for name in layers), nn.Linear(WIDTH, outputs)).double()
    x, c = torch.randn(3, WIDTH, dtype=torch.float64), torch.randn(3, outputs, dtype=torch.float64)
    for quantity, (mutate, number) in zip(quantities, [(None, 0), *mutations], strict=False):
        if mutate is not None:
            mutate(model, number)
        ours, oracle = QUANTITIES[quantity]
        try:
            expected = evaluate(oracle, model, [x, c], seed)
        except RuntimeError:  # autograd itself cannot: an activation changed in place what it needs
            continue
        with gradreg_fast.backend(backend):
            compare(evaluate(ours, model, [x, c], seed), expected)
