"""What the tests of CUDA kernels share."""

import sys

import pytest
import torch

import gradreg_fast
from gradreg_fast.backend import library as cpu_library

from .native import has_compiler
from .operations_on_cpu import library

HAS_CPU = pytest.mark.skipif(cpu_library()[0] is None, reason=f"no compiled library: {cpu_library()[1]}")


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


@pytest.fixture(
    params=[pytest.param("cpp", marks=[pytest.mark.each_processor, HAS_CPU]), "cuda"],
)
def operations(request):
    """The operations of a device, which are used wherever they can be."""
    found = torch.ops.gradreg_fast if request.param == "cpp" else request.getfixturevalue("cuda_operations")
    with gradreg_fast.backend(request.param):
        yield found
