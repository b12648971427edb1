"""Random branched networks: chains, residuals, concatenations, layers used twice, dense and convolutional."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast.convert import graph_of
from gradreg_fast.rules.merge import Affine
from tests.parity import assert_parity, jacobian_sqnorm, value_and_vjp

pytestmark = pytest.mark.usefixtures("each_backend")


class Arsinh(nn.Module):
    def forward(self, x):
        return torch.asinh(x)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "softplus": lambda: nn.Softplus(2.0),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "sine": lambda: gradreg_fast.modules.Sine(2.0),
    "none": nn.Identity,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
    "asinh": Arsinh,  # without a rule
}
BLOCKS = ["chain", "residual", "cat", "twice", "norm", "dropout", "arithmetic", "skip"]
BLOCKS += ["group norm", "instance norm", "gate", "quotient", "centre", "softmax", "attend", "swap", "widest"]


class Random(nn.Module):
    """A network by its recipe: pairs of a block's kind and an activation."""

    def __init__(self, recipe, outputs, image):
        super().__init__()
        self.recipe = recipe
        self.image = image
        width = 3 if image else 5
        self.first = self.layer(2 if image else 4, width)
        blocks = []
        for kind, activation in recipe:
            parts = {
                "layer": self.layer(2 * width if kind == "cat" else width, width),
                "act": ACTIVATIONS[activation](),
            }
            if kind == "norm":
                parts["norm"] = nn.BatchNorm2d(width) if image else nn.BatchNorm1d(width)
            if kind == "group norm":
                parts["norm"] = nn.GroupNorm(1, width)
            if kind == "instance norm":
                parts["norm"] = nn.InstanceNorm2d(width, affine=True) if image else nn.LayerNorm(width)
            if kind == "dropout":
                parts["drop"] = nn.Dropout(0.3)
            blocks.append(nn.ModuleDict(parts))
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(2) if image else nn.Identity()
        self.last = nn.Linear(width * 4 if image else width, outputs)

    def layer(self, inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, padding=1) if self.image else nn.Linear(inputs, outputs)

    def forward(self, x):
        h = first = self.first(x)
        for (kind, _), block in zip(self.recipe, self.blocks, strict=True):
            layer, act = block["layer"], block["act"]
            if kind == "chain":
                h = act(layer(h))
            elif kind == "residual":
                h = h + act(layer(h))
            elif kind == "cat":
                h = act(layer(torch.cat([h, act(h)], 1)))
            elif kind == "twice":
                h = act(layer(act(layer(h))))
            elif kind in ("norm", "group norm", "instance norm"):
                h = act(block["norm"](layer(h)))
            elif kind == "dropout":
                h = block["drop"](act(layer(h)))
            elif kind == "arithmetic":
                h = 1 - 0.5 * act(layer(h)) / 3
            elif kind == "skip":
                h = act(layer(h)) - 2 * first
            elif kind == "gate":
                h = h * torch.sigmoid(act(layer(h)))
            elif kind == "quotient":
                h = act(layer(h)) / (1 + h.square().mean(1, keepdim=True))
            elif kind == "centre":
                h = (h - h.mean(1, keepdim=True)) / torch.sqrt(act(layer(h)).var(1, keepdim=True) + 1)
            elif kind == "softmax":
                h = torch.softmax(layer(h), 1) * h + torch.logsumexp(act(h), 1, keepdim=True)
            elif kind == "attend":
                q, v = h.flatten(2) if self.image else h.unsqueeze(2), act(layer(h))
                h = functional.scaled_dot_product_attention(q, torch.sin(q), v.reshape(q.size())).view(h.size())
            elif kind == "swap":
                h = torch.cat([layer(h)[:, 1:], act(h)[:, :1]], 1)
            elif kind == "widest":
                h = act(layer(h)) + h.max(1, keepdim=True)[0] * h.amin(1, keepdim=True)
        return self.last(self.pool(h).flatten(1))


networks = st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(sorted(ACTIVATIONS))), min_size=1, max_size=4)


@given(networks, st.integers(1, 3), st.integers(2, 4), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_both_primitives(recipe, outputs, size, image, training, seed):
    torch.manual_seed(seed)
    model = Random(recipe, outputs, image).double().train(training)
    x = torch.randn(size, *((2, 5, 4) if image else (4,)), dtype=torch.float64)
    cotangent = torch.randn(size, outputs, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x, cotangent, seed=seed)
        assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x, seed=seed)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=4, max_size=4),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_chains_of_any_widths(widths, activations, size, bias, seed):
    """Whichever contraction the widths make cheapest, and with no samples at all."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs, activation in zip(widths, widths[1:], activations, strict=False):
        layers += [nn.Linear(inputs, outputs, bias=bias), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1]).double()
    x = torch.randn(size, widths[0], dtype=torch.float64)
    assert_parity(model, gradreg_fast.jacobian_sqnorm, jacobian_sqnorm, x, seed=seed)
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x, seed=seed)


class AtRest(nn.Module):
    """Hands values on unchanged, between nodes that read values, sizes and masks by their place."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.rest = nn.Linear(3, 8), nn.Linear(4, 2), nn.Dropout(0.0)

    def forward(self, x):
        h = self.rest(torch.tanh(self.first(self.rest(x))))
        kept = self.rest(h).clone()
        folded = kept.reshape(2 * kept.shape[0], 4) * (h > 0).to(h.dtype).reshape(2 * h.shape[0], 4)
        return self.rest(self.last(folded + folded.contiguous()).reshape(kept.shape[0], -1))


def test_identities_are_left_out():
    model, x = AtRest().double(), torch.randn(5, 3, dtype=torch.float64)
    assert sum(isinstance(node.rule, Affine) for node in graph_of(model).nodes if node) == 1  # the output
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, x)
