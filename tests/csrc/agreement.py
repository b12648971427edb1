"""Compiled kernels against the PyTorch lines: the same values and gradients."""

import torch

import gradreg_fast
from gradreg_fast import ops

from ..parity import manual_seed


def evaluate(backend, served, model, x, cotangent, terms=("y", "g")):
    """The values and all gradients of a random combination of the given terms; `served` says whether kernels run."""
    with gradreg_fast.backend(backend):
        assert bool(served(model, x)) == (backend == "cpp")
        values = dict(zip("yg", ops.stacked_vjp(*ops.prepare(model, x), x, cotangent), strict=True))
        manual_seed(1)
        weights = {name: torch.randn_like(value) for name, value in values.items()}
        loss = sum((values[name] * weights[name]).sum() for name in terms)
        sources = [t for t in (x, cotangent, *model.parameters()) if t is not None and t.requires_grad]
        return [*values.values(), *torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)]


def assert_same(served, model, x, cotangent, terms, tolerance):
    """Both backends agree, relative to each tensor's largest number."""
    reference = evaluate("torch", served, model, x, cotangent, terms)
    found = evaluate("cpp", served, model, x, cotangent, terms)
    for i, (mine, wanted) in enumerate(zip(found, reference, strict=True)):
        assert mine.shape == wanted.shape and mine.dtype == wanted.dtype
        scale = wanted.abs().max().item() if wanted.numel() else 0
        error = (mine - wanted).abs().max().item() if wanted.numel() else 0
        assert error <= tolerance * max(scale, 0.1), f"number {i}: {error} of {scale}"
