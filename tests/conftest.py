"""What all tests share: one thread, a fixed seed, deterministic examples, and the device: ``pytest --device cuda``."""

import pytest
import torch
from hypothesis import HealthCheck, settings

import gradreg_fast
from gradreg_fast.backend import KERNELS, usable
from tests.parity import manual_seed

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("deterministic")


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where networks and tensors are made")


def pytest_configure(config):
    """Before the test files are read: some make their networks then."""
    device = config.getoption("--device")
    if device != "cpu":
        torch.set_default_device(device)


@pytest.fixture(autouse=True)
def alike():
    """Every test draws the same numbers on one thread, alone or in a crowd, whatever ran before."""
    manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def float64():
    """Networks and tensors are made in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["torch", "kernels"])
def each_backend(request):
    """The test runs twice: with PyTorch lines, and with compiled kernels wherever there are any."""
    name = "torch" if request.param == "torch" else KERNELS[torch.get_default_device().type]
    if name != "torch" and usable(name)[0] is None:
        pytest.skip(f"backend {name!r} cannot be used: {usable(name)[1]}")
    with gradreg_fast.backend(name):
        yield


@pytest.fixture
def pytorch_lines():
    """No compiled kernels: their products are not seen by PyTorch's counters."""
    with gradreg_fast.backend("torch"):
        yield
