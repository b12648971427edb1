"""Several callers at once: Python threads, on models of their own or one that they share, and forked children."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import gradreg_fast
from gradreg_fast import functional
from tests.parity import is_opaque, new_generator

CALLERS = 4
ROWS = 2053
TARGET = torch.zeros(ROWS, 3, 2)


def network(outputs):
    """Enough work for two threads a call, and long enough to be interrupted."""
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


PENALTIES = {  # two in kernels, where there are any, and one never
    "critic": (1, functional.gradient_penalty),
    "several outputs": (3, lambda model, x: functional.gradient_matching(model, x, TARGET)),
    "projections": (3, lambda model, x: functional.jacobian_frobenius(model, x, 2, new_generator(0))),
}


def step(penalty, model, x):
    y, value = penalty(model, x)
    return torch.autograd.grad(y.square().mean() + value, list(model.parameters()))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture
def restless():
    """Python changes threads whenever it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(function, *arguments):
    """The results of as many calls as there are arguments, all begun together."""
    start = threading.Barrier(len(arguments[0]))

    def call(*arguments):
        start.wait()
        return function(*arguments)

    with ThreadPoolExecutor(len(arguments[0])) as pool:
        return list(pool.map(call, *arguments))


@pytest.mark.parametrize("shared", [False, True], ids=["models of their own", "one model"])
@pytest.mark.parametrize("name", PENALTIES)
def test_threads_get_the_bits_of_one(name, shared, two_threads):
    """The models are new to all of them."""
    outputs, penalty = PENALTIES[name]
    models = [network(outputs)] * CALLERS if shared else [network(outputs) for _ in range(CALLERS)]
    batches = torch.randn(CALLERS, ROWS, 2)

    def steps(model, x):
        return [step(penalty, model, x) for _ in range(10)]

    results = at_once(steps, models, batches)
    for model, x, found in zip(models, batches, results, strict=True):
        expected = step(penalty, model, x)
        for gradients in found:
            assert all(map(torch.equal, gradients, expected))


def test_threads_convert_at_once(restless):
    """Tracing changes `nn.Module` itself for a while."""
    methods = nn.Module.__call__, nn.Module.__getattr__
    models, x = [network(1) for _ in range(64)], torch.randn(5, 2)
    with ThreadPoolExecutor(CALLERS) as pool:
        results = list(pool.map(lambda model: gradreg_fast.value_and_vjp(model, x), models))
    assert (nn.Module.__call__, nn.Module.__getattr__) == methods
    for model, (y, _) in zip(models, results, strict=True):
        assert not is_opaque(model)
        torch.testing.assert_close(y, model(x))


def test_other_threads_notice_nothing_of_a_conversion():
    """They call a stranger, and the very model that is being traced."""
    stranger, x = network(1), torch.randn(5, 2)

    class Busy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1)
            self.others = []

        def forward(self, x):
            if isinstance(x, torch.fx.Proxy):
                with ThreadPoolExecutor(1) as other:
                    for model in (stranger, self.inner):
                        self.others.append(other.submit(model, torch.ones(5, 2)).result())
            return self.inner(x)

    model = Busy()
    y, _ = gradreg_fast.value_and_vjp(model, x)
    assert not is_opaque(model)
    torch.testing.assert_close(y, model.inner(x))
    for net, found in zip((stranger, model.inner), model.others, strict=True):
        torch.testing.assert_close(found, net(torch.ones(5, 2)))


class Gradients(Dataset):
    """Each item is what a step gives, taken wherever the item is asked for."""

    def __init__(self, models, x):
        self.models, self.x = models, x

    def __len__(self):
        return len(self.models)

    def __getitem__(self, i):
        return torch.cat([gradient.flatten() for gradient in step(functional.gradient_penalty, self.models[i], self.x)])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere system libraries do not survive a fork")
@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd with a GPU refuses to run in forked children")
@pytest.mark.filterwarnings("ignore:.*fork")  # of Python and JAX, where other tests have left threads
@pytest.mark.usefixtures("each_backend")
def test_forked_children_take_steps_after_their_parent(two_threads):
    """A loader's worker, with a model that is new to it and one that is not."""
    steps = Gradients([network(1), network(1)], torch.randn(ROWS, 2))
    steps[0]
    child = DataLoader(steps, num_workers=1, multiprocessing_context="fork", batch_size=None, timeout=60)
    found = list(child)
    torch.set_num_threads(1)  # as a loader does in its worker
    for i, gradients in enumerate(found):
        assert torch.equal(gradients, steps[i])
