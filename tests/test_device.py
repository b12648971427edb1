"""What only a CUDA device can show: graphs, streams, determinism and the switches of precision. ``--device cuda``."""

import copy
import threading

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.modules import WithPenalty

pytestmark = pytest.mark.skipif("torch.get_default_device().type != 'cuda'", reason="needs --device cuda")


def mlp():
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Softplus(), nn.Linear(32, 3))


def rows():
    return nn.Sequential(
        nn.Linear(6, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 300), nn.SiLU(), nn.Linear(300, 3)
    )


def images():
    return nn.Sequential(
        *(nn.Unflatten(1, (6, 1, 1)), nn.Upsample(scale_factor=8), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)),
        *(nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.Tanh(), nn.Flatten()),
        nn.Linear(72, 3),
    )


NETWORKS = {"mlp": mlp, "rows": rows, "images": images}
PENALTIES = {
    "double_backprop": lambda model, x: functional.double_backprop(model, x, x[:, :3].detach(), "mse"),
    "jacobian_frobenius": functional.jacobian_frobenius,
}


def gradients(model, penalty, x):
    """Of a penalised step, left in the parameters; they keep their memory."""
    for parameter in model.parameters():
        parameter.grad = None
    y, value = penalty(model, x)
    (y.square().mean() + value.mean()).backward()
    return [parameter.grad for parameter in model.parameters()]


def agree(found, wanted, limit=1e-4):
    found, wanted = (torch.cat([gradient.flatten() for gradient in each]) for each in (found, wanted))
    assert torch.linalg.vector_norm(found - wanted) <= limit * torch.linalg.vector_norm(wanted)


def warmed(step):
    """After three calls on another stream, as capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_step_in_a_graph(name, penalty):
    """Replayed with other numbers: as without the graph."""
    model, x = NETWORKS[name](), torch.randn(33, 6)
    twin, other = copy.deepcopy(model), torch.randn(33, 6)
    warmed(lambda: gradients(model, PENALTIES[penalty], x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients(model, PENALTIES[penalty], x)
    x.copy_(other)
    graph.replay()
    agree(found, gradients(twin, PENALTIES[penalty], other))


def test_graphed_callables():
    model, x = WithPenalty(mlp(), "jacobian_frobenius"), torch.randn(33, 6)
    twin = copy.deepcopy(model)
    graphed = torch.cuda.make_graphed_callables(model, (torch.randn(33, 6),))
    for one in (graphed, twin):
        y, penalty = one(x)
        (y.square().mean() + penalty.mean()).backward()
    agree([parameter.grad for parameter in model.parameters()], [parameter.grad for parameter in twin.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_streams(name):
    """Threads with a stream each do not read what others write."""
    models, x = [NETWORKS[name]() for _ in range(3)], [torch.randn(4097, 6) for _ in range(3)]
    twins, found = copy.deepcopy(models), [None] * 3
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                found[i] = gradients(models[i], functional.jacobian_frobenius, x[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    for i in range(3):
        agree(found[i], gradients(twins[i], functional.jacobian_frobenius, x[i]))


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two devices")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_device_that_is_not_the_current_one(name):
    model, x = NETWORKS[name](), torch.randn(33, 6)
    twin = copy.deepcopy(model).to("cuda:1")
    found = gradients(twin, functional.jacobian_frobenius, x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    agree([gradient.to("cuda:0") for gradient in found], gradients(model, functional.jacobian_frobenius, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_again(name, monkeypatch):
    """PyTorch's own demand for determinism is met, by the kernels without it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    x, runs = torch.randn(5000, 6), []
    for demanded in (False, True, True):
        torch.manual_seed(1)
        model = NETWORKS[name]()
        torch.use_deterministic_algorithms(demanded)
        try:
            runs.append(gradients(model, functional.jacobian_frobenius, x))
        finally:
            torch.use_deterministic_algorithms(False)
    for run in runs[0 if name == "mlp" else 1 : 2]:
        assert all(map(torch.equal, run, runs[2]))


@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("name", ["mlp", "rows"])
def test_float32_is_tf32_only_where_pytorch_says_so(name, backend):
    model, x = NETWORKS[name](), torch.randn(515, 6)
    wanted = [g.float() for g in gradients(copy.deepcopy(model).double(), functional.jacobian_frobenius, x.double())]
    before, found = torch.get_float32_matmul_precision(), {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            with gradreg_fast.backend(backend):
                found[precision] = gradients(model, functional.jacobian_frobenius, x)
        finally:
            torch.set_float32_matmul_precision(before)
    agree(found["highest"], wanted, 1e-5)
    agree(found["high"], wanted, 3e-2)
    if name == "mlp" and backend == "cuda":  # else the library decides
        assert not all(map(torch.equal, *found.values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name):
    """Gradients in bfloat16 are near those in float32."""
    model, x = NETWORKS[name](), torch.randn(515, 6)
    wanted = gradients(copy.deepcopy(model), functional.jacobian_frobenius, x)
    with torch.autocast("cuda", torch.bfloat16):
        found = gradients(model, functional.jacobian_frobenius, x)
    agree(found, wanted, 0.1)
