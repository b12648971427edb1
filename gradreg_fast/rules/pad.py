"""Padding in every mode: a linear map with a known transpose; a constant other than zero only moves the result."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradreg_fast.rules.base import shaped
from gradreg_fast.rules.call import Call, Plain, collect, filling, function, module
from gradreg_fast.rules.shape import LinearMap

aten = torch.ops.aten


class Pad(LinearMap):
    """``functional.pad``: amounts before and behind, last dimension first; a negative one crops (constant mode)."""

    def __init__(self, around: list[int], mode: str = "constant", value: float = 0) -> None:
        self.around = list(around)
        self.value = value
        self.homogeneous = not value
        pairs = zip(self.around[::2], self.around[1::2], strict=True)
        changed = [-1 - i for i, pair in enumerate(pairs) if any(pair)]
        super().__init__(
            lambda x: functional.pad(x, self.around, mode),
            lambda u, shape: TRANSPOSES[mode](u, shape, self.around),
            changed,
        )

    def forward(self, inputs, parameters, extras):
        if not self.value:
            return super().forward(inputs, parameters, extras)
        (x,) = inputs
        return functional.pad(x, self.around, value=self.value), self.kept(x, extras)


def crop(u: Tensor, shape: tuple[int, ...], around: list[int]) -> Tensor:
    """The transpose of padding with zeros."""
    return functional.pad(u, [-amount for amount in around])


def fold(kind: str, u: Tensor, shape: tuple[int, ...], around: list[int]) -> Tensor:
    """The transpose of repeating or mirroring the border."""
    return getattr(aten, f"{kind}_pad{len(around) // 2}d_backward")(u, shaped(u, shape), around)


def unwrap(u: Tensor, shape: tuple[int, ...], around: list[int]) -> Tensor:
    """The transpose of continuing at the other end: what lies outside is added there."""
    for i in range(len(around) // 2):
        dim, (before, behind), size = u.dim() - 1 - i, around[2 * i : 2 * i + 2], shape[-1 - i]
        inner = u.narrow(dim, before, size).clone()
        inner.narrow(dim, size - before, before).add_(u.narrow(dim, 0, before))
        inner.narrow(dim, 0, behind).add_(u.narrow(dim, before + size, behind))
        u = inner
    return u


TRANSPOSES = {
    "constant": crop,
    "reflect": lambda *arguments: fold("reflection", *arguments),
    "replicate": lambda *arguments: fold("replication", *arguments),
    "circular": unwrap,
}


@function(functional.pad)
def pad(input, pad, mode="constant", value=None):
    plains = list(dict.fromkeys(collect(Plain, (pad,))))
    if plains and mode == "constant" and not value:
        around = filling(tuple(pad), plains)
        rule = LinearMap(
            lambda x, *extras: functional.pad(x, around(extras)),
            lambda u, shape, *extras: crop(u, shape, around(extras)),
            [-1 - i for i in range(len(pad) // 2)],
        )
        return Call(rule, (input,), (), plains)
    if plains:
        return "its amounts are computed from sizes"
    if mode == "circular" and min(pad) < 0:
        return "it crops"
    return Call(Pad(pad, mode, value or 0), (input,))


def padding_layer(mode: str):
    return lambda layer, x, parameter: pad(x, layer.padding, mode, getattr(layer, "value", 0))


for dims in (1, 2, 3):
    module(getattr(nn, f"ZeroPad{dims}d"), getattr(nn, f"ConstantPad{dims}d"))(padding_layer("constant"))
    for mode, name in (("reflect", "Reflection"), ("replicate", "Replication"), ("circular", "Circular")):
        module(getattr(nn, f"{name}Pad{dims}d"))(padding_layer(mode))
