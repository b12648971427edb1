"""Which nodes become blocks, and when: the numbers are in csrc/test_conv.py."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import ops
from gradreg_fast.backend import library
from gradreg_fast.blocks import is_faster, runs_of, with_blocks
from gradreg_fast.rules.conv import Conv
from gradreg_fast.rules.conv_block import ConvBlock
from tests.parity import assert_primitives

compiled = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")


def conv(**options):
    return nn.Conv2d(2, 4, 3, **options)


class Twice(nn.Module):
    """Reads what is between the convolution and its activation."""

    def __init__(self, read):
        super().__init__()
        self.inner = conv()
        self.read = read

    def forward(self, x):
        z = self.inner(x)
        return self.read(z, torch.relu(z))


RUNS = {
    "convolution": ((conv(),), [1]),
    "activation": ((conv(), nn.SiLU()), [2]),
    "pooling": ((conv(), nn.MaxPool2d(2)), [2]),
    "activation, pooling": ((conv(), nn.Tanh(), nn.AvgPool2d(2)), [3]),
    "rectifier, pooling": ((conv(), nn.ReLU(), nn.MaxPool2d(2)), [3]),
    "maxima, activation": ((conv(), nn.MaxPool2d(2), nn.Tanh()), [3]),
    "averages, activation": ((conv(), nn.AvgPool2d(2), nn.Tanh()), [2]),
    "two activations": ((conv(), nn.Tanh(), nn.Tanh()), [2]),
    "two poolings": ((conv(), nn.MaxPool2d(2), nn.MaxPool2d(2)), [2]),
    "normalisation": ((conv(), nn.BatchNorm2d(4), nn.ReLU()), [1]),
    "rounded up": ((conv(), nn.MaxPool2d(2, ceil_mode=True)), [1]),
    "dilated": ((conv(), nn.MaxPool2d(2, dilation=2)), [1]),
    "adaptive": ((conv(), nn.AdaptiveAvgPool2d(1)), [1]),
    "without the padding": ((conv(), nn.AvgPool2d(3, padding=1, count_include_pad=False)), [1]),
    "divisor": ((conv(), nn.AvgPool2d(2, divisor_override=3)), [1]),
    "groups": ((conv(groups=2), nn.ReLU()), []),
    "unknown to kernels": ((conv(), nn.PReLU()), [1]),
    "value read again": ((Twice(lambda z, y: z + y),), [1]),
    "size read": ((Twice(lambda z, y: y.view(z.size(0), -1)),), [1]),
}


def rewritten(model, x):
    graph, tensors = ops.prepare(model, x)
    return with_blocks(graph, x, tensors)


def rules(model, x, kind=ConvBlock):
    return [node.rule for node in rewritten(model, x).nodes if node and type(node.rule) is kind]


@pytest.mark.parametrize("layers, lengths", RUNS.values(), ids=RUNS)
def test_what_a_block_stands_for(layers, lengths, float64):
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)).double().eval(), torch.randn(2, 2, 9, 8)
    model(x)
    assert [len(run.nodes) for run in runs_of(ops.prepare(model, x)[0])] == lengths
    if library()[0] is not None:
        with gradreg_fast.backend("cpp"):
            assert len(rules(model, x)) == len(lengths)
            assert_primitives(model, x)


@compiled
def test_when_blocks_serve():
    model, x = nn.Sequential(conv(), nn.Tanh()), torch.randn(2, 2, 9, 8)
    with gradreg_fast.backend("cpp"):
        assert len(rules(model, x)) == 1
        assert rewritten(model, x) is rewritten(model, torch.randn(2, 2, 9, 8))
        assert not rules(model, torch.randn(2, 2, 9, 8).bfloat16())  # and the weights are float32
        assert not rules(model, torch.randn(2, 3, 9, 8)) and not rules(model, torch.randn(2, 2, 2, 8))
        assert not rules(model.bfloat16(), x.bfloat16())
        with torch.autocast("cpu"):
            assert not rules(model.float(), x)
    with gradreg_fast.backend("torch"):
        assert not rules(model, x)


@compiled
def test_wrong_images_are_named_as_by_pytorch():
    with gradreg_fast.backend("cpp"), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        gradreg_fast.value_and_vjp(nn.Sequential(conv(), nn.Tanh()), torch.randn(2, 2, 2, 8))
    with gradreg_fast.backend("cpp"), pytest.raises(RuntimeError, match="to have 2 channels"):
        gradreg_fast.value_and_vjp(nn.Sequential(conv(), nn.Tanh()), torch.randn(2, 3, 9, 8))


@compiled
def test_layouts_are_not_mixed():
    """PyTorch's convolutions hand over channels last; blocks do so beside them."""
    images, x = nn.Sequential(conv(), nn.Tanh(), nn.Conv2d(4, 4, 2)), torch.randn(64, 2, 9, 8)
    mixed = nn.Sequential(*images, nn.Conv2d(4, 300, 1))
    assert [rule.options[-1] for rule in rules(images, x)] == [False, False]
    assert [rule.options[-1] for rule in rules(mixed, x)] == [True, True] and len(rules(mixed, x, Conv)) == 1


@compiled
def test_what_is_taken_by_itself():
    def faster(inputs, outputs, samples=64, size=16, pools=True, dtype=torch.float32):
        weight = torch.empty(outputs, inputs, 3, 3, dtype=dtype)
        return is_faster(weight, (samples, inputs, size, size), (samples, outputs, size, size), pools)

    assert faster(1, 6) and faster(16, 16) and faster(64, 64, dtype=torch.float64)
    assert not faster(64, 64) and not faster(64, 128, dtype=torch.float64)  # too many channels
    assert not faster(16, 16, samples=1) and not faster(1, 6, samples=0)  # lanes stay idle
    assert faster(3, 16, size=64) and not faster(3, 16, size=64, pools=False)  # tiles leave the cache
    assert not faster(1, 1, size=1)  # nothing to do side by side
