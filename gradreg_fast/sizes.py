"""What a forward reads while it is traced: the sizes of its values, and the tensors that it makes of nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree


class Sizes:
    """Stand-ins without data for the values of a graph that is being traced.

    Args:
        inputs: what stands for each placeholder: nested real tensors.
    """

    def __init__(self, inputs: Sequence) -> None:
        self._mode = FakeTensorMode()
        self._inputs = iter(self._without_data(_pytree.tree_map_only(Tensor, Tensor.detach, tuple(inputs))))
        self._values: dict[fx.Node, object] = {}

    def of(self, node: fx.Node, root: torch.nn.Module, made: dict[str, Tensor]) -> object:
        """The stand-in for a node's value.

        Args:
            node: of the graph as far as it is known.
            root: the module that is traced; left as it is.
            made: the tensors that its forward has made, by name.
        """
        with self._mode, torch.no_grad():
            for earlier in node.graph.nodes:
                if earlier not in self._values:
                    self._values[earlier] = self._computed(earlier, root, made)
        return self._values[node]

    def _without_data(self, nested: object) -> object:
        return _pytree.tree_map_only(Tensor, self._mode.from_tensor, nested)

    def _computed(self, node: fx.Node, root: torch.nn.Module, made: dict[str, Tensor]) -> object:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "placeholder":
            return next(self._inputs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        if node.op == "call_module":
            module = root.get_submodule(node.target)
            state = self._without_data({**dict(module.named_parameters()), **dict(module.named_buffers())})
            return torch.func.functional_call(module, state, args, kwargs)
        if node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            tensor = made[node.target] if node.target in made else getattr(root.get_submodule(path), name)
            return self._without_data(tensor)
        return node.target(*args, **kwargs)


class Made(TorchFunctionMode):
    """Notes the tensors that are made while it is active, of numbers and of each other: nobody else holds them."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, Tensor] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._tensors

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, (Tensor, fx.Proxy))]
        if isinstance(result, Tensor) and not result.requires_grad and all(leaf in self for leaf in given):
            self._tensors[id(result)] = result
        return result
