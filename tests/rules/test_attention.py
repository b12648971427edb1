"""Attention by blocks: every option of PyTorch's, any number of blocks, and memory linear in the length."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradreg_fast
from gradreg_fast.rules import attention
from tests.parity import assert_parity, assert_primitives, is_opaque, opaque_reasons, value_and_vjp

pytestmark = pytest.mark.usefixtures("float64", "math_attention")


@pytest.fixture
def math_attention():
    """Only PyTorch's plain implementation has a double backward."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


class Attend(nn.Module):
    """Queries, keys and values of different widths and lengths, from two branches of x ``[B, 6, 4]``."""

    def __init__(self, heads=2, key_heads=2, mask=None, trained=False, **options):
        super().__init__()
        self.options = options
        self.q, self.k, self.v = nn.Linear(4, heads * 3), nn.Linear(4, key_heads * 3), nn.Linear(4, key_heads * 5)
        self.heads, self.key_heads = heads, key_heads
        self.last = nn.Linear(heads * 5, 2)
        if trained:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.heads, 3)).transpose(1, 2)
        k = torch.tanh(self.k(x[:, :5])).unflatten(-1, (self.key_heads, 3)).transpose(1, 2)
        v = self.v(x[:, 1:]).unflatten(-1, (self.key_heads, 5)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, self.mask, **self.options)
        return self.last(torch.tanh(y.transpose(1, 2).flatten(2)).sum(1))


def lower(L, S):
    return torch.ones(L, S, dtype=torch.bool).tril(1)


OPTIONS = {
    "plain": lambda: Attend(),
    "causal": lambda: Attend(is_causal=True),
    "scale": lambda: Attend(scale=0.7),
    "grouped heads": lambda: Attend(heads=4, key_heads=2, enable_gqa=True),
    "grouped heads, causal": lambda: Attend(heads=6, key_heads=2, enable_gqa=True, is_causal=True),
    "boolean mask": lambda: Attend(mask=lower(6, 5)),
    "boolean mask, a row without keys": lambda: Attend(mask=lower(6, 5) & (torch.arange(6) != 2).unsqueeze(1)),
    "boolean mask of heads": lambda: Attend(mask=torch.rand(2, 6, 5) > 0.3),
    "added mask": lambda: Attend(mask=torch.randn(6, 5)),
    "added mask of samples": lambda: Attend(mask=torch.randn(3, 1, 6, 5)),
    "added mask, trained": lambda: Attend(mask=torch.randn(6, 5), trained=True),
    "added mask of heads, trained": lambda: Attend(mask=torch.randn(1, 2, 6, 5), trained=True),
    "added mask of keys, trained": lambda: Attend(mask=torch.randn(5), trained=True),
}


@pytest.mark.parametrize("blocks", ["one, kept", "one", "many, kept", "many"])
@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_options(make, blocks, monkeypatch):
    if "kept" not in blocks:
        monkeypatch.setattr(attention, "KEPT_KEYS", 0)
    if "many" in blocks:
        monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
        monkeypatch.setattr(attention, "LEAST_ROWS", 4)
    model = make()
    assert not is_opaque(model)
    assert_primitives(model, torch.randn(3, 6, 4))


class Shared(nn.Module):
    """Keys and values that all heads share, by broadcasting."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        q, k = self.q(x).unflatten(-1, (2, 3)).transpose(1, 2), self.k(x).unsqueeze(1)
        return functional.scaled_dot_product_attention(q, k, torch.sin(k)).flatten(1).sum(1)


def test_broadcast_heads_and_one_output():
    assert not is_opaque(Shared())
    assert_primitives(Shared(), torch.randn(3, 5, 4))


def test_samples_as_queries():
    """Without leading dimensions every sample attends to every other one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            h = self.first(x)
            return self.last(functional.scaled_dot_product_attention(h, torch.sin(h), h))

    assert not is_opaque(Net())
    assert_primitives(Net(), torch.randn(5, 4))


class Looking(nn.Module):
    """Attention to something else, with masks: those of a buffer, and those that come from x."""

    def __init__(self, form, **settings):
        super().__init__()
        self.first, self.form = nn.Linear(4, 4), form
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True, **settings)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 5, 0.1, batch_first=True), 1)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, 0.1, batch_first=True, norm_first=True)
        self.register_buffer("later", torch.ones(3, 3).triu(1) > 0)
        self.weights = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        h = self.first(x)
        return getattr(self, self.form)(h).flatten(1)

    def dropping(self, h):
        return functional.scaled_dot_product_attention(h, h, torch.sin(h), dropout_p=0.3, is_causal=True, scale=0.4)

    def dropping_masked(self, h):
        return functional.scaled_dot_product_attention(h, h, torch.sin(h), self.weights, 0.3)

    def of_values(self, h):
        return functional.scaled_dot_product_attention(h, torch.sin(h), h, attn_mask=h @ h.mT)

    def of_comparisons(self, h):
        return functional.scaled_dot_product_attention(h, torch.sin(h), h, attn_mask=(h @ h.mT) > -0.5)

    def crossed(self, h):
        return self.layer(h, torch.sin(h), torch.cos(h[:, :3]))[0]

    def masked(self, h):
        return self.layer(h, h, h, attn_mask=self.later, need_weights=False)[0]

    def weighted(self, h):
        return self.layer(h, h[:, :3], h, attn_mask=self.weights.sin(), need_weights=False)[0]

    def padded(self, h):
        return self.layer(h, h, h, key_padding_mask=h[..., 0] > 0.5, attn_mask=self.later.expand(4, 3, 3))[0]

    def encoded(self, h):
        return self.encoder(h, self.later, h.sum(-1) > 9)

    def decoded(self, h):
        return self.decoder(h, torch.sin(h), tgt_mask=self.later, memory_key_padding_mask=h.sum(-1) > 1)


FORMS = ["dropping", "dropping_masked", "of_values", "of_comparisons", "crossed", "masked", "weighted"]
FORMS += ["padded", "encoded", "decoded"]


@pytest.mark.parametrize("form", FORMS)
def test_masks_dropout_and_other_keys(form):
    model = Looking(form, dropout=0.3)
    assert opaque_reasons(model) == []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_primitives(model, torch.randn(2, 3, 4))
        assert_primitives(Looking(form, vdim=4, kdim=4).eval(), torch.randn(2, 3, 4))


class Largest(TorchDispatchMode):
    """Remembers the most elements that a tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        found = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *found])
        return result


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_the_length(causal):
    """No sweep holds the probabilities of all queries; flash attention serves the forward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 8)

        def forward(self, x):
            h = self.first(x).unsqueeze(1)
            return functional.scaled_dot_product_attention(h, torch.sin(h), h, is_causal=causal)

    def largest(length):
        model, x = Net(), torch.randn(1, length, 2, requires_grad=True)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION), Largest() as seen:
            y, g = gradreg_fast.value_and_vjp(model, x)
            (y.sum() + g.square().sum()).backward()
        return seen.elements

    assert largest(4096) <= 4 * largest(1024)
    assert largest(1024) < 1024 * 1024 / 8


def test_a_hooked_part_is_left_to_autograd():
    model = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True)
    assert not is_opaque(model)
    model.linear1.register_forward_hook(lambda module, inputs, output: output * 2)
    assert any("hooks" in reason for reason in opaque_reasons(model))
    assert_parity(model, gradreg_fast.value_and_vjp, value_and_vjp, torch.randn(2, 3, 4))
