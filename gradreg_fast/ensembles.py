"""Our functions under ``torch.func.vmap`` over a model's stacked parameters: an ensemble, member by member."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gradreg_fast.context import TRANSFORMED


def is_mapped(model: object) -> bool:
    """Whether `vmap` follows the model's parameters or buffers."""
    if functorch.peek_interpreter_stack() is None or not isinstance(model, nn.Module):
        return False
    return any(map(functorch.is_batchedtensor, _tensors(model).values()))


def each_member(function: Callable, args: tuple, kwargs: dict) -> object:
    """``function(*args, **kwargs)`` of a mapped model and its arguments, mapped or not, for one member after another.

    What a member draws at random is its own, as under ``randomness="different"``.

    Raises:
        RuntimeError: if another transform follows the tensors, too, or the members are to draw the same numbers.
    """
    model = args[0] if args else kwargs["model"]
    return _Members.apply(function, model, _tensors(model), args, kwargs)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class _Members(torch.autograd.Function):
    """Has a rule for `vmap`, in which autograd records each member's call by itself, and nothing else."""

    @staticmethod
    def forward(function, model, tensors, args, kwargs):
        raise RuntimeError(TRANSFORMED)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """What PyTorch asks of a function under transforms."""

    @staticmethod
    def vmap(info, in_dims, function, model, *mapped):
        if info.randomness == "same":
            raise RuntimeError("gradreg_fast: vmap's randomness must be 'error' or 'different', got 'same'")
        leaves, form = tree_flatten(mapped)
        dims = tree_leaves(in_dims[2:])
        results = []
        for i in range(info.batch_size):
            own = [leaf if dim is None else leaf.select(dim, i) for leaf, dim in zip(leaves, dims, strict=True)]
            tensors, args, kwargs = tree_unflatten(own, form)
            with _reparametrize_module(model, tensors, tie_weights=True):
                result, result_form = tree_flatten(function(*args, **kwargs))
            results.append(result)
        stacked = tree_unflatten([*map(torch.stack, zip(*results, strict=True))], result_form)
        return stacked, tree_unflatten([0] * len(results[0]), result_form)
