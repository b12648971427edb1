"""Who is measured: every way of computing a case's step in PyTorch, as classes of one interface.

A peer is made from a case and a device; its `step()` computes task loss + penalty and the gradients of all parameters
and returns both, for checking.
"""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from gradreg_fast import memory

from . import penalties
from .cases import Case
from .penalties import Jacobian

_COUNTED_AS = {torch.ops.aten.addmm_: torch.ops.aten.addmm}  # PyTorch has no formula for it


class FlopCounter(TorchDispatchMode):
    """Adds up floating-point operations by PyTorch's own formulas, which overcount a grouped convolution's backward.

    `FlopCounterMode` also follows modules, by hooks that fail when `torch.autograd.grad` is asked for a leaf's
    gradient.
    """

    def __init__(self):
        super().__init__()
        self.total = 0
        self.complete = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.complete &= func.namespace != "gradreg_fast"  # compiled sweeps, which PyTorch knows nothing of
        if func is torch.ops.aten.convolution_backward.default:
            grad_out, x, weight, _, _, _, _, transposed, _, _, (needs_x, needs_weight, _) = args
            self.total += (needs_x + needs_weight) * conv_flop_count(x.shape, weight.shape, grad_out.shape, transposed)
        elif formula := flop_registry.get(_COUNTED_AS.get(func._overloadpacket, func._overloadpacket)):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Peer:
    """A way of computing a case's step.

    Attributes:
        name: as shown and as given to `--peers`.
        compiled: whether a compiler sees the whole step.
    """

    name = ""
    compiled = False

    @classmethod
    def unavailable(cls, case: Case, device: str) -> str | None:
        """Why this peer cannot run `case` on `device`, or None."""
        return None

    def __init__(self, case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.case = case
        self.model = case.model(device, dtype)
        self.batch = case.batch(device, dtype)
        self.parameters = dict(self.model.named_parameters())

    def forward(self) -> tuple[Tensor, Tensor]:
        """`(y, penalty)`, differentiable."""
        raise NotImplementedError

    def step(self) -> tuple[Tensor, dict[str, Tensor | None]]:
        """The loss and each parameter's gradient, by name."""
        self.release()
        loss = self.case.loss(*self.forward(), self.batch)
        loss.backward()
        return loss.detach(), {name: parameter.grad for name, parameter in self.parameters.items()}

    def release(self) -> None:
        """Drops the last step's gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def numbers(self) -> tuple[Tensor, dict[str, Tensor]]:
        """One step's loss and gradients in float64 on the CPU, a missing gradient as zeros."""
        loss, gradients = self.step()
        filled = {
            name: torch.zeros_like(parameter) if gradients[name] is None else gradients[name].detach().clone()
            for name, parameter in self.parameters.items()
        }
        return loss.double().cpu(), {name: gradient.double().cpu() for name, gradient in filled.items()}

    def peak_memory(self, device: str) -> int | None:
        """Bytes that a step needs at its highest, beside the parameters and the batch; None if they cannot be told."""
        return memory.peak(self.step, self.release, device)

    def units(self) -> float | None:
        """The step's floating-point operations over those of one forward pass; None if they cannot be counted."""
        with FlopCounter() as step:
            self.step()
        with torch.no_grad(), FlopCounter() as forward:
            self.model(self.batch.x)
        return step.total / forward.total if step.complete else None


class GradregFast(Peer):
    """This library."""

    name = "gradreg_fast"

    @classmethod
    def unavailable(cls, case, device):
        """Only until the package is installed."""
        return None if importlib.util.find_spec("gradreg_fast") else "not importable"

    def forward(self):
        """One call of `gradreg_fast.functional`."""
        return penalties.gradreg_fast(self.case.penalty, self.model, self.batch)


class Plain(Peer):
    """The step without penalty, eager: what a user compares with. A penalty-only case takes the mean output as loss."""

    name = "plain"

    def forward(self):
        """The outputs alone."""
        y = self.model(self.batch.x)
        return y, (y.mean() if self.case.task == "none" else 0.0)


class Autograd(Peer):
    """Eager double backward; an exact Jacobian norm as a loop over the outputs."""

    name = "autograd"

    def forward(self):
        """`torch.autograd.grad` with `create_graph=True`."""
        return penalties.autograd(self.case.penalty, self.model, self.batch)


class AutogradChannelsLast(Autograd):
    """The same with images and weights in channels_last."""

    name = "autograd-channels-last"

    @classmethod
    def unavailable(cls, case, device):
        """Only images have channels."""
        return None if case.convolutional else "the case has no images"

    def __init__(self, *args):
        super().__init__(*args)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.batch = self.batch._replace(x=self.batch.x.contiguous(memory_format=torch.channels_last))


class _FrobeniusPeer(Peer):
    @classmethod
    def unavailable(cls, case, device):
        """Only exact Jacobian norms have rows."""
        return None if isinstance(penalties.PENALTIES[case.penalty], Jacobian) else "for Jacobian norms only"


class AutogradBatched(_FrobeniusPeer):
    """Eager double backward with all rows of the Jacobian in one `is_grads_batched` call."""

    name = "autograd-batched"

    def forward(self):
        """Rows stacked by `vmap` inside autograd."""
        return penalties.autograd(self.case.penalty, self.model, self.batch, penalties.square_batched)


class JacobianRegularizer(_FrobeniusPeer):
    """The scheme of facebookresearch/jacobian_regularizer: a dense one-hot cotangent for each output in turn."""

    name = "jacobian_regularizer"

    def forward(self):
        """The sum over outputs of the squared norms of `J^T e_k`, its scaling left out."""
        x = self.batch.x.detach().requires_grad_()
        y = self.model(x)
        square = 0.0
        for k in range(y.shape[1]):
            cotangent = torch.zeros_like(y)
            cotangent[:, k] = 1
            (row,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
            square = square + row.norm() ** 2
        return y, square / len(x)


class Func(Peer):
    """`torch.func`, for the input gradient and for the parameters'."""

    name = "torch.func"

    def __init__(self, *args):
        super().__init__(*args)
        torch.func.replace_all_batch_norm_modules_(self.model)  # their running statistics are updated in place

        def loss(parameters, batch):
            model = partial(torch.func.functional_call, self.model, parameters)
            return case.loss(*penalties.functional(case.penalty, model, batch), batch)

        case = self.case
        self.run = torch.func.grad_and_value(loss)
        self.detached = {name: parameter.detach() for name, parameter in self.parameters.items()}

    def step(self):
        """One call, without autograd's graph."""
        gradients, loss = self.run(self.detached, self.batch)
        return loss, gradients


class Inductor(Func):
    """`torch.compile` of the whole `torch.func` step; with the backward outside, its numbers can be wrong."""

    name = "inductor"
    compiled = True

    def __init__(self, *args):
        super().__init__(*args)
        self.run = torch.compile(self.run, fullgraph=True)

    def units(self):
        """A compiled step cannot be counted."""
        return None


class InductorAutograd(Autograd):
    """`torch.compile` of the whole eager step, where PyTorch can trace `torch.autograd.grad`."""

    name = "inductor-autograd"
    compiled = True

    @classmethod
    def unavailable(cls, case, device):
        """The setting is recent, and a loop over hundreds of outputs is unrolled."""
        rows = case.outputs if isinstance(penalties.PENALTIES[case.penalty], Jacobian) else 1
        too_long = f"compiling its {rows} unrolled rows takes many minutes" if rows > 100 else None
        return cls.untraceable() or too_long

    @staticmethod
    def untraceable() -> str | None:
        """Why PyTorch cannot trace `torch.autograd.grad`, or None."""
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            return None
        return f"torch {torch.__version__} has no torch._dynamo.config.trace_autograd_ops"

    def __init__(self, *args):
        super().__init__(*args)
        torch._dynamo.config.trace_autograd_ops = True

        def step():
            loss = self.case.loss(*self.forward(), self.batch)
            gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            return loss.detach(), dict(zip(self.parameters, gradients, strict=True))

        self.step = torch.compile(step, fullgraph=True)

    def units(self):
        """A compiled step cannot be counted."""
        return None


class GradregFastCompiled(InductorAutograd):
    """This library, the whole step compiled."""

    name = "gradreg_fast-compiled"

    @classmethod
    def unavailable(cls, case, device):
        """The setting is recent."""
        return GradregFast.unavailable(case, device) or cls.untraceable()

    def forward(self):
        """One call of `gradreg_fast.functional`."""
        return penalties.gradreg_fast(self.case.penalty, self.model, self.batch)


class CudaGraph(Autograd):
    """Eager double backward captured once in a CUDA graph and replayed."""

    name = "cuda-graph"
    compiled = True

    @classmethod
    def unavailable(cls, case, device):
        """Graphs need a CUDA device."""
        return None if device.startswith("cuda") else "no CUDA device"

    def __init__(self, *args):
        super().__init__(*args)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                super().step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.captured = super().step()

    def step(self):
        """A replay; the results are always in the same memory."""
        self.graph.replay()
        return self.captured

    def units(self):
        """A replay cannot be counted."""
        return None

    def peak_memory(self, device):
        """A replay allocates nothing: the graph holds its memory all the time."""
        return None


class Jax(Peer):
    """JAX, `jit` of the whole step."""

    name = "jax"
    compiled = True

    @classmethod
    def unavailable(cls, case, device):
        """JAX has to be installed, with a back end for the device."""
        if not importlib.util.find_spec("jax"):
            return "jax is not installed"
        import jax

        platform = "gpu" if device.startswith("cuda") else "cpu"
        return None if jax.default_backend() == platform else f"jax has no {platform} back end here"

    def __init__(self, case: Case, device: str = "cpu"):
        super().__init__(case)
        from . import jax_twin

        self.twin = jax_twin
        self.arguments = (
            {name: jax_twin.parameter_to_jax(parameter) for name, parameter in self.parameters.items()},
            *map(jax_twin.batch_to_jax, (self.batch.x, self.batch.target, self.batch.slope)),
        )
        self.run = jax_twin.step_of(case)

    def step(self):
        """One call, waited for."""
        loss, gradients = self.run(*self.arguments)
        loss.block_until_ready()
        return loss, gradients

    def peak_memory(self, device):
        """On a GPU, PyTorch's allocator knows nothing of JAX's memory."""
        return None if device.startswith("cuda") else super().peak_memory(device)

    def numbers(self):
        """As a PyTorch peer's, after transposing."""
        loss, gradients = self.step()
        restored = {name: self.twin.parameter_from_jax(gradients[name]).double() for name in self.parameters}
        return torch.tensor(float(loss)).double(), restored

    def units(self):
        """A compiled step cannot be counted."""
        return None


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        GradregFast,
        GradregFastCompiled,
        Autograd,
        AutogradChannelsLast,
        AutogradBatched,
        JacobianRegularizer,
        Func,
        Inductor,
        InductorAutograd,
        CudaGraph,
        Jax,
        Plain,
    )
}
