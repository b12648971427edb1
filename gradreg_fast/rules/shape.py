"""Operations that move values without changing them, and other parameterless linear maps."""

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule, is_channels_last, map_rows, shared_rows


class Reshape(Rule):
    """Any of view, reshape, flatten, unflatten, squeeze, unsqueeze: the order of the elements stays.

    Args:
        function: called as ``function(x, *extras)``.
    """

    def __init__(self, function) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *extras)
        return y, (x.shape, y.shape, is_channels_last(x))

    def pull(self, saved, parameters, u):
        pulled = reshape_stack(u, saved[0])
        if saved[2] and not shared_rows(pulled):
            K, B = pulled.shape[:2]  # the layout of the layers below
            pulled = pulled.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (K, B))
        return (pulled,)

    def push(self, saved, parameters, xdots):
        return reshape_stack(xdots[0], saved[1])


class Permute(Rule):
    """Permutation of the dimensions.

    Args:
        function: returns a permuted view of its argument, ``function(x, *extras)``.
    """

    couples_samples = True  # unless dimension 0 stays first, which only the settings know

    def __init__(self, function) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        (x,) = inputs
        y = self.function(x, *extras)
        named = torch.empty(1).as_strided([1] * x.dim(), list(range(x.dim())))  # each dimension's stride is its number
        return y, (self.function(named, *extras).stride(), x.shape)

    def pull(self, saved, parameters, u):
        order, _ = saved
        inverse = [0] * len(order)
        for to, source in enumerate(order):
            inverse[source] = to
        return (permute_stack(u, inverse),)

    def push(self, saved, parameters, xdots):
        return permute_stack(xdots[0], saved[0])


class LinearMap(Rule):
    """A linear function of ``[rows, ...]`` without parameters (padding); autograd transposes it.

    Args:
        function: acts on each row alone.
    """

    def __init__(self, function) -> None:
        self.function = function

    def forward(self, inputs, parameters, extras):
        return self.function(inputs[0]), (inputs[0].shape,)

    def pull(self, saved, parameters, u):
        return (map_rows(lambda rows: self._transpose(rows, (len(rows), *saved[0][1:])), u),)

    def push(self, saved, parameters, xdots):
        return map_rows(self.function, xdots[0])

    def _transpose(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = rows.new_zeros(shape).requires_grad_()
            return torch.autograd.grad(self.function(x), x, rows)[0]


def reshape_stack(stack: Tensor, shape: torch.Size) -> Tensor:
    """A stack ``[K, *any]`` as ``[K, *shape]``; rows that samples share stay shared where the batch stays first."""
    if stack.shape[1] == shape[0] and shared_rows(stack):
        return stack[:, :1].reshape(len(stack), 1, *shape[1:]).expand(len(stack), *shape)
    return stack.reshape(len(stack), *shape)


def permute_stack(stack: Tensor, order) -> Tensor:
    """Permute the dimensions behind the first."""
    return stack.permute(0, *(dim + 1 for dim in order))
