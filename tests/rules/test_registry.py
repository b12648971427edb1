"""Everything that the registry names, in the middle of a network: it has a rule, and autograd's numbers.

A name without an example here fails `test_complete`. Layers with many options have tests of their own beside this.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradreg_fast
from gradreg_fast import tracing
from gradreg_fast.convert import graph_of
from gradreg_fast.engine import linearize
from gradreg_fast.rules.base import per_sample
from gradreg_fast.rules.registry import FUNCTIONS, MODULES, NAMED, spelled, table
from gradreg_fast.signature import ONE_TENSOR
from tests.parity import (
    assert_primitives,
    compare,
    evaluate,
    jacobian_sqnorm,
    manual_seed,
    opaque_reasons,
    recorded_gradient,
    value_and_vjp,
)

pytestmark = pytest.mark.usefixtures("float64")

VECTOR, SEQUENCE, IMAGE, VOLUME = (6,), (4, 6), (4, 5, 6), (2, 3, 4, 3)

# Modules: the shape of their input, without the batch, and how to make one.
LAYERS = {
    "linear": (VECTOR, lambda: nn.Linear(6, 4)),
    "conv 1d": (SEQUENCE, lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)),
    "conv 2d": (IMAGE, lambda: nn.Conv2d(4, 3, 3, dilation=2, padding=2)),
    "conv 3d": (VOLUME, lambda: nn.Conv3d(2, 3, 2, padding=1, bias=False)),
    "conv 3d, same": (VOLUME, lambda: nn.Conv3d(2, 3, (1, 2, 3), padding="same")),
    "conv 1d, reflect": (SEQUENCE, lambda: nn.Conv1d(4, 3, 3, padding=2, padding_mode="reflect")),
    "conv 1d, same, circular": (SEQUENCE, lambda: nn.Conv1d(4, 3, 4, padding="same", padding_mode="circular")),
    "transposed 1d": (SEQUENCE, lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1)),
    "transposed 2d": (IMAGE, lambda: nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), groups=2, dilation=2)),
    "transposed 2d, no bias": (IMAGE, lambda: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1, bias=False)),
    "transposed 3d": (VOLUME, lambda: nn.ConvTranspose3d(2, 3, 2, stride=2)),
    "attention": (SEQUENCE, lambda: SelfAttention(nn.MultiheadAttention(6, 3, batch_first=True))),
    "attention, length first": (SEQUENCE, lambda: SelfAttention(nn.MultiheadAttention(6, 2, bias=False), True)),
    "encoder layer": (SEQUENCE, lambda: nn.TransformerEncoderLayer(6, 2, 5, 0.0, batch_first=True)),
    "decoder": (
        SEQUENCE,
        lambda: Twice(nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 5, 0.2, batch_first=True), 1)),
    ),
    "encoder layer, norms first": (
        SEQUENCE,
        lambda: nn.TransformerEncoderLayer(6, 3, 5, 0.0, "gelu", norm_first=True, batch_first=True),
    ),
    "encoder": (
        SEQUENCE,
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 5, 0.0, batch_first=True), 2, nn.LayerNorm(6), enable_nested_tensor=False
        ),
    ),
    "batch norm 1d": (SEQUENCE, lambda: nn.BatchNorm1d(4)),
    "batch norm 2d": (IMAGE, lambda: nn.BatchNorm2d(4)),
    "batch norm 3d": (VOLUME, lambda: nn.BatchNorm3d(2).eval()),
    "batch norm, synchronised": (IMAGE, lambda: nn.SyncBatchNorm(4)),
    "layer norm": (SEQUENCE, lambda: nn.LayerNorm(6)),
    "layer norm, two dimensions": (IMAGE, lambda: nn.LayerNorm((5, 6), bias=False)),
    "layer norm, not affine": (VECTOR, lambda: nn.LayerNorm(6, elementwise_affine=False, eps=0.1)),
    "root mean square": (SEQUENCE, lambda: nn.RMSNorm(6)),
    "root mean square, not affine": (IMAGE, lambda: nn.RMSNorm((5, 6), 0.1, elementwise_affine=False)),
    "group norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "group norm, sequences": (SEQUENCE, lambda: nn.GroupNorm(4, 4, affine=False)),
    "group norm, vectors": (VECTOR, lambda: nn.GroupNorm(2, 6)),
    "instance norm 1d": (SEQUENCE, lambda: nn.InstanceNorm1d(4)),
    "instance norm 2d": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "instance norm 3d": (VOLUME, lambda: nn.InstanceNorm3d(2)),
    "instance norm, its own statistics": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "instance norm, running statistics": (
        SEQUENCE,
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
    ),
    "relu": (VECTOR, nn.ReLU),
    "leaky relu": (VECTOR, nn.LeakyReLU),
    "softplus": (VECTOR, nn.Softplus),
    "tanh": (VECTOR, nn.Tanh),
    "sigmoid": (VECTOR, nn.Sigmoid),
    "silu": (VECTOR, nn.SiLU),
    "gelu": (VECTOR, nn.GELU),
    "sine": (VECTOR, lambda: gradreg_fast.modules.Sine(3.0)),
    "elu": (VECTOR, lambda: nn.ELU(0.7)),
    "celu": (VECTOR, lambda: nn.CELU(0.5)),
    "selu": (VECTOR, nn.SELU),
    "mish": (VECTOR, nn.Mish),
    "hardtanh": (VECTOR, lambda: nn.Hardtanh(-0.3, 0.2)),
    "relu6": (VECTOR, nn.ReLU6),
    "hardswish": (VECTOR, nn.Hardswish),
    "log sigmoid": (VECTOR, nn.LogSigmoid),
    "softsign": (VECTOR, nn.Softsign),
    "tanhshrink": (VECTOR, nn.Tanhshrink),
    "hardshrink": (VECTOR, lambda: nn.Hardshrink(0.2)),
    "softshrink": (VECTOR, lambda: nn.Softshrink(0.2)),
    "threshold": (VECTOR, lambda: nn.Threshold(0.1, -2.0)),
    "prelu": (VECTOR, nn.PReLU),
    "prelu, channels": (IMAGE, lambda: nn.PReLU(4)),
    "softmax": (VECTOR, lambda: nn.Softmax(1)),
    "softmax, positions": (IMAGE, lambda: nn.Softmax(-1)),
    "softmax 2d": (IMAGE, nn.Softmax2d),
    "softmin": (SEQUENCE, lambda: nn.Softmin(1)),
    "log softmax": (SEQUENCE, lambda: nn.LogSoftmax(-1)),
    "max pool": (IMAGE, lambda: nn.MaxPool2d(2)),
    "average pool": (IMAGE, lambda: nn.AvgPool2d(2)),
    "adaptive average pool": (IMAGE, lambda: nn.AdaptiveAvgPool2d(2)),
    "adaptive max pool": (IMAGE, lambda: nn.AdaptiveMaxPool2d(2)),
    "max pool 1d": (SEQUENCE, lambda: nn.MaxPool1d(2, padding=1)),
    "max pool 3d": (VOLUME, lambda: nn.MaxPool3d(2, 1)),
    "average pool 1d": (SEQUENCE, lambda: nn.AvgPool1d(3, 2, 1, count_include_pad=False)),
    "average pool 3d": (VOLUME, lambda: nn.AvgPool3d((1, 2, 3), 1, ceil_mode=True)),
    "adaptive average pool 1d": (SEQUENCE, lambda: nn.AdaptiveAvgPool1d(4)),
    "adaptive average pool 3d": (VOLUME, lambda: nn.AdaptiveAvgPool3d((2, 3, 1))),
    "adaptive max pool 1d": (SEQUENCE, lambda: nn.AdaptiveMaxPool1d(4)),
    "adaptive max pool 3d": (VOLUME, lambda: nn.AdaptiveMaxPool3d(2)),
    "upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2)),
    "upsample, bilinear": (IMAGE, lambda: nn.Upsample((7, 9), mode="bilinear", align_corners=True)),
    "upsample nearest": (IMAGE, lambda: nn.UpsamplingNearest2d(scale_factor=2)),
    "upsample bilinear": (IMAGE, lambda: nn.UpsamplingBilinear2d((3, 4))),
    "pixel shuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "pixel unshuffle": ((2, 4, 6), lambda: nn.PixelUnshuffle(2)),
    "channel shuffle": (IMAGE, lambda: nn.ChannelShuffle(2)),
    "unfold": (IMAGE, lambda: nn.Unfold((2, 3), padding=1, stride=2)),
    "fold": (SEQUENCE, lambda: nn.Fold((3, 4), (2, 2), stride=1)),
    "zero pad 1d": (SEQUENCE, lambda: nn.ZeroPad1d((1, 2))),
    "zero pad 2d": (IMAGE, lambda: nn.ZeroPad2d((1, -1, 0, 2))),
    "zero pad 3d": (VOLUME, lambda: nn.ZeroPad3d(1)),
    "constant pad 1d": (SEQUENCE, lambda: nn.ConstantPad1d(1, 0.5)),
    "constant pad 2d": (IMAGE, lambda: nn.ConstantPad2d((1, 0, 0, 1), -0.5)),
    "constant pad 3d": (VOLUME, lambda: nn.ConstantPad3d(1, 2.0)),
    "reflection pad 1d": (SEQUENCE, lambda: nn.ReflectionPad1d((1, 2))),
    "reflection pad 2d": (IMAGE, lambda: nn.ReflectionPad2d((1, 2, 0, 3))),
    "reflection pad 3d": (VOLUME, lambda: nn.ReflectionPad3d(1)),
    "replication pad 1d": (SEQUENCE, lambda: nn.ReplicationPad1d(2)),
    "replication pad 2d": (IMAGE, lambda: nn.ReplicationPad2d((1, 2, 0, 3))),
    "replication pad 3d": (VOLUME, lambda: nn.ReplicationPad3d(1)),
    "circular pad 1d": (SEQUENCE, lambda: nn.CircularPad1d((2, 0))),
    "circular pad 2d": (IMAGE, lambda: nn.CircularPad2d((1, 2, 0, 3))),
    "circular pad 3d": (VOLUME, lambda: nn.CircularPad3d(1)),
    "dropout": (VECTOR, lambda: nn.Dropout(0.4)),
    "dropout 1d": (SEQUENCE, lambda: nn.Dropout1d(0.4)),
    "dropout 2d": (IMAGE, lambda: nn.Dropout2d(0.4)),
    "dropout 3d": (VOLUME, lambda: nn.Dropout3d(0.4)),
    "identity": (VECTOR, nn.Identity),
    "bilinear": (VECTOR, lambda: Twice(nn.Bilinear(6, 6, 3))),
    "bilinear, no bias": (SEQUENCE, lambda: Twice(nn.Bilinear(6, 6, 3, bias=False))),
    "glu": (IMAGE, lambda: nn.GLU(1)),
    "flatten": (IMAGE, lambda: nn.Flatten(1, 2)),
    "unflatten": (VECTOR, lambda: nn.Unflatten(1, (2, 3))),
}

UNARY = ["abs", "absolute", "atan", "cos", "cosh", "erf", "exp", "expm1", "neg", "relu", "sigmoid", "sin", "sinh"]
UNARY += ["square", "tan", "tanh", "erfc", "exp2", "asin", "acos", "asinh", "atanh"]
POSITIVE = ["log", "log1p", "log2", "log10", "reciprocal", "rsqrt", "sqrt", "acosh"]
IN_PLACE = ["abs", "atan", "cos", "cosh", "erf", "exp", "expm1", "relu", "sigmoid", "sin", "sinh", "square", "tanh"]
IN_PLACE += ["tan", "erfc", "exp2", "asin", "acos"]
COMPARISONS = ["gt", "lt", "ge", "le", "eq", "ne", "isclose"]
STEPS = ["sign", "floor", "ceil", "round", "trunc", "isnan", "isinf", "isfinite", "logical_not", "argsort"]
IN_PLACE += [name for name in POSITIVE if name != "acosh"]


def calls():
    """Functions of a value h, called with it and a module that holds parameters and a buffer."""
    found = {}
    for name in UNARY + POSITIVE:
        shift = 2 if name in POSITIVE else 0
        found[name] = lambda h, t, name=name, shift=shift: getattr(torch, name)(h + shift)
        found[name + " method"] = lambda h, t, name=name, shift=shift: getattr(h + shift, name)()
    for name in IN_PLACE:
        shift = 2 if name in POSITIVE else 0
        found[name + "_"] = lambda h, t, name=name, shift=shift: getattr(torch, name + "_")(h + shift)
        found[name + "_ method"] = lambda h, t, name=name, shift=shift: getattr(h + shift, name + "_")()
    for name in COMPARISONS:
        found[name] = lambda h, t, name=name: h * getattr(torch, name)(h, t.c)
        found[name + " method"] = lambda h, t, name=name: h * getattr(h, name)(t.c)
    for name in STEPS:
        found[name] = lambda h, t, name=name: h * getattr(torch, name)(3 * h)
        found[name + " method"] = lambda h, t, name=name: h + getattr(3 * h, name)()
    return {name: (VECTOR, function) for name, function in found.items()}


CALLS = calls() | {
    "comparisons": (VECTOR, lambda h, t: h * (h > 0) + (h < t.c) * 2 + (h >= 0.1) * h + (h <= 0) + (h == 1) + (h != 0)),
    "logic": (
        VECTOR,
        lambda h, t: (
            h * torch.logical_and(h > 0, h < 1)
            + torch.logical_or(h > 0, h < 0.5).logical_xor(h > 0.2)
            + torch.logical_xor(h > 0, h < 0.2).logical_and(h < 0.1)
            + (h > 0).logical_or(h < -0.2)
        ),
    ),
    "logic of values": (
        VECTOR,
        lambda h, t: h.logical_and(h > 1) + h * h.logical_or(h) + h.logical_xor(h),
    ),
    "positions": (
        SEQUENCE,
        lambda h, t: (
            h * torch.argmax(h, 1, keepdim=True)
            + h.argmax(2, keepdim=True)
            + h.argmin(1, keepdim=True)
            + torch.argmin(h, 1, keepdim=True)
        ),
    ),
    "buckets": (VECTOR, lambda h, t: h * torch.bucketize(h, t.c.sort()[0])),
    "casts without a derivative": (
        VECTOR,
        lambda h, t: h * (9 * h).int() + h.bool() * t.c + h.long() + h.to(torch.uint8),
    ),
    "detached": (VECTOR, lambda h, t: h * h.detach() + torch.detach(h * 2) / h.detach().exp() + t.p * h.detach()),
    "scaled by what is detached": (SEQUENCE, lambda h, t: h / h.detach().norm(dim=1, keepdim=True) - h.detach()),
    "new tensors": (
        VECTOR,
        lambda h, t: (
            torch.cat([h, torch.zeros_like(h), h.new_ones(h.shape), h.new_full((h.shape[0], 2), 0.5)], 1)
            + torch.cat([h.new_zeros(h.shape[0], 2), torch.ones_like(h), torch.full_like(h, 2), h], 1)
        ),
    ),
    "new tensors, filled": (
        VECTOR,
        lambda h, t: h * torch.empty_like(h).fill_(2) + h.new_empty(h.shape).zero_() + h * h.new_tensor([2.0]),
    ),
    "random": (VECTOR, lambda h, t: h * torch.rand_like(h) + torch.randn_like(h)),
    "where": (
        SEQUENCE,
        lambda h, t: torch.where(h > 0, h * h, t.p) + torch.where(t.c > 0, 0.5, h) + h.where(h < 0.3, h.sum(1, True)),
    ),
    "where, of two numbers": (VECTOR, lambda h, t: h + torch.where(h > 0, 1.0, 0.0)),
    "masked": (
        SEQUENCE,
        lambda h, t: torch.masked_fill(h, h > 0.2, 0) + h.masked_fill(t.c > 0, -2.0) + (2 * h).masked_fill_(h < 0, 1),
    ),
    "masked attention": (
        SEQUENCE,
        lambda h, t: (h @ h.mT).masked_fill(t.mask, float("-inf")).softmax(-1) @ h,
    ),
    "gather": (
        SEQUENCE,
        lambda h, t: torch.gather(h, 1, h.argsort(1)) + h.gather(2, t.i.expand(h.shape[0], 4, 4))[:, :, 1:2],
    ),
    "gather, along": (
        SEQUENCE,
        lambda h, t: torch.take_along_dim(h, h.argsort(2), 2) + h.take_along_dim(h.argmin(1, True), 1),
    ),
    "index select": (SEQUENCE, lambda h, t: torch.index_select(h, 1, t.i) + h.index_select(-1, t.i).mean(2, True)),
    "index, tensor": (
        SEQUENCE,
        lambda h, t: (
            h[:, t.i] + h[..., t.i].mean(-1, True) + h[:, t.i - 3] * h[:, t.i - 3, 1:2] + h[:, t.i, t.i][:, :, None]
        ),
    ),
    "index, mask": (SEQUENCE, lambda h, t: h[:, :, t.c * 0 == 0][:, :, :2] + h[:, :, :2]),
    "index, computed": (SEQUENCE, lambda h, t: h[:, torch.arange(h.shape[1]) // 2] * h),
    "index, samples given": (SEQUENCE, lambda h, t: h + h[torch.zeros(h.shape[0], dtype=torch.long)]),
    "index add": (
        SEQUENCE,
        lambda h, t: (
            torch.index_add(h, 1, t.i, h * h[:, :1], alpha=2) + h.index_add(2, t.i, h.sin()[:, :, : t.i.shape[0]])
        ),
    ),
    "index add, messages": (SEQUENCE, lambda h, t: h.new_zeros(4, 6).index_add_(0, t.i, h.mean(0)[t.i]) + h),
    "scatter add": (
        SEQUENCE,
        lambda h, t: (
            torch.scatter_add(h, 1, h.argsort(1), h * h) + torch.zeros_like(h).scatter_add_(2, h.argsort(2), h)
        ),
    ),
    "scatter add, method": (SEQUENCE, lambda h, t: h.scatter_add(1, h.argsort(1), t.p.expand(h.shape))),
    "diagonal": (SEQUENCE, lambda h, t: torch.diagonal(h, 1, 1, 2) + h.diagonal(dim1=-2, dim2=-1)),
    "triangles": (SEQUENCE, lambda h, t: torch.tril(h) * torch.triu(h, -1) + h.tril(1) + h.triu()),
    "products added": (
        SEQUENCE,
        lambda h, t: (
            torch.addcmul(t.p, t.c, h, value=2)
            + h.addcmul(h, h)
            + (2 * h).addcmul_(h, t.p)
            + torch.addcdiv(h, h, t.p)
            + h.addcdiv(t.p, 2 + h, value=3)
            + (2 * h).addcdiv_(h, t.p)
        ),
    ),
    "matrix products added": (
        VECTOR,
        lambda h, t: (
            torch.addmm(t.p, h, t.square)
            + h.addmm(h, t.square, beta=2, alpha=3)
            + h[None].baddbmm(h[None], t.square[None]).squeeze(0)
            + torch.baddbmm(h[None], h[None], t.square[None]).squeeze(0)
        ),
    ),
    "interpolated": (VECTOR, lambda h, t: torch.lerp(h, t.c, 0.3) + h.lerp(h * h, t.p) + (2 * h).lerp_(h, 0.1)),
    "powers of numbers": (VECTOR, lambda h, t: 2**h + torch.pow(0.5, h)),
    "variance and mean": (
        SEQUENCE,
        lambda h, t: torch.var_mean(h, 1)[0] * torch.std_mean(h, dim=1, correction=0)[1] + both(torch.std_mean(h, 1)),
    ),
    "norms, other": (SEQUENCE, lambda h, t: h.norm(1, 1) + torch.linalg.vector_norm(h, float("inf"), 1)),
    "similarities": (
        SEQUENCE,
        lambda h, t: (
            functional.cosine_similarity(h, h.sin() + t.p, 1)
            + torch.cosine_similarity(h, t.p + 0 * h, 1)
            + functional.pairwise_distance(h, h * h).mean(1, True)
            + torch.pairwise_distance(h, t.p).mean(1, True)
        ),
    ),
    "max of two": (VECTOR, lambda h, t: torch.max(h, t.p) + h.min(h * h)),
    "maximum, parameter": (VECTOR, lambda h, t: torch.maximum(t.p, h) + h.minimum(t.c)),
    "cat, parameter": (VECTOR, lambda h, t: torch.cat([t.p.expand(h.shape[0], -1), h, t.c.repeat(h.shape[0], 1)], 1)),
    "sizes": (VECTOR, lambda h, t: h / h.shape[1] + h * (h.shape[1] - 2) - h.shape[1] + (h.shape[1] - h)),
    "like others": (
        SEQUENCE,
        lambda h, t: (
            h.sum(1, True).expand_as(h) + h.flatten(1).reshape_as(h) + torch.ravel(h).view_as(h) * h.ravel().view_as(h)
        ),
    ),
    "casts": (VECTOR, lambda h, t: h.to(torch.float64) + h.type_as(t.p) * h.to(h.dtype) + h.double() + h.to(h.device)),
    "casts of others": (VECTOR, lambda h, t: h.type_as(2 * h) + h.to(h * 2)),
    "tile": (SEQUENCE, lambda h, t: h.tile(2) + torch.tile(h, (2,)) + h.tile((1, 1, 2))),
    "repeat by sizes": (SEQUENCE, lambda h, t: h.repeat_interleave(h.shape[1], 1)),
    "windows": (SEQUENCE, lambda h, t: h.unfold(1, 2, 1) * h.unfold(-2, 2, 1).sin()),
    "fold": (SEQUENCE, lambda h, t: functional.fold(h, (h.shape[1] - 1, 4), (2, 2), stride=1)),
    "dropout of channels": (
        IMAGE,
        lambda h, t: (
            functional.dropout2d(h, 0.3)
            + functional.dropout1d(h[:, :, 0], 0.3)[:, :, None]
            + functional.dropout3d(h[..., None], 0.4)[..., 0]
            + functional.dropout2d(h, 0.3, False)
            + torch.dropout(h, 0.2, True)
        ),
    ),
    "pools": (
        SEQUENCE,
        lambda h, t: (
            functional.max_pool1d(h, 2)
            + torch.max_pool1d(h, 2)
            + functional.avg_pool1d(h, 2)
            + torch.avg_pool1d(h, 2)
            + functional.adaptive_avg_pool1d(h, 3)
            + torch.adaptive_avg_pool1d(h, 3)
            + functional.adaptive_max_pool1d(h, 3)
        ),
    ),
    "pools of volumes": (
        VOLUME,
        lambda h, t: (
            functional.max_pool3d(h, 2)
            + torch.max_pool3d(h, 2)
            + functional.avg_pool3d(h, 2)
            + functional.adaptive_avg_pool3d(h, (1, 2, 1))
            + functional.adaptive_max_pool3d(h, (1, 2, 1))
        ),
    ),
    "operator abs": (VECTOR, lambda h, t: abs(h)),
    "operator neg": (VECTOR, lambda h, t: -h),
    "functional relu": (VECTOR, lambda h, t: functional.relu(h) + functional.relu_(h * 2)),
    "leaky relu": (VECTOR, lambda h, t: functional.leaky_relu(h, 0.3) + functional.leaky_relu_(h * 2)),
    "softplus": (VECTOR, lambda h, t: functional.softplus(h, 2)),
    "functional tanh": (VECTOR, lambda h, t: functional.tanh(h) + functional.sigmoid(h) + torch.special.expit(h)),
    "silu": (VECTOR, lambda h, t: functional.silu(h) + functional.gelu(h)),
    "elu": (VECTOR, lambda h, t: functional.elu(h, 2.0) + functional.elu_(h * 2)),
    "elu in place": (VECTOR, lambda h, t: functional.elu(h * 2, 0.5, True)),
    "celu": (VECTOR, lambda h, t: functional.celu(h, 2.0) + functional.celu_(h * 2) + torch.celu(h)),
    "selu": (VECTOR, lambda h, t: functional.selu(h) + functional.selu_(h * 2) + torch.selu(h)),
    "mish": (VECTOR, lambda h, t: functional.mish(h)),
    "hardswish": (VECTOR, lambda h, t: functional.hardswish(9 * h)),
    "hardtanh": (VECTOR, lambda h, t: functional.hardtanh(h, -0.3, 0.2) + functional.hardtanh_(h * 2)),
    "relu6": (VECTOR, lambda h, t: functional.relu6(h * 9)),
    "threshold": (VECTOR, lambda h, t: functional.threshold(h, 0.1, 3) + functional.threshold_(h * 2, 0.1, 3)),
    "torch threshold": (VECTOR, lambda h, t: torch.threshold(h, 0.1, 3)),
    "shrink": (VECTOR, lambda h, t: functional.hardshrink(h, 0.1) + functional.softshrink(h, 0.1)),
    "torch shrink": (VECTOR, lambda h, t: torch.hardshrink(h, 0.1)),
    "softsign": (VECTOR, lambda h, t: functional.softsign(h) + functional.tanhshrink(h)),
    "log sigmoid": (VECTOR, lambda h, t: functional.logsigmoid(h)),
    "prelu": (VECTOR, lambda h, t: functional.prelu(h, t.p) + torch.prelu(h, t.p)),
    "clamp": (VECTOR, lambda h, t: torch.clamp(h, -0.3, 0.2) + torch.clip(h, max=0.1) + h.clip(-0.1)),
    "clamp method": (VECTOR, lambda h, t: h.clamp(min=-0.1) + torch.clamp_(h * 2, -0.2, 0.3)),
    "clamp in place": (VECTOR, lambda h, t: (h * 2).clamp_(-0.3)),
    "clamp ends": (VECTOR, lambda h, t: torch.clamp_min(h, 0.1) + torch.clamp_max(h, 0.2)),
    "clamp ends, methods": (VECTOR, lambda h, t: h.clamp_min(0.1) + h.clamp_max(0.2)),
    "clamp ends in place": (VECTOR, lambda h, t: (h * 2).clamp_min_(0.1) + (h * 3).clamp_max_(0.2)),
    "power": (VECTOR, lambda h, t: h**3 + torch.pow(h, 2) + (h + 2).pow(-1.5) + (h * 2).pow_(4)),
    "power, few": (VECTOR, lambda h, t: h**1 + h**0 + (h + 2) ** 0.5 + (h + 2) ** -1),
    "softmax": (SEQUENCE, lambda h, t: functional.softmax(h, 1) * torch.softmax(h, dim=-1)),
    "softmax method": (SEQUENCE, lambda h, t: h.softmax(2) + h.log_softmax(1)),
    "softmax over samples": (VECTOR, lambda h, t: h.softmax(0)),
    "log softmax over samples": (VECTOR, lambda h, t: h.log_softmax(-2)),
    "log softmax": (SEQUENCE, lambda h, t: functional.log_softmax(h, 1) * torch.log_softmax(h, dim=-1)),
    "softmin": (SEQUENCE, lambda h, t: functional.softmin(h, 1)),
    "sum": (SEQUENCE, lambda h, t: torch.sum(h, 1) + h.sum(dim=(1,))),
    "sum, keeping dimensions": (SEQUENCE, lambda h, t: h * h.sum(-1, keepdim=True)),
    "mean": (IMAGE, lambda h, t: torch.mean(h, (2, 3)) + h.mean([-1, -2])),
    "mean of everything": (SEQUENCE, lambda h, t: h - h.mean()),
    "mean of the batch": (SEQUENCE, lambda h, t: h - h.mean(0)),
    "variance": (SEQUENCE, lambda h, t: h / (torch.var(h, -1, keepdim=True) + h.var(1, unbiased=False, keepdim=True))),
    "variance, correction": (SEQUENCE, lambda h, t: h.var((1, 2), correction=2).unsqueeze(1) * h.flatten(1)),
    "deviation": (SEQUENCE, lambda h, t: torch.std(h, 1) + h.std(dim=1, correction=0)),
    "deviation of everything": (SEQUENCE, lambda h, t: h + h.std() + h.std(False)),
    "norm": (SEQUENCE, lambda h, t: torch.norm(h, dim=1) + h.norm(2, 1) + h.norm(p=2, dim=1)),
    "norm, linalg": (SEQUENCE, lambda h, t: torch.linalg.norm(h, dim=1) + torch.linalg.vector_norm(h, dim=1)),
    "norm of everything": (SEQUENCE, lambda h, t: h / h.norm()),
    "normalise": (SEQUENCE, lambda h, t: functional.normalize(h, dim=-1)),
    "log sum exp": (SEQUENCE, lambda h, t: torch.logsumexp(h, 1) + h.logsumexp((1,))),
    "extrema": (SEQUENCE, lambda h, t: torch.amax(h, 1) + h.amin((1,)) + h.amax(1) + torch.amin(h, 1)),
    "extrema, equal": (VECTOR, lambda h, t: torch.cat([h, h], 1).amax(1, keepdim=True) + h),
    "extrema of everything": (VECTOR, lambda h, t: h * h.max() + torch.min(h)),
    "max": (SEQUENCE, lambda h, t: torch.max(h, 1)[0] + h.max(1).values + h.min(1)[0] + torch.min(h, dim=1)[0]),
    "max, keeping dimensions": (SEQUENCE, lambda h, t: h + h.max(-1, keepdim=True)[0]),
    "maximum": (VECTOR, lambda h, t: torch.maximum(h, h * h) + h.minimum(-h)),
    "maximum, broadcast": (
        SEQUENCE,
        lambda h, t: h.maximum(h.mean(1, keepdim=True)) + torch.minimum(h[:, 1], h.sum(1)).unsqueeze(1),
    ),
    "maximum, equal": (VECTOR, lambda h, t: torch.maximum(h, h)),
    "add": (VECTOR, lambda h, t: torch.add(h, t.p, alpha=2) + h.add(t.c) + (h + h).add_(t.p)),
    "add, parameter first": (SEQUENCE, lambda h, t: t.p + h.mean(1, keepdim=True)),
    "sub": (VECTOR, lambda h, t: torch.sub(h, t.p) + torch.subtract(t.p, h, alpha=3) + h.sub(t.c).subtract(h * 2)),
    "sub in place": (VECTOR, lambda h, t: torch.rsub(h, 1) + (h * 2).sub_(t.p) + (t.p - h)),
    "parameter grows the value": (SEQUENCE, lambda h, t: h.sum((1, 2), keepdim=True) + t.p),
    "in place operators": (VECTOR, lambda h, t: in_place(h * 2, t.p)),
    "mul": (
        VECTOR,
        lambda h, t: torch.mul(h, t.p) + h.mul(t.c) * torch.multiply(h, h) + h.multiply(2) + (h * 2).mul_(t.p),
    ),
    "mul, broadcast": (SEQUENCE, lambda h, t: h * h.mean((1, 2), keepdim=True) + t.p * h[:, 0].unsqueeze(1)),
    "mul grows": (SEQUENCE, lambda h, t: h.sum((1, 2), keepdim=True) * t.p),
    "div": (SEQUENCE, lambda h, t: h / (2 + h.mean(1, keepdim=True)) + torch.div(h, 3) + 1 / (2 + h)),
    "div, others": (
        VECTOR,
        lambda h, t: torch.divide(h, 2 + h) + torch.true_divide(h, 3 + h * h) + h.div(4) + h.divide(2),
    ),
    "div by a parameter": (VECTOR, lambda h, t: (h - t.c) / t.p + torch.div(h.sum(1, keepdim=True), t.p)),
    "div in place": (VECTOR, lambda h, t: (h * 2).div_(2 + h) + t.p / (2 + h)),
    "matrix product": (SEQUENCE, lambda h, t: torch.matmul(h, t.m) + h @ t.m + h.matmul(t.m)),
    "matrix product, two branches": (SEQUENCE, lambda h, t: h @ (h * h).transpose(1, 2)),
    "matrix product, batches": (SEQUENCE, lambda h, t: torch.bmm(h, h.mT.sin()) + h.bmm(h.mT)),
    "matrix product, of matrices": (VECTOR, lambda h, t: torch.mm(h, t.m) + h.mm(t.m)),
    "matrix product, parameter first": (SEQUENCE, lambda h, t: t.square @ h.mT),
    "matrix product, vectors": (SEQUENCE, lambda h, t: torch.matmul(h, t.p)),
    "matrix product, vector first": (SEQUENCE, lambda h, t: torch.matmul(t.p, h.mT)),
    "matrix product, broadcast": (IMAGE, lambda h, t: h @ h.mean(1, keepdim=True).mT.sin()),
    "einsum": (SEQUENCE, lambda h, t: torch.einsum("btd,bsd->bts", h, h.sin())),
    "einsum, parameter": (SEQUENCE, lambda h, t: torch.einsum("b t d, d e -> b e t", h, t.m)),
    "einsum, implicit": (SEQUENCE, lambda h, t: torch.einsum("btd,de", [h, t.m])),
    "einsum, ellipsis": (SEQUENCE, lambda h, t: torch.einsum("...d,d->...", h, t.p)),
    "einsum, three": (SEQUENCE, lambda h, t: torch.einsum("bsd,de,bsd->bse", h, t.m, torch.cos(h))),
    "einsum, permuting": (SEQUENCE, lambda h, t: torch.einsum("btd->bdt", h)),
    "bilinear": (VECTOR, lambda h, t: functional.bilinear(h, h.sin(), t.cube)),
    "glu": (VECTOR, lambda h, t: functional.glu(h)),
    "cat": (VECTOR, lambda h, t: torch.cat([h, h.sin()], 1) * torch.concat([h, h], -1) * torch.concatenate([h, h], 1)),
    "stack": (VECTOR, lambda h, t: torch.stack([h, h.sin()], 1) + torch.stack([h, h], -1).mT),
    "dropout": (VECTOR, lambda h, t: functional.dropout(h, 0.3) + functional.dropout(h, 0.3, False)),
    "clone": (VECTOR, lambda h, t: torch.clone(h) + h.clone() + h.contiguous()),
    "linear": (VECTOR, lambda h, t: functional.linear(h, t.square, t.p)),
    "layer norm": (
        SEQUENCE,
        lambda h, t: functional.layer_norm(h, (6,), t.p, t.c) + torch.layer_norm(h, [6], None, t.p),
    ),
    "root mean square": (SEQUENCE, lambda h, t: functional.rms_norm(h, (6,), t.p) + torch.rms_norm(h, (4, 6))),
    "group norm": (VECTOR, lambda h, t: functional.group_norm(h, 2, t.p) + torch.group_norm(h, 3, t.p, t.c)),
    "instance norm": ((6, 4), lambda h, t: functional.instance_norm(h, weight=t.p, bias=t.c)),
    "batch norm": (VECTOR, lambda h, t: functional.batch_norm(h, None, None, t.p, t.c, True)),
    "attention": (IMAGE, lambda h, t: functional.scaled_dot_product_attention(h, h.sin(), h * h)),
    "pool": (IMAGE, lambda h, t: functional.max_pool2d(h, 2) + torch.max_pool2d(h, 2) + functional.avg_pool2d(h, 2)),
    "adaptive pool": (
        IMAGE,
        lambda h, t: functional.adaptive_avg_pool2d(h, 2) + functional.adaptive_max_pool2d(h, 2),
    ),
    "interpolate": (IMAGE, lambda h, t: functional.interpolate(h, size=h.shape[2:])),
    "pixel shuffle": (IMAGE, lambda h, t: functional.pixel_unshuffle(functional.pixel_shuffle(h, 2), 2)),
    "torch pixel shuffle": (IMAGE, lambda h, t: torch.pixel_unshuffle(torch.pixel_shuffle(h, 2), 2)),
    "channel shuffle": (IMAGE, lambda h, t: functional.channel_shuffle(h, 2) + torch.channel_shuffle(h, 4)),
    "unfold": (IMAGE, lambda h, t: functional.unfold(h, 2)),
    "pad, sizes": (IMAGE, lambda h, t: functional.pad(h, (0, h.shape[3] % 4, h.shape[2] // 5, 0))),
    "pad": (IMAGE, lambda h, t: functional.pad(h, (1, 2, 0, -1), value=0.3)),
    "index": (IMAGE, lambda h, t: h[:, 1:3, ..., -1] * h[:, ::2, 0, 1:] + h[:, None, 0, :, 2]),
    "index, list": (SEQUENCE, lambda h, t: h[:, [0, 2, 2]] + h[:, :, [1]][:, 1:]),
    "index, sizes": (SEQUENCE, lambda h, t: h[:, : h.size(1) - 1, h.shape[2] // 2 :]),
    "index, samples": (SEQUENCE, lambda h, t: h + h[:1] + h[-1]),
    "select": (SEQUENCE, lambda h, t: torch.select(h, 1, -1) + h.select(-2, 0)),
    "narrow": (SEQUENCE, lambda h, t: torch.narrow(h, 1, 1, 2) + h.narrow(-2, -3, 2)),
    "chunk": (VECTOR, lambda h, t: torch.chunk(h, 2, 1)[0] * h.chunk(2, dim=-1)[1]),
    "chunk, uneven": (VECTOR, lambda h, t: h.chunk(4, 1)[2] * torch.tensor_split(h, 4, 1)[0]),
    "split": (VECTOR, lambda h, t: torch.split(h, 2, 1)[-1] * h.split([1, 2, 3], 1)[1]),
    "split with sizes": (
        VECTOR,
        lambda h, t: torch.split_with_sizes(h, [2, 4], 1)[0] * h.split_with_sizes([4, 2], -1)[1],
    ),
    "tensor split": (SEQUENCE, lambda h, t: h.tensor_split(3, dim=1)[1].flatten(1)),
    "unpacked": (VECTOR, lambda h, t: swapped(h)),
    "unbind": (SEQUENCE, lambda h, t: torch.unbind(h, 1)[3] * h.unbind(-2)[0]),
    "unbind the batch": (VECTOR, lambda h, t: h * h.unbind()[0]),
    "expand": (VECTOR, lambda h, t: h.unsqueeze(1).expand(-1, 3, -1) * h.unsqueeze(2).expand(-1, 6, 6)[:, 3:]),
    "broadcast": (
        VECTOR,
        lambda h, t: torch.broadcast_to(h.unsqueeze(1), (h.shape[0], 2, 6)) + h[:, None].broadcast_to(h.size(0), 2, 6),
    ),
    "repeat": (SEQUENCE, lambda h, t: h.repeat(1, 2, 3) + h[:, :2].repeat((1, 4, 3))),
    "repeat the batch": (VECTOR, lambda h, t: h + h.mean(0, keepdim=True).repeat(h.shape[0], 1)),
    "repeat interleaved": (SEQUENCE, lambda h, t: torch.repeat_interleave(h, 2, 1) + h.repeat_interleave(2, dim=-2)),
    "flip": (IMAGE, lambda h, t: torch.flip(h, (1, 3)) * h.flip(-1) + h.flip([2])),
    "flip the batch": (VECTOR, lambda h, t: h * h.flip(0)),
    "roll": (IMAGE, lambda h, t: torch.roll(h, 1, 1) * h.roll((1, -2), (2, 3))),
    "roll the batch": (VECTOR, lambda h, t: h * h.roll(1, 0)),
    "cumulative sum": (SEQUENCE, lambda h, t: torch.cumsum(h, 1) * h.cumsum(-1)),
    "reshapes": (SEQUENCE, lambda h, t: torch.reshape(torch.flatten(h, 1), (-1, 2, 12)) * h.reshape(-1, 2, 12)),
    "reshapes, methods": (
        SEQUENCE,
        lambda h, t: h.flatten(1).view(-1, 4, 6).unflatten(1, (2, 2)).unsqueeze(1).squeeze(1),
    ),
    "reshapes, functions": (
        SEQUENCE,
        lambda h, t: torch.squeeze(torch.unsqueeze(torch.unflatten(h, 1, (2, 2)), 1), 1),
    ),
    "permutations": (
        IMAGE,
        lambda h, t: torch.permute(h, (0, 2, 1, 3)).permute(0, 1, 3, 2) + torch.transpose(h, 1, 2).transpose(2, 3),
    ),
    "swaps": (
        SEQUENCE,
        lambda h, t: torch.swapaxes(h, 1, 2) + h.swapaxes(1, 2) + torch.swapdims(h, 1, 2) + h.swapdims(1, 2),
    ),
    "moves": (
        IMAGE,
        lambda h, t: torch.movedim(h, 1, 3) + h.movedim(1, 3) + torch.moveaxis(h, 1, -1) + h.moveaxis(1, 3),
    ),
    "transposes": (VECTOR, lambda h, t: torch.t(h).t() + torch.t(h.t()) + h.T.T),
    "convolution": (SEQUENCE, lambda h, t: functional.conv1d(h, t.k1) + torch.conv1d(h, t.k1)),
    "convolution of images": (IMAGE, lambda h, t: functional.conv2d(h, t.k2) + torch.conv2d(h, t.k2, padding="valid")),
    "convolution of volumes": (VOLUME, lambda h, t: functional.conv3d(h, t.k3) + torch.conv3d(h, t.k3)),
    "transposed": (SEQUENCE, lambda h, t: functional.conv_transpose1d(h, t.k1) + torch.conv_transpose1d(h, t.k1)),
    "transposed, images": (IMAGE, lambda h, t: functional.conv_transpose2d(h, t.k2) + torch.conv_transpose2d(h, t.k2)),
    "transposed, volumes": (
        VOLUME,
        lambda h, t: functional.conv_transpose3d(h, t.k3) + torch.conv_transpose3d(h, t.k3),
    ),
}


SHAPES = {
    "p": (6,),
    "m": (6, 5),
    "square": (6, 6),
    "cube": (3, 6, 6),
    "k1": (4, 4, 3),
    "k2": (4, 4, 2, 3),
    "k3": (2, 2, 2, 2, 2),
}


class Function(nn.Module):
    """A function of a value and of the tensors that this holds."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.rand(shape) + 0.1))
        self.register_buffer("c", torch.randn(6))
        self.register_buffer("i", torch.tensor([2, 0, 2, 1]))
        self.register_buffer("mask", torch.ones(4, 4).tril() == 0)

    def forward(self, h):
        return self.function(h, self)


def in_place(h, p):
    h += p
    h -= 2
    h *= 3
    h /= 2
    h **= 2
    return h


def both(pair):
    a, b = pair
    return a * b


def swapped(h):
    a, b = h.chunk(2, 1)
    return torch.cat([b, a.sin()], 1)


class SelfAttention(nn.Module):
    def __init__(self, attention, length_first=False):
        super().__init__()
        self.attention = attention
        self.length_first = length_first

    def forward(self, x):
        if self.length_first:
            x = x.transpose(0, 1)
        y, _ = self.attention(x, x, x, need_weights=False)
        return y.transpose(0, 1) if self.length_first else y


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, torch.sin(x))


class Around(nn.Module):
    """A function or layer of a value of some shape, in the middle of a smooth network."""

    def __init__(self, shape, inner, outputs=2):
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(3, torch.Size(shape).numel())
        self.inner = inner
        with torch.random.fork_rng(), torch.no_grad():
            result = self.middle(torch.randn(2, 3))
        self.last = nn.Linear(result.flatten(1).shape[1], outputs)

    def middle(self, x):
        return self.inner(torch.tanh(self.first(x)).unflatten(1, self.shape))

    def forward(self, x):
        return self.last(torch.tanh(self.middle(x)).flatten(1))


def randomised(layer):
    """The layer with parameters and statistics that are not the initial ones."""
    with torch.no_grad():
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.is_floating_point() and "running" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn_like(tensor))
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    shape, make = LAYERS[name]
    model = Around(shape, randomised(make()))
    assert opaque_reasons(model) == []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_primitives(model, torch.randn(3, 3))


@pytest.mark.parametrize("name", CALLS)
def test_functions(name):
    shape, function = CALLS[name]
    model = Around(shape, Function(function))
    assert opaque_reasons(model) == []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_primitives(model, torch.randn(3, 3))


@pytest.mark.parametrize("make", [nn.Hardsigmoid, lambda: Formula(functional.hardsigmoid)], ids=["layer", "function"])
def test_hard_sigmoid(make):
    """Eager has no double backward for it: the formula has."""
    model = Around(VECTOR, make())
    oracle = copy.deepcopy(model)
    oracle.inner = Formula(lambda h: (h + 3).clamp(0, 6) / 6)
    with torch.no_grad():
        model.first.weight.mul_(9)
        oracle.first.weight.mul_(9)
    assert opaque_reasons(model) == []
    x, cotangent = torch.randn(5, 3), torch.randn(5, 2)
    compare(
        evaluate(gradreg_fast.value_and_vjp, model, [x, cotangent]), evaluate(value_and_vjp, oracle, [x, cotangent])
    )
    compare(evaluate(gradreg_fast.jacobian_sqnorm, model, [x]), evaluate(jacobian_sqnorm, oracle, [x]))


def test_distances():
    """Eager has no double backward for `torch.cdist`: the formula has."""
    model = Around(SEQUENCE, Formula(lambda h: torch.cdist(h, h[:, :3].sin() + 1)))
    oracle = copy.deepcopy(model)
    oracle.inner = Formula(lambda h: (h.unsqueeze(2) - (h[:, :3].sin() + 1).unsqueeze(1)).norm(dim=-1))
    assert opaque_reasons(model) == []
    compare(evaluate(gradreg_fast.value_and_vjp, model, [x := torch.randn(3, 3)]), evaluate(value_and_vjp, oracle, [x]))


@pytest.mark.parametrize("name", ["float", "half", "bfloat16"])
def test_lower_precision_in_between(name):
    """Rounding once or twice, as eager rounds the terms of a sum, may differ by the lower precision's."""
    model = Around(VECTOR, Formula(lambda h: getattr(h, name)().double() * h))
    assert opaque_reasons(model) == []
    x = torch.randn(3, 3)
    compare(evaluate(gradreg_fast.value_and_vjp, model, [x]), evaluate(value_and_vjp, model, [x]), rtol=2**-7)


class Formula(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def test_complete():
    """Every registered name has an example above."""
    targets = set()
    for shape, function in CALLS.values():
        root = tracing._Root(Around(shape, Function(function)), ONE_TENSOR, True)
        traced = tracing._Tracer(root).trace(root)
        targets |= {node.target for node in traced.nodes}
    assert set(FUNCTIONS) - targets == {functional.hardsigmoid, torch.cdist, "float", "half", "bfloat16"}  # above
    assert {name.partition(".")[0] for name in NAMED} == {"timm", "torchvision"}  # in test_merge and test_norm
    modules = {type(module) for _, make in LAYERS.values() for module in make().modules()}
    assert set(MODULES) - modules == {nn.Hardsigmoid}


def unmixed(model, h):
    """The graph of a function alone, whether a sample's result depends on another sample, and whether it bends."""

    def value(h):
        manual_seed(1)
        return model(h)

    y = value(h)
    if len(y) != 3:
        return graph_of(model), True, None
    own = recorded_gradient(y[0].sum(), h, torch.ones(()))
    mixes = bool(own[1:].count_nonzero())
    g = recorded_gradient(y, h, torch.randn_like(y))
    bends = g.requires_grad and bool(recorded_gradient(g, h, torch.randn_like(g)).count_nonzero())
    return graph_of(model), mixes, bends


@pytest.mark.parametrize("name", [*LAYERS, *CALLS])
def test_flags(name):
    """Where a graph claims to be piecewise linear, or to keep samples apart, it is: savings rest on it."""
    shape, given = LAYERS.get(name) or CALLS[name]
    manual_seed(0)
    model = randomised(given()) if name in LAYERS else Function(given)
    h = torch.randn(3, *shape).tanh().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        graph, mixes, bends = unmixed(model, h)
    assert graph.couples_samples or not mixes
    assert bends is None or graph.curvature_free == (not bends)
    if graph.homogeneous and not mixes:
        scale, xdot = torch.randn(3), torch.randn(1, 3, *shape)
        y, linearization = linearize(graph, h.detach(), graph.tensors(h))
        (ydot, _), (both, _) = (linearization.push({0: xdot}, graph.seed, scale=s) for s in (None, scale))
        torch.testing.assert_close(both[0], ydot[0] + per_sample(scale, y) * y)


def test_the_documentation_names_every_rule():
    """The README's table is the registry's, and names each module, function and method."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    written = readme.partition("<!-- rules:")[2].partition("-->")[2].partition("<!-- end of rules -->")[0]
    assert written.strip() == table()
    names = set(re.findall(r"`([^`]+)`", table()))
    assert {kind.__name__ for kind in MODULES if kind.__module__.startswith("torch.")} <= names
    assert set(NAMED) <= names
    assert {spelled(target) for target in FUNCTIONS} <= names
