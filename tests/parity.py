"""One comparison for the whole suite: the same quantity by two ways, its values and every gradient."""

import math

import torch
from torch import nn

import gradreg_fast
from gradreg_fast.convert import graph_of

RTOL = 1e-9  # float64; the worst relative error seen in this suite is about 1e-12
FLOOR = 1e-13  # of the group's largest tensor, or of 1: below it a gradient counts as zero (a bias under batch norm)


# Autograd's own double backward: what everything is compared with.


def value_and_vjp(model, x, cotangent=None):
    """The output, and ``J^T c`` recorded for a second derivative."""
    y = model(x)
    return y, recorded_gradient(y, x, torch.ones_like(y) if cotangent is None else cotangent)


def jacobian(model, x):
    """The output, and the Jacobian row of each output: ``[B, K, ...]``."""
    y = model(x)
    columns = y.unsqueeze(1) if y.dim() == 1 else y.flatten(1)
    rows = [recorded_gradient(columns[:, k], x, torch.ones_like(columns[:, k])) for k in range(columns.shape[1])]
    return y, torch.stack(rows, 1)


def jacobian_sqnorm(model, x):
    """The output, and ``||J||_F^2`` of each sample."""
    y, rows = jacobian(model, x)
    return y, squares(rows)


def recorded_gradient(y, x, cotangent):
    return torch.autograd.grad(y, x, cotangent, create_graph=True, materialize_grads=True)[0]


def squares(rows):
    """Sum of squares of each sample."""
    return rows.reshape(len(rows), -1).square().sum(1) if rows.numel() else rows.new_zeros(len(rows)) * rows.sum()


# The comparison.


def manual_seed(seed):
    """As PyTorch's, which for every kind of device that is not there remembers the call, with its stack: 4 ms."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def evaluate(quantity, model, tensors, seed=0):
    """A quantity's values, and the gradients of random combinations of them.

    The model's buffers, gradients and the random state are as before afterwards.

    Args:
        quantity: called with the model and the tensors; returns tensors, possibly nested.
        model: the network.
        tensors: made leaves that require a gradient, if they are floating-point.
        seed: of the combinations, and of what the model draws.

    Returns:
        A dictionary of groups (the values, the buffers afterwards, each combination's gradients), each a dictionary
        of tensors by name.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    sources = {f"argument {i}": leaf for i, leaf in enumerate(leaves) if leaf.requires_grad}
    sources |= {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    manual_seed(seed)
    values = flat(quantity(model, *leaves))
    groups = {"values": {str(i): value.detach().clone() for i, value in enumerate(values)}}
    groups["buffers"] = {name: buffer.clone() * 1 for name, buffer in model.named_buffers()}  # flags as numbers
    generator = new_generator(seed)
    terms = []
    for value in values:
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        weights = weights.bfloat16().to(value.dtype)  # the same numbers in every precision
        terms.append((value * weights).sum())
    for source in sources.values():
        source.grad = None
    for i, term in enumerate(terms if len(terms) > 1 else ()):
        found = [torch.zeros_like(source) for source in sources.values()]
        if term.requires_grad:
            found = torch.autograd.grad(term, list(sources.values()), retain_graph=True, materialize_grads=True)
        groups[f"gradients of value {i}"] = dict(zip(sources, found, strict=True))
    total = sum(terms)
    if total.requires_grad:
        total.backward()
    groups["gradients"] = {
        name: torch.zeros_like(source) if source.grad is None else source.grad for name, source in sources.items()
    }
    for source in sources.values():
        source.grad = None
    model.load_state_dict(state)
    return groups


def new_generator(seed):
    """Of random numbers, where the tests make their tensors."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def flat(nested):
    if isinstance(nested, torch.Tensor):
        return [nested]
    return [tensor for member in nested for tensor in flat(member)]


def compare(mine, theirs, rtol=RTOL, floor=FLOOR):
    """Two results of `evaluate` agree."""
    assert mine.keys() == theirs.keys()
    for group in theirs:
        assert mine[group].keys() == theirs[group].keys()
        scale = max(1.0, *(float(norm(tensor)) for tensor in theirs[group].values()), 1.0)
        for name, expected in theirs[group].items():
            actual = mine[group][name]
            assert actual.shape == expected.shape, f"{group}, {name}: {tuple(actual.shape)} {tuple(expected.shape)}"
            assert actual.dtype == expected.dtype, f"{group}, {name}: {actual.dtype} {expected.dtype}"
            if group == "values" and expected.is_contiguous():
                assert actual.is_contiguous(), f"value {name} must be contiguous, as autograd's is: {actual.stride()}"
            error, size = float(norm(actual.double() - expected.double())), float(norm(expected))
            assert math.isfinite(error), f"{group}, {name}: not finite"
            limit = rtol * size + floor * scale
            assert error <= limit, f"{group}, {name}: error {error:.2e} of {size:.2e}, allowed {limit:.2e}"


def norm(tensor):
    return torch.linalg.vector_norm(tensor.detach().double())


def assert_parity(model, ours, oracle, *tensors, seed=0):
    """Ours and the oracle, called with the model and the tensors, agree in values, buffers and all gradients."""
    compare(evaluate(ours, model, tensors, seed), evaluate(oracle, model, tensors, seed))


def assert_primitives(model, x, seed=0):
    """Both primitives agree with autograd: one cotangent, the default one, and stacks of unit cotangents."""
    shape = evaluate(lambda model, x: model(x.detach()), model, [x], seed)["values"]["0"].shape
    cotangent = torch.randn(shape, dtype=x.dtype, generator=new_generator(seed + 1))
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x, cotangent, seed=seed)
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x, seed=seed)
    assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x, seed=seed)
    target = torch.randn(len(x), shape[1:].numel(), *x.shape[1:], generator=new_generator(seed + 2))

    def matching(model, x):
        return gradreg_fast.functional.gradient_matching(model, x, target.to(x.dtype), reduction="none")

    def matching_oracle(model, x):
        y, rows = jacobian(model, x)
        return y, squares(rows - target.to(x.dtype))

    assert_parity(model, matching, matching_oracle, x, seed=seed)


# Networks around a layer.


def between(layer, shape, outputs=3, smooth=True):
    """A network with parameters and activations below and above a layer whose input has this shape.

    Args:
        layer: a module.
        shape: ``(features,)`` or ``(channels, height, width)``.
        outputs: of the network.
        smooth: tanh as activation, else LeakyReLU: piecewise linear, if the layer is.
    """
    below = nn.Linear(4, shape[0]) if len(shape) == 1 else nn.Conv2d(2, shape[0], 3, padding=1)
    start = [below, activation(smooth), layer, activation(smooth)]
    with torch.random.fork_rng():
        sample = nn.Sequential(*start[1:])(torch.zeros(2, *shape))
    return nn.Sequential(*start, nn.Flatten(), nn.Linear(sample[0].numel(), outputs))


def activation(smooth):
    return nn.Tanh() if smooth else nn.LeakyReLU(0.2)


def batch(shape, size=3):
    """Input of `between` for a layer whose input has this shape."""
    return torch.randn(size, 4) if len(shape) == 1 else torch.randn(size, 2, *shape[1:])


def assert_layer(make, shape, size=3):
    """A layer made by `make` has the right calculus: in a smooth network, and in one-output piecewise linear ones."""
    for outputs, smooth in ((3, True), (1, True), (3, False), (1, False)):
        manual_seed(5)
        assert_primitives(between(make(), shape, outputs, smooth), batch(shape, size))


class WithoutRule(nn.Module):
    """A smooth function that autograd has to run."""

    def forward(self, x):
        return torch.special.erfcx(x)


def is_opaque(model):
    """Whether autograd runs a part of the model."""
    return bool(opaque_reasons(model))


def opaque_reasons(model):
    """Why, for each such part that depends on the input."""
    rules = [node.rule for node in graph_of(model).nodes if node and node.inputs]
    return [rule.reason for rule in rules if isinstance(rule, gradreg_fast.rules.opaque.Opaque)]
