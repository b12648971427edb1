"""Networks that people train with gradient penalties, written anew from what their papers say of them.

Sizes are the papers' where a CPU bears them; initial values only where a paper makes them part of the network.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


class DCGANDiscriminator(nn.Sequential):
    """Strided convolutions, batch normalisation in all but the first and last, LeakyReLU (Radford 2015).

    Args:
        image: side of the image, a power of two.
        width: channels of the first convolution; each further one has twice as many.
    """

    def __init__(self, image: int = 64, width: int = 32):
        widths = [width * 2**i for i in range(image.bit_length() - 3)]
        layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4), nn.Flatten())


class WGANGPBlock(nn.Module):
    """Layer norm, ReLU and convolution, twice, beside a shortcut; halves the image by mean pooling if asked to."""

    def __init__(self, inputs: int, outputs: int, image: int, down: bool):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm([inputs, image, image]), nn.LayerNorm([outputs, image, image])])
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, H] -> [B, outputs, H or H / 2, ...]."""
        h = self.first(F.relu(self.norms[0](x)))
        h = self.second(F.relu(self.norms[1](h)))
        return self.pool(h) + self.shortcut(self.pool(x))


class WGANGPCritic(nn.Module):
    """Residual blocks, the first two halving the image, and the mean over the rest of it (Gulrajani 2017).

    With layer normalisation, which that paper recommends in the place of batch normalisation.

    Args:
        image: side of the image.
        width: channels.
    """

    def __init__(self, image: int = 32, width: int = 64):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        images = [(image, True), (image // 2, True), (image // 4, False), (image // 4, False)]
        self.blocks = nn.Sequential(*(WGANGPBlock(width, width, *each) for each in images))
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, 1]."""
        return self.last(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


class SNGANDiscriminator(nn.Sequential):
    """Pairs of 3 x 3 and strided 4 x 4 convolutions, every weight divided by its spectral norm (Miyato 2018).

    Args:
        image: side of the image, a multiple of 8.
        width: channels of the first convolution; three strided ones double them.
    """

    def __init__(self, image: int = 32, width: int = 32):
        def convolution(*sizes):
            return [spectral_norm(nn.Conv2d(*sizes, padding=1)), nn.LeakyReLU(0.1)]

        layers = convolution(3, width, 3)
        for inputs in (width, 2 * width, 4 * width):
            layers += convolution(inputs, 2 * inputs, 4, 2) + convolution(2 * inputs, 2 * inputs, 3)
        last = spectral_norm(nn.Linear(8 * width * (image // 8) ** 2, 1))
        super().__init__(*layers, nn.Flatten(), last)


class Equalised(nn.Module):
    """A convolution, or a linear layer without `kernel`, whose weights are scaled as it runs (Karras 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None, bias: bool = True):
        super().__init__()
        sides = (kernel, kernel) if kernel else ()
        self.function = F.conv2d if kernel else F.linear
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *sides))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(self.weight[0].numel())

    def forward(self, x: Tensor, **settings: int) -> Tensor:
        """As of the layer; the convolution's stride and padding as settings."""
        return self.function(x, self.weight * self.scale, self.bias, **settings)


class Blur(nn.Module):
    """The filter [1, 3, 3, 1] along both sides, a depthwise convolution, before a convolution halves the image."""

    def __init__(self, channels: int, pad: int):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps).repeat(channels, 1, 1, 1))
        self.settings = {"padding": pad, "groups": channels}

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H + 2 pad - 3, ...]."""
        return F.conv2d(x, self.kernel, **self.settings)


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """With the variance of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class StyleGAN2Block(nn.Module):
    """Two convolutions, the second on the blurred image and halving it, beside a blurred, halved shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = Equalised(inputs, inputs, 3), Equalised(inputs, outputs, 3)
        self.shortcut = Equalised(inputs, outputs, 1, bias=False)
        self.blur, self.shortcut_blur = Blur(inputs, 2), Blur(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, H] -> [B, outputs, H / 2, H / 2]."""
        h = scaled_leaky_relu(self.first(x, padding=1))
        h = scaled_leaky_relu(self.second(self.blur(h), stride=2))
        return (h + self.shortcut(self.shortcut_blur(x), stride=2)) / math.sqrt(2)


class StyleGAN2Discriminator(nn.Module):
    """Residual blocks of blurred, equalised convolutions, and the deviation over samples at the end (Karras 2020).

    Args:
        widths: channels at each size of the image; it ends 4 pixels wide.
        group: samples over which the standard deviation is taken.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64), group: int = 4):
        super().__init__()
        self.group = group
        self.from_rgb = Equalised(3, widths[0], 1)
        self.blocks = nn.Sequential(*map(StyleGAN2Block, widths, widths[1:]))
        self.convolution = Equalised(widths[-1] + 1, widths[-1], 3)
        self.hidden, self.last = Equalised(16 * widths[-1], widths[-1]), Equalised(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, 1]; B is a multiple of the group."""
        h = self.blocks(scaled_leaky_relu(self.from_rgb(x)))
        B, C, H, W = h.shape
        groups = h.reshape(-1, self.group, C, H, W)
        variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
        deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))  # [B / group]
        deviation = deviation.repeat_interleave(self.group, 0).reshape(B, 1, 1, 1).expand(-1, -1, H, W)
        h = scaled_leaky_relu(self.convolution(torch.cat([h, deviation], 1), padding=1))
        return self.last(scaled_leaky_relu(self.hidden(h.flatten(1))))


class R3GANBlock(nn.Module):
    """1 x 1, grouped 3 x 3 and 1 x 1 convolutions, widest in the middle, beside the identity."""

    def __init__(self, width: int, groups: int, expansion: int = 2):
        super().__init__()
        inner = width * expansion
        self.up, self.down = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1, bias=False)
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], twice."""
        h = F.leaky_relu(self.up(x), 0.2)
        return x + self.down(F.leaky_relu(self.grouped(h), 0.2))


class R3GANDiscriminator(nn.Module):
    """Residual stages without normalisation, bilinear halving, a depthwise 4 x 4 convolution last (Huang 2024).

    The paper begins with zeros in each block's last convolution; here they are as after training.

    Args:
        widths: channels at each size of the image; it ends 4 pixels wide.
        blocks: in each stage.
        groups: of the grouped convolutions.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128), blocks: int = 2, groups: int = 8):
        super().__init__()
        self.from_rgb = nn.Conv2d(3, widths[0], 1)
        self.stages = nn.ModuleList([nn.Sequential(*(R3GANBlock(w, groups) for _ in range(blocks))) for w in widths])
        self.transitions = nn.ModuleList([nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)])
        self.depthwise = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, 1]."""
        h = self.stages[0](self.from_rgb(x))
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            h = F.interpolate(h, scale_factor=0.5, mode="bilinear", align_corners=False)
            h = stage(transition(h))
        return self.last(self.depthwise(h).flatten(1))


class SignedDistance(nn.Module):
    """Positions by their sines and cosines, weight-normalised softplus layers, one skip (Mildenhall 2020, Wang 2021).

    Begins as roughly the distance to a sphere (Atzmon 2020).

    Args:
        width: of the hidden layers.
        depth: their number; the input joins again in the middle.
        octaves: frequencies 1, 2, 4, ... of the encoding.
    """

    def __init__(self, width: int = 128, depth: int = 8, octaves: int = 6):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(octaves))
        encoded = 3 + 6 * octaves
        self.skip = depth // 2
        layers = []
        for i in range(depth):
            outputs = width - encoded if i + 1 == self.skip else width
            layer = nn.Linear(encoded if i == 0 else width, outputs)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / outputs))
            nn.init.zeros_(layer.bias)
            if i == 0:
                nn.init.zeros_(layer.weight[:, 3:].detach())
            layers.append(layer)
        last = nn.Linear(width, 1)
        nn.init.normal_(last.weight, mean=math.sqrt(math.pi / width), std=1e-4)
        nn.init.constant_(last.bias, -0.5)
        self.hidden, self.last = nn.ModuleList(map(weight_norm, layers)), weight_norm(last)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3] -> [B, 1]."""
        angles = (x.unsqueeze(-1) * self.frequencies).flatten(1)  # [B, 3 octaves]
        encoded = torch.cat([x, angles.sin(), angles.cos()], 1)
        h = encoded
        for i, layer in enumerate(self.hidden):
            if i == self.skip:
                h = torch.cat([h, encoded], 1) / math.sqrt(2)
            h = F.softplus(layer(h), beta=100)
        return self.last(h)


class Siren(nn.Module):
    """Sines of linear layers, their angles scaled by 30 (Sitzmann 2020).

    Args:
        inputs: coordinates.
        width: of the hidden layers.
        depth: their number.
    """

    def __init__(self, inputs: int = 2, width: int = 128, depth: int = 4):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs if i == 0 else width, width) for i in range(depth)])
        self.last = nn.Linear(width, 1)
        for i, layer in enumerate((*self.layers, self.last)):
            bound = 1 / inputs if i == 0 else math.sqrt(6 / width) / 30
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, 1]."""
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.last(x)


def shifted_softplus(x: Tensor) -> Tensor:
    """Zero at zero."""
    return F.softplus(x) - math.log(2)


class Interaction(nn.Module):
    """Messages between atoms, filtered by functions of their distance."""

    def __init__(self, width: int, radial: int):
        super().__init__()
        self.filters = nn.ModuleList([nn.Linear(radial, width), nn.Linear(width, width)])
        self.inputs = nn.Linear(width, width, bias=False)
        self.outputs = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])

    def forward(self, h: Tensor, radial: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        """[B, N, width] and [B, pairs, radial] -> [B, N, width]."""
        filters = shifted_softplus(self.filters[1](shifted_softplus(self.filters[0](radial))))
        messages = self.inputs(h).index_select(1, senders) * filters  # [B, pairs, width]
        received = torch.zeros_like(h).index_add(1, receivers, messages)
        return h + self.outputs[1](shifted_softplus(self.outputs[0](received)))


class SchNet(nn.Module):
    """The energy of a molecule from its atoms' positions, by continuous filters over all pairs (Schütt 2017).

    Its negative gradient is the forces.

    Args:
        atoms: of the molecule, the same in every sample.
        width: of an atom's features.
        interactions: the number of blocks.
        radial: Gaussians of the distance, up to 5.
    """

    def __init__(self, atoms: int = 9, width: int = 64, interactions: int = 3, radial: int = 32):
        super().__init__()
        senders, receivers = torch.nonzero(1 - torch.eye(atoms)).unbind(1)
        self.register_buffer("senders", senders)
        self.register_buffer("receivers", receivers)
        self.register_buffer("kinds", torch.arange(atoms) % 4)
        self.register_buffer("centres", torch.linspace(0, 5, radial))
        self.width = 5 / (radial - 1)
        self.embedding = nn.Embedding(4, width)
        self.interactions = nn.ModuleList([Interaction(width, radial) for _ in range(interactions)])
        self.hidden, self.last = nn.Linear(width, width // 2), nn.Linear(width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 3] -> [B, 1]."""
        difference = x.index_select(1, self.senders) - x.index_select(1, self.receivers)  # [B, pairs, 3]
        distance = difference.norm(dim=-1, keepdim=True)
        radial = torch.exp(-((distance - self.centres) / self.width).square() / 2)  # [B, pairs, radial]
        h = self.embedding(self.kinds).expand(x.shape[0], -1, -1)  # [B, N, width]
        for interaction in self.interactions:
            h = interaction(h, radial, self.senders, self.receivers)
        return self.last(shifted_softplus(self.hidden(h))).sum(1)


class TransformerBlock(nn.Module):
    """Attention and two GELU layers, each behind a layer norm and beside the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width], twice."""
        B, L, E = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, L, E / heads]
        x = x + self.project(h.transpose(1, 2).reshape(B, L, E))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """A classifier of embedded sequences, with positions by sines and cosines (Vaswani 2017; norms first, Xiong 2020).

    Args:
        length: of a sequence.
        width: of its embeddings.
        heads: of the attention.
        depth: number of blocks.
        classes: of the sequences.
    """

    def __init__(self, length: int = 64, width: int = 96, heads: int = 4, depth: int = 4, classes: int = 10):
        super().__init__()
        rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(length), rates)  # [L, width / 2]
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], 2).flatten(1))  # [L, width]
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, classes]."""
        return self.last(self.norm(self.blocks(x + self.positions)).mean(1))
