"""Four processes on shares of a batch against one on all of it: DDP, FSDP2, hybrid sharding, by gloo on the CPU."""

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gradreg_fast
from gradreg_fast import functional
from gradreg_fast.backend import usable
from gradreg_fast.modules import WithPenalty
from tests.parity import recorded_gradient

if sys.platform != "linux" or not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("needs gloo, and processes that fork from a server", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

pytestmark = pytest.mark.skipif("config.getoption('device') != 'cpu'", reason="gloo is the CPU's")

RANKS, ROWS, STEPS = 4, 8, 3


def join(rank, path):
    """What each process begins with."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=RANKS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Calls a function of this file in every process; returns what each returned."""
    path, context = tmp_path_factory.mktemp("ranks") / "store", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.tensor"])
    with contextlib.ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, initializer=join, initargs=(rank, path)))
            for rank in range(RANKS)
        ]

        def call(function, *arguments):
            futures = [pool.submit(function, *arguments) for pool in pools]
            return [future.result(timeout=300) for future in futures]

        yield call


def own_lines(model, x):
    """A penalty in the user's own lines, by plain autograd or a converted model's closed form."""
    x = x.detach().requires_grad_()
    y = model(x)
    return y, recorded_gradient(y, x, torch.ones_like(y)).square().flatten(1).sum(1).mean()


def r1_of_a_converted_model(model, x):
    with gradreg_fast.backend("torch"):  # else one so small is left to autograd
        return own_lines(gradreg_fast.convert(model), x)


PENALTIES = {
    "r1": functional.r1,
    "recomputed": partial(functional.r1, save="recompute"),
    "converted": r1_of_a_converted_model,
    "autograd": own_lines,
}


def critic():
    """With an activation that is no rule's, and biases that a penalty alone does or does not reach."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 5), nn.RReLU(0.1, 0.1), nn.Linear(5, 1))


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1)
    )


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))


def statistics():
    """Batch statistics, in processes those of all their batches."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 1)
    )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if distributed.is_initialized() else network


NETWORKS = {"critic": critic, "convolutions": convolutions, "perceptron": perceptron, "statistics": statistics}
BACKENDS = {"critic": "torch", "statistics": "torch"}  # the others' by kernels, where there is a compiler


def mesh(*shape):
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def layers_too(module, *shape):
    """Every second layer by itself, then the whole."""
    layers = [layer for layer in module.modules() if [*layer.parameters(recurse=False)]]
    for layer in layers[1::2]:
        fully_shard(layer, mesh=mesh(*shape))
    return fully_shard(module, mesh=mesh(*shape), reshard_after_forward=True)


WRAPPERS = {
    "none": lambda module: module,
    "DDP": DDP,
    "DDP, static graph": lambda module: DDP(module, static_graph=True),
    "DDP, unused parameters": lambda module: DDP(module, find_unused_parameters=True),
    "DDP, views": lambda module: DDP(module, gradient_as_bucket_view=True),
    "FSDP2": lambda module: fully_shard(module, mesh=mesh(4)),
    "FSDP2, layers too": lambda module: layers_too(module, 4),
    "hybrid, layers too": lambda module: layers_too(module, 2, 2),
}


def batches():
    return torch.randn(STEPS, ROWS, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def share(x):
    """This process's rows of a batch: all of them where there is one process."""
    alone = not distributed.is_initialized()
    return x if alone else x.chunk(RANKS)[distributed.get_rank()]


def loss(y, penalty, alone):
    return penalty if alone else y.square().mean() + 3 * penalty


def values(module):
    """Parameters and running statistics, whole."""
    tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def train(wrapper, network, penalty, backend="torch", alone=False, accumulate=1, clip=None, every=1):
    """The values after a few steps, in the order of the parameters."""
    with gradreg_fast.backend(backend):
        module = WRAPPERS[wrapper](WithPenalty(NETWORKS[network](), PENALTIES[penalty], every=every))
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        for x in batches():
            optimizer.zero_grad()
            pieces = share(x).chunk(accumulate)
            for piece in pieces:
                last = piece is pieces[-1]
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(last)
                with contextlib.nullcontext() if last or not isinstance(module, DDP) else module.no_sync():
                    (loss(*module(piece), alone) / accumulate).backward()
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
        return values(module)


def assert_alike(found, expected):
    for tensors in found:
        for mine, other in zip(tensors, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


wrapped = pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "none"])


@wrapped
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("float64")
def test_training_is_that_of_one_process(ranks, wrapper, network):
    if network == "statistics" and wrapper.startswith("DDP"):
        pytest.skip("PyTorch: DDP takes synchronised statistics on GPUs only")
    expected = train("none", network, "autograd")
    backend = BACKENDS.get(network) or ("cpp" if usable("cpp")[0] else "torch")
    assert_alike(ranks(train, wrapper, network, "r1", backend), expected)


@wrapped
@pytest.mark.usefixtures("float64")
def test_the_last_bias_that_a_penalty_alone_does_not_reach(ranks, wrapper):
    """Needs neither ``0 * y.sum()`` nor a search for unused parameters."""
    expected = train("none", "perceptron", "autograd", alone=True)
    assert_alike(ranks(train, wrapper, "perceptron", "r1", "torch", True), expected)


@wrapped
@pytest.mark.parametrize(
    "settings", [{"accumulate": 2}, {"clip": 0.01}, {"every": 2}], ids=["accumulated", "clipped", "lazy"]
)
@pytest.mark.usefixtures("float64")
def test_gradients_are_accumulated_clipped_and_penalised_at_times(ranks, wrapper, settings):
    if wrapper == "DDP, static graph" and "accumulate" in settings:
        pytest.skip("PyTorch: a static graph's first step must synchronise; DDP fails inside, penalty or not")
    expected = train("none", "critic", "autograd", **settings)
    assert_alike(ranks(partial(train, **settings), wrapper, "critic", "r1"), expected)


@wrapped
@pytest.mark.parametrize("penalty", ["converted", "recomputed"])
@pytest.mark.usefixtures("float64")
def test_other_forwards(ranks, wrapper, penalty):
    """The user's own lines with a converted model, and what keeps nothing for the backward pass."""
    expected = train("none", "critic", "autograd")
    assert_alike(ranks(train, wrapper, "critic", penalty), expected)


def train_in_own_lines():
    """A converted model in DDP, the penalty outside."""
    with gradreg_fast.backend("torch"):
        model = DDP(gradreg_fast.convert(critic()))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for x in batches():
            optimizer.zero_grad()
            loss(*own_lines(model, share(x)), alone=False).backward()
            optimizer.step()
        return values(model)


@pytest.mark.usefixtures("float64")
def test_own_lines_around_a_converted_model_in_ddp(ranks):
    assert_alike(ranks(train_in_own_lines), train("none", "critic", "autograd"))


def hook_calls(wrapper):
    """How often each parameter's hooks run in one step."""
    module = WRAPPERS[wrapper](WithPenalty(critic(), "r1"))
    calls = [0] * len([*module.parameters()])

    def count(parameter, i):
        calls[i] += 1

    for i, parameter in enumerate(module.parameters()):
        parameter.register_post_accumulate_grad_hook(partial(count, i=i))
    loss(*module(share(batches()[0])), alone=False).backward()
    return calls


@pytest.mark.parametrize("wrapper", ["DDP", "DDP, static graph", "DDP, unused parameters"])
def test_hooks_run_once(ranks, wrapper):
    for calls in ranks(hook_calls, wrapper):
        assert set(calls) == {1}


def without_gradients():
    """What a layer that is wrapped by itself is before, after a call without gradients, and after one that fails."""
    module = layers_too(WithPenalty(critic(), "r1"), 4)
    layer, kinds = module.model[2], []
    for width in (None, 6, 7):
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            if width:
                module(torch.zeros(2, width))
        kinds.append((type(layer).__name__, type(layer.weight), len(layer._forward_hooks)))
    return kinds


def test_wrapped_layers_are_as_before_after_a_call_without_gradients(ranks):
    for kinds in ranks(without_gradients):
        assert kinds == [("FSDPLinear", DTensor, 1)] * 3


def refusals(wrapper):
    """What penalties say of a wrapped model, and of one with a wrapped part."""
    wrapped = WRAPPERS[wrapper](perceptron())
    x, messages = batches()[0], []
    for model in (wrapped, nn.Sequential(wrapped, nn.Tanh())):
        for call in (functional.r1, gradreg_fast.value_and_vjp, partial(functional.r1, output=None, model_kwargs={})):
            try:
                call(model, x)
            except TypeError as error:
                messages.append(str(error))
    return messages


@wrapped
def test_penalties_of_a_wrapped_model_name_what_to_use(ranks, wrapper):
    for messages in ranks(refusals, wrapper):
        assert len(messages) == 6
        assert all("WithPenalty(network, penalty)" in message for message in messages)


def only_layers():
    """What is said where layers are wrapped and the whole is not."""
    network = perceptron()
    fully_shard(network[0], mesh=mesh(4))
    with pytest.raises(TypeError) as error:
        WithPenalty(network, "r1")(batches()[0])
    return str(error.value)


def test_wrapped_layers_without_a_wrapped_whole_raise(ranks):
    assert all("WithPenalty(network, penalty) as a whole" in message for message in ranks(only_layers))
