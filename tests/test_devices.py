"""Nobody asks for the numbers in a tensor, for which a device would have to be waited for: the meta device has none."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional

B = 7


def dense(outputs=1):
    inner = [nn.BatchNorm1d(9), nn.Softplus(), nn.Dropout(0.3), nn.Hardtanh(), nn.LayerNorm(9), nn.ReLU6()]
    return nn.Sequential(nn.Linear(5, 9), *inner, nn.Linear(9, outputs))


def convolutional(outputs=1):
    block = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(36, outputs))


def classes():
    return torch.zeros(B, dtype=torch.long)


def user_lines(model, x):
    y = gradreg_fast.convert(model)(x)
    return y, torch.autograd.grad(y.sum(), x, create_graph=True)[0]


SAVE = {"save": "recompute"}
CALLS = {
    "double_backprop": (3, lambda model, x: functional.double_backprop(model, x, classes())),
    "mse": (3, lambda model, x: functional.double_backprop(model, x, torch.zeros(B, 3), "mse", **SAVE)),
    "jacobian_frobenius": (3, functional.jacobian_frobenius),
    "recomputed": (3, lambda model, x: functional.jacobian_frobenius(model, x, **SAVE)),
    "estimate": (3, lambda model, x: functional.jacobian_frobenius(model, x, 2)),
    "chunks": (3, lambda model, x: functional.jacobian_frobenius(model.eval(), x, chunk_size=2)),
    "jacobian_softmax": (3, functional.jacobian_softmax),
    "jacobian_spectral_norm": (3, functional.jacobian_spectral_norm),
    "gradient_penalty": (1, lambda model, x: functional.gradient_penalty(model, functional.interpolate(x, x), **SAVE)),
    "dragan": (1, functional.dragan),
    "r1": (1, functional.r1),
    "r1_r2": (1, lambda model, x: (x, functional.r1_r2(model, x, x.detach())[1])),
    "gradient_matching": (1, lambda model, x: functional.gradient_matching(model, x, x.detach())),
    "confidence_penalty": (3, functional.confidence_penalty),
    "value_and_vjp": (3, gradreg_fast.value_and_vjp),
    "converted": (3, user_lines),
}


@pytest.mark.parametrize("make, shape", [(dense, (5,)), (convolutional, (3, 8, 8))], ids=["dense", "convolutional"])
@pytest.mark.parametrize("name", CALLS)
def test_no_numbers_are_asked_for(name, make, shape):
    outputs, call = CALLS[name]
    with torch.device("meta"):
        model, x = make(outputs), torch.randn(B, *shape, requires_grad=True)
        y, value = call(model, x)
        (y.square().mean() + value.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.skipif("torch.get_default_device().type != 'cuda'", reason="needs a CUDA device")
@pytest.mark.parametrize("name", CALLS)
def test_no_device_is_waited_for(name):
    outputs, call = CALLS[name]
    model, x = convolutional(outputs), torch.randn(B, 3, 8, 8, requires_grad=True)
    call(model, x)  # which converts the model and may build kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, value = call(model, x)
        (y.square().mean() + value.square().mean()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
