"""Networks of the kinds that people train, small: autograd's numbers, and a rule for every node."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import architectures
from tests.parity import assert_primitives, opaque_reasons

pytestmark = pytest.mark.usefixtures("float64")


class Block(nn.Module):
    """A pre-norm transformer block with its own attention and a gated feed-forward network (Vaswani 2017)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up, self.down = (nn.Linear(*sizes) for sizes in ((width, 8), (width, 8), (8, width)))

    def forward(self, x):
        B, L, E = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.transpose(1, 2).reshape(B, L, E))
        h = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    """Learned positions, blocks, and attention written as products of matrices at the end."""

    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Linear(3, 6), nn.Parameter(torch.randn(1, 4, 6))
        self.blocks = nn.Sequential(Block(6, 2), Block(6, 3))
        self.query, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.blocks(self.embed(x) + self.positions)
        weights = torch.softmax(self.query(h) @ h.transpose(-2, -1) / 6**0.5, dim=-1)
        return self.last((weights @ h).mean(dim=1))


class SqueezeExcite(nn.Module):
    """An inverted residual with squeeze-and-excitation (Howard 2019, MobileNetV3)."""

    def __init__(self, act=nn.Hardswish, gate=nn.Sigmoid):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), act())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), act())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), gate())
        self.project = nn.Sequential(nn.Conv2d(8, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        h = self.depthwise(self.expand(x))
        h = h * self.squeeze(h)
        return self.last((x + self.project(h)).mean((2, 3)))


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm over channels and a scaled residual (Liu 2022)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.drop(self.scale * self.down(functional.gelu(self.up(h))))
        x = x + h.permute(0, 3, 1, 2)
        return self.last(x.mean([-2, -1]))


class UNet(nn.Module):
    """Down, up by interpolation and by a transposed convolution, and skips by concatenation (Ronneberger 2015)."""

    def __init__(self):
        super().__init__()

        def stage(inputs, outputs):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
            return nn.Sequential(conv, nn.GroupNorm(2, outputs), nn.SiLU())

        self.first, self.second, self.third = stage(3, 4), stage(4, 4), stage(4, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.fourth, self.fifth = stage(8, 4), stage(8, 4)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        a = self.first(x)
        b = self.second(functional.max_pool2d(a, 2))
        c = self.third(functional.avg_pool2d(b, 2))
        h = self.fourth(torch.cat([self.up(c), b], 1))
        h = functional.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(self.fifth(torch.cat([h, a], 1))).mean((2, 3))


class PointNet(nn.Module):
    """An energy of points: pairwise distances, shared layers, sums and maxima over points (Qi 2017)."""

    def __init__(self, smooth=True):
        super().__init__()
        self.smooth = smooth
        self.point = nn.Sequential(nn.Linear(3, 6), nn.SiLU() if smooth else nn.ReLU(), nn.Linear(6, 5))
        self.pair = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 5))
        self.last = nn.Linear(10 if smooth else 5, 1)

    def forward(self, x):  # [B, points, 3]
        h = self.point(x)
        if not self.smooth:
            return self.last(h.max(dim=1)[0]).squeeze(-1)
        difference = x.unsqueeze(2) - x.unsqueeze(1)
        distance = torch.sqrt(difference.pow(2).sum(-1, keepdim=True) + 0.1)
        messages = (self.pair(torch.exp(-distance)) * h.unsqueeze(1)).sum(2)
        return self.last(torch.cat([torch.amax(h, 1), messages.mean(1)], -1)).squeeze(-1)


class Volumes(nn.Module):
    """Three dimensions, encoded and decoded."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 2, 2, stride=2), nn.InstanceNorm3d(2, affine=True), nn.PReLU(2))
        self.up = nn.Sequential(nn.ConvTranspose3d(2, 1, 2, stride=2), nn.ELU())

    def forward(self, x):
        return (self.up(self.down(x)) - x).flatten(1).norm(dim=1)


class Sequences(nn.Module):
    """Gated convolutions over time, padded on one side (van den Oord 2016)."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 8, 2, dilation=2), nn.Conv1d(4, 3, 1)

    def forward(self, x):
        a, b = self.first(functional.pad(x, (2, 0))).chunk(2, dim=1)
        return functional.log_softmax(self.last(torch.tanh(a) * torch.sigmoid(b)).mean(-1), dim=-1)


NETWORKS = {
    "transformer": (Transformer, (2, 4, 3)),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True), 2, enable_nested_tensor=False
        ),
        (2, 3, 4),
    ),
    "squeeze and excitation": (SqueezeExcite, (2, 3, 5, 4)),
    "ConvNeXt": (ConvNeXt, (2, 3, 6, 6)),
    "UNet": (UNet, (2, 3, 8, 8)),
    "energy of points": (PointNet, (2, 4, 3)),
    "critic of points": (lambda: PointNet(smooth=False), (2, 4, 3)),
    "DCGAN": (lambda: architectures.DCGANDiscriminator(16, 2), (2, 3, 16, 16)),
    "WGAN-GP": (lambda: architectures.WGANGPCritic(8, 3), (2, 3, 8, 8)),
    "SNGAN": (lambda: architectures.SNGANDiscriminator(8, 2), (2, 3, 8, 8)),
    "StyleGAN2": (lambda: architectures.StyleGAN2Discriminator((2, 3), 2), (4, 3, 8, 8)),
    "R3GAN": (lambda: architectures.R3GANDiscriminator((4, 2), 1, 2), (2, 3, 8, 8)),
    "distance network": (lambda: architectures.SignedDistance(12, 3, 1), (4, 3)),
    "SIREN": (lambda: architectures.Siren(2, 4, 2), (4, 2)),
    "SchNet": (lambda: architectures.SchNet(3, 4, 1, 5), (2, 3, 3)),
    "encoder with sines": (lambda: architectures.Transformer(3, 4, 2, 1, 2), (2, 3, 4)),
    "volumes": (Volumes, (2, 1, 4, 4, 2)),
    "sequences": (Sequences, (2, 2, 6)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, training):
    make, shape = NETWORKS[name]
    model = make().train(training)
    assert opaque_reasons(model) == [] or name == "SchNet"  # its gathers and scatters have no rule yet
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_primitives(model, torch.randn(shape))
