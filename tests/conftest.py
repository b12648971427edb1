"""What all tests share: one thread, a fixed seed, deterministic examples."""

import pytest
import torch
from hypothesis import HealthCheck, settings

import gradreg_fast
from gradreg_fast.backend import library

torch.set_num_threads(1)

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or in a crowd."""
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Networks and tensors are made in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["torch", "cpp"])
def each_backend(request):
    """The test runs twice: with PyTorch lines, and with compiled kernels wherever there are any."""
    if request.param == "cpp" and library()[0] is None:
        pytest.skip(f"no compiled library: {library()[1]}")
    with gradreg_fast.backend(request.param):
        yield


@pytest.fixture
def pytorch_lines():
    """No compiled kernels: their products are not seen by PyTorch's counters."""
    with gradreg_fast.backend("torch"):
        yield
