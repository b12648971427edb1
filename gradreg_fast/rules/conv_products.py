"""Convolutions with the activation behind them as one node on CUDA devices: products over gathered pixels."""

import torch
from torch import Tensor

from gradreg_fast.rules.conv import channels_last
from gradreg_fast.rules.conv_block import ConvBlock


class ConvProducts(ConvBlock):
    """``y = phi(W * x + b)``, channels last: forward and push have phi in their epilogues, pull and adjoint before."""

    def forward(self, inputs, parameters, extras):
        x, weight = channels_last(inputs[0]), channels_last(parameters[0])
        y, kept = torch.ops.gradreg_fast.conv_forward(x, weight, parameters[1], self.options, self._settings(x))
        straight = self.options[13] == 0  # no activation
        return y, (x, kept if straight or kept.numel() else y, weight)  # else the slope follows from y

    def _push(self, saved, parameters, u, xdot, push, curvature, gradient):
        _, kept, weight = saved
        needed = None if u is None or not (curvature or gradient) else _images(u)
        given = kept, weight, self.options, self._settings(xdot), push, curvature, gradient
        return torch.ops.gradreg_fast.conv_push(_images(xdot), needed, *given)

    def _pull(self, saved, parameters, u, second, gradient, pull, bias):
        x, kept, weight = saved
        given = second, x if gradient else None, kept, weight, x.shape, self.options, self._settings(x), pull, bias
        return torch.ops.gradreg_fast.conv_pull(None if u is None else _images(u), *given)

    def _settings(self, x: Tensor) -> tuple[float, ...]:
        """With PyTorch's own word on whether float32 convolutions may be TF32's."""
        if x.dtype != torch.float32:
            return self.settings
        return (*self.settings, float(torch.backends.cudnn.conv.fp32_precision == "tf32"))


def _images(stack: Tensor) -> Tensor:
    """A stack ``[K, B, C, H, W]`` of images that lie channels last, without gaps."""
    return channels_last(stack.flatten(0, 1)).unflatten(0, stack.shape[:2])
