"""Whatever has no rule of its own: autograd, on that node alone."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule


class Opaque(Rule):
    """Any differentiable function of tensors, recorded by autograd in `forward` and asked by the other sweeps.

    Args:
        function: called as ``function(inputs, parameters, extras)``; returns one tensor.
        reason: why there is no rule.
    """

    aliases = True
    curvature_free = False
    couples_samples = True  # nobody knows

    def __init__(self, function: Callable[..., Tensor], reason: str) -> None:
        self.function = function
        self.reason = reason

    def forward(self, inputs, parameters, extras):
        with recording():
            # under inference_mode a clone, since autograd can record nothing else
            inputs = [(x.clone() if x.is_inference() else x.detach()) for x in inputs]
            inputs = [x.requires_grad_(x.is_floating_point()) for x in inputs]
            # leaves of its own: hooks on the real parameters fire once, for the sum of all gradients
            parameters = [None if p is None else p.detach().requires_grad_(p.requires_grad) for p in parameters]
            y = self.function(inputs, parameters, extras)
        if not isinstance(y, Tensor):
            raise TypeError(f"{self.reason}: must return one tensor, got {type(y).__name__}")
        return y.detach(), (Record(inputs, parameters, y),)

    def pull(self, saved, parameters, u):
        return stack_members([saved[0].pull(cotangent) for cotangent in u])

    def push(self, saved, parameters, xdots):
        return torch.stack([saved[0].push(tangents) for tangents in zip(*xdots, strict=True)])

    def curvature(self, saved, parameters, u, xdots, gradients):
        record = saved[0]
        wanted = [j for j in range(len(parameters)) if gradients.wants(j)]
        sources = [*record.inputs, *(record.parameters[j] for j in wanted)]
        terms = record.curvature(u, list(zip(*xdots, strict=True)), sources)
        for j, term in zip(wanted, terms[len(xdots) :], strict=True):
            if term is not None:
                gradients.add(j, lambda term=term: term)
        return tuple(terms[: len(xdots)])

    def gradient(self, saved, parameters, d, gradients):
        record = saved[0]
        wanted = [j for j in range(len(parameters)) if gradients.wants(j)]
        if not (wanted and record.y.requires_grad):
            return
        terms = torch.autograd.grad(
            record.y, [record.parameters[j] for j in wanted], d, retain_graph=True, allow_unused=True
        )
        for j, term in zip(wanted, terms, strict=True):
            if term is not None:
                gradients.add(j, lambda term=term: term.clone())


class Record:
    """A node's own autograd graph, from its inputs and parameters to its output."""

    def __init__(self, inputs: list[Tensor], parameters: list[Tensor | None], y: Tensor) -> None:
        self.inputs = inputs
        self.parameters = parameters
        self.y = y

    def pull(self, u: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """``J^T u`` for one cotangent."""
        return self._grad([self.y], self.inputs, [u], create_graph)

    def push(self, tangents: tuple[Tensor, ...]) -> Tensor:
        """``J xdot``: the pull is linear in its cotangent, so its own pull is the push."""
        if not self.y.requires_grad:
            return torch.zeros_like(self.y)
        with recording():
            u = torch.zeros_like(self.y, requires_grad=True)
            pulled = self._grad([self.y], self.inputs, [u], create_graph=True)
        return self._grad(list(pulled), [u], list(tangents))[0]

    def curvature(self, u: Tensor, tangents: list[tuple[Tensor, ...]], sources: list[Tensor]) -> list[Tensor | None]:
        """Gradient of ``sum_k <u^k, J xdot^k>`` with respect to each source: a fresh tensor, or None."""
        pulled = []
        with recording():
            for cotangent in u:
                pulled += self._grad([self.y], self.inputs, [cotangent], create_graph=True)
        xdots = [xdot for members in tangents for xdot in members]
        dependent = [(p, xdot) for p, xdot in zip(pulled, xdots, strict=True) if p.requires_grad]
        if not dependent:
            return [None] * len(sources)
        terms = differentiate([p for p, _ in dependent], sources, [x for _, x in dependent])
        return [None if term is None else term.clone() for term in terms]

    def _grad(self, outputs, inputs, cotangents, create_graph=False) -> tuple[Tensor, ...]:
        pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(x) for x in inputs)
        gradients = differentiate([y for y, _ in pairs], inputs, [c for _, c in pairs], create_graph)
        return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True))


@contextmanager
def recording():
    """Let autograd record, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def differentiate(outputs, sources, cotangents, create_graph=False) -> list[Tensor | None]:
    """Gradients with respect to each source; None where there is none (masks and indices have none)."""
    floating = [x for x in sources if x.requires_grad]
    if not floating:
        return [None] * len(sources)
    found = iter(
        torch.autograd.grad(
            outputs, floating, cotangents, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    )
    return [next(found) if x.requires_grad else None for x in sources]


def stack_members(members: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """K tuples of tensors as one tuple of stacks ``[K, ...]``."""
    if len(members) == 1:
        return tuple(x.unsqueeze(0) for x in members[0])
    return tuple(torch.stack(column) for column in zip(*members, strict=True))
