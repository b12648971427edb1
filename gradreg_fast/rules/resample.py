"""Upsampling, interpolation, pixel shuffles and unfolding: linear maps with known transposes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gradreg_fast.rules.call import Call, Plain, collect, each, filling, function, module, settle
from gradreg_fast.rules.shape import LinearMap

aten = torch.ops.aten

# aten's interpolations by mode and number of spatial dimensions; linear and cubic ones may align the corners.
NEAREST = {"nearest": "upsample_nearest{}d", "nearest-exact": "_upsample_nearest_exact{}d"}
ALIGNED = {
    ("linear", 1): "upsample_linear1d",
    ("bilinear", 2): "upsample_bilinear2d",
    ("bicubic", 2): "upsample_bicubic2d",
    ("trilinear", 3): "upsample_trilinear3d",
}
ANTIALIASED = {"bilinear": "_upsample_bilinear2d_aa", "bicubic": "_upsample_bicubic2d_aa"}


@function(functional.interpolate)
def interpolate(
    input,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    if mode == "area":
        return "its averages have no rule"
    if any(True for _ in collect(Plain, scale_factor)):
        return "its factor is computed"
    settings = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    if scale_factor is not None:
        settings |= {"scale_factor": scale_factor, "recompute_scale_factor": recompute_scale_factor}
    elif size is not None:
        settings["size"] = size
    resize, plains = settle(functional.interpolate, (), settings)

    def transpose(u, shape, *extras):
        dims = len(shape) - 2
        given = scale_factor is not None and not recompute_scale_factor
        scales = each(scale_factor, dims) if given else [None] * dims
        if mode in NEAREST:
            name, options = NEAREST[mode].format(dims), ()
        else:
            name, options = ANTIALIASED[mode] if antialias else ALIGNED[mode, dims], (bool(align_corners),)
        backward = getattr(aten, name + "_backward")
        return backward(u.contiguous(), u.shape[2:], shape, *options, *scales)

    return Call(LinearMap(resize, transpose, (2,)), (input,), (), plains)


@module(nn.Upsample)
def upsample_module(layer, x, parameter):
    settings = layer.mode, layer.align_corners, layer.recompute_scale_factor
    return interpolate(x, layer.size, layer.scale_factor, *settings)


@module(nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsampling_module(layer, x, parameter):
    return interpolate(x, layer.size, layer.scale_factor, layer.mode, layer.align_corners)


@function(functional.pixel_shuffle, torch.pixel_shuffle)
def pixel_shuffle(input, upscale_factor):
    return rearranged(torch.pixel_shuffle, torch.pixel_unshuffle, input, upscale_factor)


@function(functional.pixel_unshuffle, torch.pixel_unshuffle)
def pixel_unshuffle(input, downscale_factor):
    return rearranged(torch.pixel_unshuffle, torch.pixel_shuffle, input, downscale_factor)


def rearranged(function, inverse, input, factor):
    rule = LinearMap(lambda x: function(x, factor), lambda u, shape: inverse(u, factor), (-1, -2, -3))
    return Call(rule, (input,))


@module(nn.PixelShuffle)
def pixel_shuffle_module(layer, x, parameter):
    return pixel_shuffle(x, layer.upscale_factor)


@module(nn.PixelUnshuffle)
def pixel_unshuffle_module(layer, x, parameter):
    return pixel_unshuffle(x, layer.downscale_factor)


@function(functional.channel_shuffle, torch.channel_shuffle)
def channel_shuffle(input, groups):
    rule = LinearMap(
        lambda x: torch.channel_shuffle(x, groups), lambda u, shape: torch.channel_shuffle(u, shape[1] // groups), (1,)
    )
    return Call(rule, (input,))


@module(nn.ChannelShuffle)
def channel_shuffle_module(layer, x, parameter):
    return channel_shuffle(x, layer.groups)


@function(functional.unfold)
def unfold(input, kernel_size, dilation=1, padding=0, stride=1):
    def fold(u, shape):
        return functional.fold(u, shape[2:], kernel_size, dilation, padding, stride)

    rule = LinearMap(lambda x: functional.unfold(x, kernel_size, dilation, padding, stride), fold, (1,))
    return Call(rule, (input,))


@function(functional.fold)
def fold(input, output_size, kernel_size, dilation=1, padding=0, stride=1):
    settings = kernel_size, dilation, padding, stride
    read = list(dict.fromkeys(collect(Plain, output_size)))
    fill = filling(output_size, read)

    def folded(x, *extras):
        return functional.fold(x, fill(extras), *settings)

    def unfolded(u, shape, *extras):
        return functional.unfold(u, *settings)

    return Call(LinearMap(folded, unfolded, (1, 2)), (input,), (), read)


@module(nn.Fold)
def fold_module(layer, x, parameter):
    return fold(x, layer.output_size, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


@module(nn.Unfold)
def unfold_module(layer, x, parameter):
    return unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
