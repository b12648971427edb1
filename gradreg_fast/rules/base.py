"""What a rule is: one operation's whole calculus, in five functions.

Index glossary, used by every rule: ``B`` samples in the batch, ``K`` stacked cotangents or tangents, ``...`` the
remaining dimensions of the value. Values, and the adjoints ``d`` of values, are ``[B, ...]``. Cotangents ``u`` (the
adjoints of tangents) and tangents ``xdot`` are *stacks*, ``[K, B, ...]``, also when ``K = 1``. A stack that is the same
for every sample has stride 0 along ``B``: products then work on ``K`` rows instead of ``K * B`` (see `shared_rows`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

Saved = tuple
"""What a rule keeps of its forward: tensors and plain Python values."""


class NodeGradients:
    """Where a node adds its parameters' gradients: sums that several terms, nodes and chunks share.

    Args:
        totals: the sums, by slot.
        slots: of the node.
        wanted: which slots' gradients somebody asked for.
        later: the products that wait for others, by slot.
    """

    def __init__(
        self,
        totals: list[Tensor | None],
        slots: Sequence[int | None],
        wanted: Sequence[bool],
        later: "dict[int, BatchProduct]",
    ) -> None:
        self._totals = totals
        self._slots = slots
        self._wanted = wanted
        self._later = later

    def wants(self, position: int) -> bool:
        """Whether anybody asked for the gradient of the node's parameter number `position`."""
        slot = self._slots[position]
        return slot is not None and self._wanted[slot]

    def add(self, position: int, gradient: Callable[[], Tensor]) -> None:
        """Add `gradient()` to the parameter's sum, computing it only if it is wanted."""
        if self.wants(position):
            slot = self._slots[position]
            total = self._totals[slot]
            self._totals[slot] = gradient() if total is None else total.add_(gradient())

    def add_product(self, position: int, left: Tensor, right: Tensor, shape: Sequence[int] | None = None) -> None:
        """Add ``left^T right`` of two matrices with as many rows, accumulating inside the product.

        `shape`: the parameter's, behind its first dimension, where it is no matrix.
        """
        if self.wants(position):
            slot = self._slots[position]
            total = self._totals[slot]
            if total is None:
                product = left.t().mm(right)
                self._totals[slot] = product if shape is None else product.unflatten(1, shape)
            elif total.is_contiguous():
                total.view(len(total), -1).addmm_(left.t(), right)
            else:
                total.add_(left.t().mm(right).view_as(total))

    def add_over_batch(self, position: int, product: "BatchProduct", later: bool) -> None:
        """Add a product, with the one that waits for it; `later`: let it wait itself."""
        if not self.wants(position):
            return
        slot = self._slots[position]
        waiting = self._later.pop(slot, None)
        if waiting is not None and waiting.rule is product.rule:
            product = product.with_samples_of(waiting)
        elif waiting is not None:
            self.add(position, waiting.evaluate)
        if later:
            self._later[slot] = product
        else:
            self.add(position, product.evaluate)


@dataclass(frozen=True)
class BatchProduct:
    """A weight's gradient ``sum_b u_b (x) x_b``: one product over more samples costs less than two.

    Attributes:
        rule: whose product it is.
        u: ``[B, ...]``.
        x: ``[B, ...]``.
        weight: the parameter.
    """

    rule: "Rule"
    u: Tensor
    x: Tensor
    weight: Tensor

    def evaluate(self) -> Tensor:
        """The gradient."""
        return self.rule.weight_gradient(self.u, self.x, self.weight)

    def with_samples_of(self, other: "BatchProduct") -> "BatchProduct":
        """The sum of both, as one product."""
        return replace(self, u=torch.cat([other.u, self.u]), x=torch.cat([other.x, self.x]))


class Rule:
    """One operation ``y = n(x_1, ..., x_m; parameters)``; subclasses hold its settings and its calculus.

    Attributes:
        curvature_free: ``<u, J(x) xdot>`` does not depend on ``x`` (linear and piecewise linear operations).
        couples_samples: a sample's output depends on other samples (batch statistics, concatenation of batches).
            True also where settings that count dimensions from the end leave it open; `couples` knows then.
        aliases: the result may share memory with an input.
        makes_pieces: `pull` returns a fresh tensor, to which `pull_into` may add.
        meets_below: `curvature` takes the cotangents of the inputs (what `pull` returned) instead of the output's.
        compiled: the sweeps are operations of this package's library.
        homogeneous: ``y = J(x) x``, but for an offset of parameters that `push_affine` adds.
        fresh: `pull` and `push` return tensors that nobody else has, so that the next node may overwrite them.
    """

    curvature_free = True
    couples_samples = False
    meets_below = False
    makes_pieces = False
    aliases = False
    compiled = False
    homogeneous = False
    fresh = False

    def couples(self, dims: int) -> bool:
        """`couples_samples` for inputs with this many dimensions."""
        return self.couples_samples

    @property
    def overwriting(self) -> "Rule":
        """This rule, whose `pull`, `push` and `descend` may overwrite the stack or adjoint that they are given."""
        return self

    def forward(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor | None], extras: Sequence) -> tuple:
        """``y = n(x)``; returns ``(y, saved)``."""
        raise NotImplementedError

    def pull(self, saved: Saved, parameters: Sequence[Tensor | None], u: Tensor) -> tuple[Tensor, ...]:
        """``u_x = J^T u``, a stack for each input."""
        raise NotImplementedError

    def pull_keeping(self, saved: Saved, parameters: Sequence[Tensor | None], u: Tensor) -> tuple:
        """`pull`, and what `curvature` is to meet: for rules that meet more than a cotangent at one end."""
        pulled = self.pull(saved, parameters, u)
        return pulled, pulled if self.meets_below else u

    def push(self, saved: Saved, parameters: Sequence[Tensor | None], xdots: Sequence[Tensor]) -> Tensor:
        """``ydot = J xdot``."""
        raise NotImplementedError

    def curvature(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        u: Tensor | tuple[Tensor, ...],
        xdots: Sequence[Tensor],
        gradients: NodeGradients,
    ) -> tuple[Tensor | None, ...]:
        """Gradient of ``sum_k <u^k, J(x; parameters) xdot^k>``: a fresh tensor (or None) for each input.

        The parameters' share is added to `gradients`. What is returned is summed over the chunks of a stack and handed
        to `adjoint`, which may have to finish it.
        """
        return (None,) * len(xdots)

    def gradient(self, saved: Saved, parameters: Sequence[Tensor | None], d: Tensor, gradients: NodeGradients) -> None:
        """Add the parameters' gradients of ``<d, n(x; parameters)>`` to `gradients`."""

    def adjoint(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        d: Tensor | None,
        second: Sequence[Tensor | None] | None,
    ) -> Sequence[Tensor | None]:
        """``d_x = J^T d`` plus what `curvature` left, for each input; may overwrite `second`. Either may be None."""
        if d is None:
            return second
        pulled = [p.squeeze(0) for p in self.pull(saved, parameters, d.unsqueeze(0))]
        if second is None:
            return pulled
        return [p if s is None else s.add_(p) for p, s in zip(pulled, second, strict=True)]

    def meet(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        u: Tensor | tuple[Tensor, ...],
        xdots: Sequence[Tensor],
        gradients: NodeGradients,
        push: bool,
    ) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
        """`curvature` and, if asked for, `push`: for rules that do both at once."""
        terms = self.curvature(saved, parameters, u, xdots, gradients)
        return terms, self.push(saved, parameters, xdots) if push else None

    def pull_into(self, saved: Saved, u: Tensor, total: Tensor) -> bool:
        """Add `pull`'s only result to a sum of fresh ones of its kind; False if that has no advantage."""
        return False

    def descend(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        d: Tensor | None,
        second: Sequence[Tensor | None] | None,
        gradients: NodeGradients,
        below: bool,
    ) -> Sequence[Tensor | None] | None:
        """`gradient` and, if somebody asks `below`, `adjoint`: for rules that do both at once."""
        if d is not None:
            self.gradient(saved, parameters, d, gradients)
        return self.adjoint(saved, parameters, d, second) if below else None

    def proportional(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        u: Tensor,
        xdots: Sequence[Tensor],
        scale: Tensor,
        gradients: NodeGradients,
    ) -> None:
        """`curvature` and `gradient` together where ``d = scale u``: one output a sample, piecewise linear network.

        Args:
            scale: ``[B]``, the adjoint of each sample's only output.
        """
        self.curvature(saved, parameters, u, xdots, gradients)
        self.gradient(saved, parameters, per_sample(scale, u[0]) * u[0], gradients)

    def meet_proportional(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        u: Tensor | tuple[Tensor, ...],
        xdots: Sequence[Tensor],
        scale: Tensor,
        gradients: NodeGradients,
        push: bool,
    ) -> Tensor | None:
        """`proportional` and, if asked for, `push`: for rules that do both at once."""
        self.proportional(saved, parameters, u, xdots, scale, gradients)
        return self.push(saved, parameters, xdots) if push else None

    def push_affine(
        self, saved: Saved, parameters: Sequence[Tensor | None], xdots: Sequence[Tensor], scale: Tensor
    ) -> Tensor:
        """``ydot + scale y`` from ``xdot + scale x``, if `homogeneous`."""
        return self.push(saved, parameters, xdots)

    def affine_gradient(
        self,
        saved: Saved,
        parameters: Sequence[Tensor | None],
        u: Tensor,
        xdots: Sequence[Tensor],
        scale: Tensor,
        gradients: NodeGradients,
    ) -> None:
        """`proportional` where xdots are ``xdot + scale x`` already."""
        self.curvature(saved, parameters, u, xdots, gradients)

    def flops(self, parameters: Sequence[Tensor | None], shape: torch.Size, inputs: Sequence[torch.Size | None]) -> int:
        """Operations of this node's products for one batch whose output and inputs have these shapes; 0 without any."""
        return 0


def has_numbers(tensor: Tensor) -> bool:
    """Whether somebody may look at the tensor's numbers: not while a tracer runs."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def has_symbols(shape: torch.Size) -> bool:
    """Whether sizes are a tracer's symbols: what is decided by them would hold for one size alone."""
    return any(isinstance(size, torch.SymInt) for size in shape)


def is_plain(tensor: Tensor) -> bool:
    """Whether kernels can read the tensor's memory; for a tracer, will be able to."""
    return type(tensor) in (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def per_sample(scale: Tensor, like: Tensor) -> Tensor:
    """Shape ``[B]`` so that it multiplies ``like [B, ...]`` sample by sample."""
    return scale.view(-1, *(1,) * (like.dim() - 1))


def add_values(xdot: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """``xdot + scale x`` for a stack of one tangent: ``[1, B, ...]``."""
    return xdot[0].addcmul(per_sample(scale, x), x).unsqueeze(0)


def shared_rows(stack: Tensor) -> bool:
    """Whether a stack ``[K, B, ...]`` holds the same rows for every sample (an expanded stack of unit seeds)."""
    return stack.shape[1] > 1 and stack.stride(1) == 0


def map_rows(function: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
    """Apply a function of ``[rows, ...]`` to a stack ``[K, B, ...]``, once per cotangent where samples share it."""
    K, B = stack.shape[:2]
    if shared_rows(stack):
        rows = function(stack[:, 0])  # [K, ...]
        return rows.unsqueeze(1).expand(K, B, *rows.shape[1:])
    rows = function(stack.flatten(0, 1))  # [K * B, ...]
    return rows.unflatten(0, (K, B))


def map_members(function: Callable[[Tensor], Tensor], stack: Tensor, rows: bool) -> Tensor:
    """Apply a function of ``[B, ...]`` to each member of a stack; with `rows`, a function of any number of samples."""
    if rows:
        return map_rows(function, stack)
    if len(stack) == 1:
        return function(stack[0]).unsqueeze(0)
    return torch.stack([function(member) for member in stack])


def members_of(stack: Tensor) -> Sequence[Tensor]:
    """The members of a stack; of one member the stack itself, for those who are to give it another shape anyway."""
    return (stack,) if stack.shape[0] == 1 else stack.unbind()


def stacked(members: Sequence[Tensor]) -> Tensor:
    """A stack of members; a view of a single one."""
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(list(members))


def shaped(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape whose values nobody reads."""
    return like.new_empty(1).expand(shape)


def elements(stack: Tensor) -> Tensor:
    """A stack ``[K, B, ...]`` as ``[K, B, n]``."""
    return stack.flatten(2) if stack.dim() > 2 else stack.unsqueeze(2)


def unit_stack(shape: torch.Size, like: Tensor) -> Tensor:
    """A unit for each element of a sample of values ``[B, ...]``, shared by the samples: ``[n, B, ...]``."""
    n = math.prod(shape[1:])  # `numel` would make a symbolic size constant
    units = torch.eye(n, dtype=like.dtype, device=like.device)
    return units.view(n, 1, *shape[1:]).expand(n, *shape)


def dot_stacks(u: Tensor, xdot: Tensor) -> Tensor:
    """``sum_k u^k xdot^k``, elementwise: a fresh tensor ``[B, ...]``."""
    return u[0] * xdot[0] if u.shape[0] == 1 else (u * xdot).sum(0)


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 for half precisions."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x [B, C, H, W]`` lie next to each other in memory, and its pixels do not."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x, contiguous or channels last."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def laid_out(tensor: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
    """Values ``[B, ...]`` or a stack ``[K, B, ...]`` of them, each member with these strides, without gaps."""
    stacked = tensor.dim() > len(shape)
    wanted = (math.prod(shape), *strides) if stacked else strides  # `numel` would make a symbolic size constant
    if tensor.stride() == wanted or (stacked and tensor.shape[0] == 1 and tensor.stride()[1:] == strides):
        return tensor
    return torch.empty_strided(tensor.shape, wanted, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
