"""Which implementation runs, and that every choice gives the same numbers."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.backend import cuda_library, cuda_problem, current, library
from gradreg_fast.mlp import CROSSOVER, LIBRARY_ROWS, kernel_for
from gradreg_fast.ops import prepare

compiled = pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")


def network(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def kernel(model, x):
    return kernel_for(*prepare(model, x)[:1], x, prepare(model, x)[1])


def test_a_choice_holds_until_the_next_or_the_end_of_its_block(monkeypatch):
    monkeypatch.delenv("GRADREG_FAST_BACKEND", raising=False)
    assert current() == "auto"
    with gradreg_fast.backend("torch"):
        assert current() == "torch"
        with gradreg_fast.backend("auto"):
            assert current() == "auto"
        assert current() == "torch"
    assert current() == "auto"


def test_the_environment_chooses_unless_the_program_does(monkeypatch):
    monkeypatch.setenv("GRADREG_FAST_BACKEND", "torch")
    assert current() == "torch"
    with gradreg_fast.backend("auto"):
        assert current() == "auto"


def test_unknown_backends_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of auto, torch, cpp, cuda, got 'gpu'"):
        gradreg_fast.backend("gpu")
    monkeypatch.setenv("GRADREG_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="GRADREG_FAST_BACKEND must be one of"):
        gradreg_fast.value_and_vjp(network(), torch.ones(2, 3))


@pytest.mark.skipif(cuda_library()[0] is not None, reason="CUDA kernels run here")
def test_cuda_kernels_that_cannot_be_used_say_why(monkeypatch):
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: \S"):
        gradreg_fast.backend("cuda")
    monkeypatch.setenv("GRADREG_FAST_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: \S"):
        gradreg_fast.value_and_vjp(network(), torch.ones(2, 3))


@pytest.mark.parametrize(
    "devices, problem, reason",
    [
        ([], "", "there is no CUDA device"),
        ([(8, 0), (7, 5)], "", "they need compute capability 8.0, a device here has 7.5"),
        ([(9, 0)], "the driver is too old", "the driver is too old"),
        ([(9, 0)], "", ""),
    ],
)
def test_cuda_kernels_need_a_device_and_a_driver(monkeypatch, devices, problem, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(devices))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: devices[i])
    assert cuda_problem(SimpleNamespace(cuda_problem=lambda: problem)) == reason


@compiled
def test_kernels_serve_where_they_are_faster_and_where_they_are_asked_for():
    half, double = torch.randn(5, 3, dtype=torch.float16), torch.randn(5, 3, dtype=torch.float64)
    wide = network(CROSSOVER[torch.float16] + 1)
    assert kernel(network().half(), half) is not None
    assert kernel(wide.double(), double) is not None  # PyTorch multiplies
    assert kernel(wide.half(), half) is None
    with gradreg_fast.backend("cpp"):
        assert kernel(wide, half) is not None
    with gradreg_fast.backend("torch"):
        assert kernel(network().half(), half) is None


@compiled
def test_wide_networks_need_rows_for_every_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    wide = network(CROSSOVER[torch.float32] + 1)
    assert kernel(wide, torch.randn(4 * LIBRARY_ROWS, 3)) is not None
    assert kernel(wide, torch.randn(LIBRARY_ROWS, 3)) is None


@compiled
def test_gram_matrices_are_left_to_pytorch_where_they_save_much():
    model = nn.Sequential(nn.Linear(512, 8), nn.Tanh(), nn.Linear(8, 1))
    for rows, saves in ((16, False), (4096, True)):
        graph, tensors = prepare(model, x := torch.randn(rows, 512))
        assert kernel_for(graph, x, tensors).prefers_gram(x, tensors) == saves


@compiled
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Tanh(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Tanh(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    ],
)
def test_other_networks_are_left_to_pytorch(model):
    with gradreg_fast.backend("cpp"):
        assert kernel(model, torch.randn(5, 3)) is None
        gradreg_fast.value_and_vjp(model, torch.randn(5, 3))


@compiled
def test_a_layer_used_twice_is_left_to_pytorch():
    layer = nn.Linear(3, 3)
    assert kernel(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(5, 3)) is None


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_computed_in_float32(dtype):
    model, x, offset = network().to(dtype), torch.randn(5, 3, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    results = []
    with gradreg_fast.backend("cpp"):
        assert kernel(model, x) is not None
        for source in (model, copy.deepcopy(model).float()):
            kind = next(source.parameters()).dtype
            y, penalty = gradreg_fast.functional.gradient_matching(source, x.to(kind), offset.to(kind))
            (y.float().sum() + penalty).backward()
            results.append([y, penalty.to(dtype), *(parameter.grad for parameter in source.parameters())])
    for half, single in zip(*results, strict=True):
        assert torch.equal(half, single.to(half.dtype))


@compiled
def test_wrong_arguments_say_the_same_whatever_runs():
    messages = []
    for name in ("torch", "cpp"):
        with gradreg_fast.backend(name), pytest.raises(ValueError) as caught:
            gradreg_fast.value_and_vjp(network(), torch.ones(5, 3), torch.ones(5, 2))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_info_says_what_a_bug_report_needs():
    done = subprocess.run(
        [sys.executable, "-m", "gradreg_fast", "info"],
        capture_output=True,
        text=True,
        cwd=gradreg_fast.__path__[0] + "/..",
    )
    assert done.returncode == 0, done.stderr
    for fact in ("gradreg_fast", "torch", "python", "backend", "CPU kernels", "cache"):
        assert fact in done.stdout


@compiled
def test_tensors_on_the_cpu_leave_cuda_alone(monkeypatch):
    """A process that never used CUDA can be forked, and its children can use it."""

    def fail(*arguments):
        raise AssertionError("asked CUDA")

    for name in ("is_available", "get_device_capability", "device_count"):
        monkeypatch.setattr(torch.cuda, name, fail)
    with gradreg_fast.backend("auto"):
        assert kernel(network(), torch.randn(5, 3)) is not None
        gradreg_fast.value_and_vjp(network(), torch.randn(5, 3))
