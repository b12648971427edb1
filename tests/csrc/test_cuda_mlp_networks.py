"""Whole networks through the CUDA operations, run on the CPU or, with ``--device cuda``, on one: against autograd."""

import copy
from itertools import pairwise

import pytest
import torch

import gradreg_fast
from gradreg_fast import functional, measured, mlp, ops
from gradreg_fast.backend import mlp_kept_on_cuda
from gradreg_fast.mlp import kernel_for
from tests.parity import assert_primitives, evaluate, norm, value_and_vjp

from .test_mlp import ACTIVATIONS, network


def served(model, x):
    graph, tensors = ops.prepare(model, x)
    return kernel_for(graph, x, tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_primitives(cuda_operations, activation):
    for widths in ((3, 17, 5, 1), (3, 17, 4)):
        model, x = network(widths, activation), torch.randn(9, 3, dtype=torch.float64)
        assert served(model, x)
        assert_primitives(model, x)


LOSSES = {
    "classes": ("cross_entropy", torch.tensor([2, 0, -100, 1, 2, 0, 1])),
    "probabilities": ("cross_entropy", torch.rand(7, 3, dtype=torch.float64)),
    "mse": ("mse", torch.randn(7, 3, dtype=torch.float64)),
    "bce": ("bce_with_logits", torch.rand(7, 3, dtype=torch.float64)),
}


def results(backend, call, model, x):
    with gradreg_fast.backend(backend):
        y, penalty = call(model, x)
        gradients = torch.autograd.grad(penalty.sum() + y.square().sum(), [x, *model.parameters()])
    return [y.detach(), penalty.detach(), *gradients]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_top(cuda_operations, name):
    loss, target = LOSSES[name]
    target = target.to(torch.get_default_device())
    model, x = network((5, 17, 3), "tanh"), torch.randn(7, 5, dtype=torch.float64, requires_grad=True)

    def call(model, x):
        return functional.double_backprop(model, x, target, loss, reduction="none")

    torch.testing.assert_close(
        results("cuda", call, model, x), results("torch", call, model, x), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "softplus"])
def test_penalties(cuda_operations, activation, outputs):
    model, x = network((5, 17, outputs), activation), torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(7, outputs, 5, dtype=torch.float64)
    calls = [
        lambda model, x: functional.jacobian_frobenius(model, x),
        lambda model, x: functional.gradient_matching(model, x, target),
    ]
    if outputs == 1:
        calls.append(lambda model, x: functional.r1(model, x, reduction="none"))
    for call in calls:
        torch.testing.assert_close(results("cuda", call, model, x), results("torch", call, model, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_autograd(cuda_operations, dtype):
    """Errors against float64, at most twice eager autograd's."""
    model, x = network((5, 33, 17, 3), "silu", dtype=dtype), torch.randn(40, 5).to(dtype)
    cotangent = torch.randn(40, 3).to(dtype)
    wanted = evaluate(value_and_vjp, copy.deepcopy(model).double(), [x.double(), cotangent.double()])
    ours = evaluate(gradreg_fast.value_and_vjp, model, [x, cotangent])
    theirs = evaluate(value_and_vjp, model, [x, cotangent])
    for group in ("values", "gradients"):
        for name, truth in wanted[group].items():
            limit = 2 * norm(theirs[group][name].double() - truth) + torch.finfo(dtype).eps * norm(truth)
            assert norm(ours[group][name].double() - truth) <= limit, (group, name)


def test_float32_products_are_those_that_pytorch_is_told_to_use(cuda_operations):
    model, x = network((5, 33, 1), "tanh", dtype=torch.float32), torch.randn(40, 5)
    exact = gradreg_fast.value_and_vjp(copy.deepcopy(model).double(), x.double())[1].detach()

    def error():
        return norm(gradreg_fast.value_and_vjp(model, x)[1].double() - exact) / norm(exact)

    assert error() < 1e-6
    torch.set_float32_matmul_precision("high")
    try:
        assert 1e-5 < error() < 1e-2
    finally:
        torch.set_float32_matmul_precision("highest")
    assert error() < 1e-6


@pytest.mark.parametrize("activation", ["leaky_relu", "softplus", "silu"])
def test_wide_networks(cuda_operations, activation):
    """A product a layer and sweep."""
    for widths in ((3, 66, 7, 1), (66, 5, 3)):
        model, x = network(widths, activation), torch.randn(9, widths[0], dtype=torch.float64)
        assert served(model, x)
        assert_primitives(model, x)


def test_what_tracers_are_told_of_kept_memory(cuda_operations):
    """As the operation itself allocates it."""
    for kinds, widths, K, dtype in (
        ([4, 3, 6, 0], (5, 7, 8, 6, 1), 2, torch.float32),
        ([4, 3, 6, 0], (5, 7, 131, 6, 1), 2, torch.float32),
        ([2, 6, 1, 9], (65, 33, 2, 6, 3), 1, torch.float64),
    ):
        weights = [torch.randn(n, d, dtype=dtype) for d, n in pairwise(widths)]
        x, c = torch.randn(9, widths[0], dtype=dtype), torch.randn(K, 9, widths[-1], dtype=dtype)
        given = None, None, weights, [None] * 4, kinds, [1.0, 20.0] * 4, 0, K, False, True
        kept = cuda_operations.mlp_forward_pull(x, c, *given)[3]
        assert len(kept) == mlp_kept_on_cuda(x, weights, kinds, K)


def test_networks_that_are_left_to_pytorch(cuda_operations):
    assert not served(network((5,) * 34, "tanh"), torch.randn(3, 5, dtype=torch.float64))


def test_wrong_arguments_are_told(cuda_operations):
    x, weights = torch.randn(5, 3), [torch.randn(4, 3), torch.randn(2, 4)]
    given = (None, None, None, weights, [None, None], [4, 0], [0.0] * 4, 0, 1, False, True)
    with pytest.raises(RuntimeError, match="bfloat16 or float16"):
        cuda_operations.mlp_forward_pull(x.int(), *given)
    with pytest.raises(RuntimeError, match="cotangent has the wrong shape"):
        cuda_operations.mlp_forward_pull(x, torch.randn(5, 2), *given[1:])
    with pytest.raises(RuntimeError, match="kept is not what"):
        cuda_operations.mlp_push_adjoint(
            x, None, None, torch.randn(7), *given[3:4], *given[5:10], None, torch.randn(1, 5, 3), None, [0] * 6
        )
    wide = [torch.randn(300, 300), torch.randn(2, 300)]
    with pytest.raises(RuntimeError, match="weight has the wrong shape"):
        cuda_operations.mlp_forward_pull(torch.randn(5, 299), *given[:3], wide, *given[4:])


def test_by_themselves_kernels_take_what_was_measured_to_pay(cuda_operations, monkeypatch):
    x = torch.randn(9, 3)
    small, large, too_large = (network((3, width, 1), "tanh").float() for width in (64, 160, 161))
    assert served(large, x) and served(too_large, x)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with gradreg_fast.backend("auto"):
        assert served(too_large, x)  # launches bind
        monkeypatch.setattr(mlp, "LAUNCH_BOUND", {torch.float32: 9 * 3 * 161 - 1})
        assert served(large, x) and not served(too_large, x)
        monkeypatch.setattr(mlp, "LAUNCH_BOUND", {torch.float32: 0})
        monkeypatch.setitem(measured.WIDTHS, (9, 0), {torch.float32: 64})
        assert served(small, x) and not served(large, x)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert served(large, x)
