"""What the tests of CUDA kernels share."""

import sys

import pytest
import torch

import gradreg_fast

from .native import has_compiler
from .operations_on_cpu import library


@pytest.fixture
def cuda_operations(monkeypatch):
    """The CUDA operations, serving wherever a kernel exists: on the device of the tests, else run on the CPU."""
    if torch.get_default_device().type == "cuda":
        with gradreg_fast.backend("cuda"):
            yield torch.ops.gradreg_fast
        return
    if not has_compiler():
        pytest.skip("no C++ compiler for x86-64")
    operations, choose_order = library()
    choose_order(0)
    module = sys.modules["gradreg_fast.backend"]  # the package has a class of this name
    monkeypatch.setattr(torch.ops, "gradreg_fast", operations)
    monkeypatch.setitem(module.KERNELS, "cpu", "cuda")
    monkeypatch.setattr(module, "cuda_library", lambda: (operations, ""))
    torch.use_deterministic_algorithms(True)  # with memory that nobody has written to full of NaN
    try:
        with gradreg_fast.backend("cuda"):
            yield operations
    finally:
        torch.use_deterministic_algorithms(False)
