"""Any rule in a graph whose values have several dtypes: mixed precision."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gradreg_fast.rules.base import NodeGradients, Rule, shared_rows


def uncast(rule: Rule) -> Rule:
    """The rule that a `Cast` is for; any other itself."""
    return rule.rule if isinstance(rule, Cast) else rule


class Cast(Rule):
    """A rule whose operands are cast to one dtype for it, and what it returns to the dtypes of the graph's values.

    Args:
        rule: the operation.
        policy: called as ``policy(inputs, parameters, extras)``, gives that dtype and that of the result.
    """

    def __init__(self, rule: Rule, policy: Callable[..., tuple[torch.dtype, torch.dtype]]) -> None:
        self.rule = rule
        self.policy = policy
        self.curvature_free = rule.curvature_free
        self.couples_samples = rule.couples_samples
        self.meets_below = rule.meets_below
        self.makes_pieces = rule.makes_pieces
        self.aliases = rule.aliases

    def couples(self, dims):
        return self.rule.couples(dims)

    def forward(self, inputs, parameters, extras):
        dtype, result = self.policy(inputs, parameters, extras)
        parameters = tuple(_cast(p, dtype) for p in parameters)
        y, saved = self.rule.forward([_cast(x, dtype) for x in inputs], parameters, extras)
        return _cast(y, result), (saved, parameters, dtype, result, [x.dtype for x in inputs])

    def pull(self, saved, parameters, u):
        saved, parameters, dtype, _, given = saved
        return _each(self.rule.pull(saved, parameters, _cast(u, dtype)), given)

    def push(self, saved, parameters, xdots):
        saved, parameters, dtype, result, _ = saved
        return _cast(self.rule.push(saved, parameters, _all(xdots, dtype)), result)

    def curvature(self, saved, parameters, u, xdots, gradients):
        return self.meet(saved, parameters, u, xdots, gradients, False)[0]

    def meet(self, saved, parameters, u, xdots, gradients, push):
        gradients = CastGradients(gradients, parameters)
        saved, parameters, dtype, result, _ = saved
        u = _all(u, dtype) if self.meets_below else _cast(u, dtype)
        terms, ydot = self.rule.meet(saved, parameters, u, _all(xdots, dtype), gradients, push)
        return terms, _cast(ydot, result)

    def gradient(self, saved, parameters, d, gradients):
        self.descend(saved, parameters, d, None, gradients, False)

    def adjoint(self, saved, parameters, d, second):
        saved, parameters, dtype, _, given = saved
        below = self.rule.adjoint(saved, parameters, _cast(d, dtype), second)
        return None if below is None else _each(below, given)

    def descend(self, saved, parameters, d, second, gradients, below):
        gradients = CastGradients(gradients, parameters)
        saved, parameters, dtype, _, given = saved
        adjoints = self.rule.descend(saved, parameters, _cast(d, dtype), second, gradients, below)
        return None if adjoints is None else _each(adjoints, given)

    def proportional(self, saved, parameters, u, xdots, scale, gradients):
        gradients = CastGradients(gradients, parameters)
        saved, parameters, dtype, _, _ = saved
        # a loss scale times x, which some rules take, may leave float16's range where times u it does not
        proportional = partial(Rule.proportional, self.rule) if dtype == torch.float16 else self.rule.proportional
        proportional(saved, parameters, _cast(u, dtype), _all(xdots, dtype), _cast(scale, dtype), gradients)

    def flops(self, parameters, shape, inputs):
        return self.rule.flops(parameters, shape, inputs)

    def pull_into(self, saved, u, total):
        saved, _, dtype, _, (given,) = saved
        return dtype == given and self.rule.pull_into(saved, _cast(u, dtype), total)


class CastGradients(NodeGradients):
    """Sums of gradients in the parameters' own dtypes, of terms in another."""

    def __init__(self, gradients: NodeGradients, parameters: Sequence[Tensor | None]) -> None:
        self._gradients = gradients
        self._parameters = parameters

    def wants(self, position):
        return self._gradients.wants(position)

    def add(self, position, gradient):
        self._gradients.add(position, lambda: gradient().to(self._parameters[position].dtype))

    def add_product(self, position, left, right, shape=None):
        self.add(position, lambda: left.t().mm(right).view(self._parameters[position].shape))

    def add_over_batch(self, position, product, later):
        self.add(position, product.evaluate)


def is_floating(operand: object) -> bool:
    """Whether an operand is a floating-point tensor."""
    return isinstance(operand, Tensor) and operand.is_floating_point()


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A tensor or a stack in a dtype, what samples share still shared; other operands as they are."""
    if not is_floating(tensor) or tensor.dtype == dtype:
        return tensor
    if tensor.dim() > 1 and shared_rows(tensor):
        return tensor[:, :1].to(dtype).expand(tensor.shape)
    return tensor.to(dtype)


def _all(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(_cast(tensor, dtype) for tensor in tensors)


def _each(tensors: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]) -> tuple[Tensor | None, ...]:
    return tuple(_cast(tensor, dtype) for tensor, dtype in zip(tensors, dtypes, strict=True))
