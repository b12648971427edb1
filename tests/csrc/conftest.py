"""What the tests of CUDA kernels share."""

import sys

import pytest
import torch

import gradreg_fast

from .native import has_compiler
from .operations_on_cpu import library


@pytest.fixture
def cuda_on_cpu(monkeypatch):
    """CUDA kernels serve tensors on the CPU wherever one exists; gives the operations."""
    if not has_compiler():
        pytest.skip("no C++ compiler for x86-64")
    operations, _ = library()
    monkeypatch.setattr(torch.ops, "gradreg_fast", operations)
    module = sys.modules["gradreg_fast.backend"]  # the package has a class of this name
    monkeypatch.setitem(module.KERNELS, "cpu", "cuda")
    monkeypatch.setattr(module, "cuda_library", lambda: (operations, ""))
    with gradreg_fast.backend("cuda"):
        yield operations
