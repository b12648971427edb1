"""The same networks and losses in JAX, with the PyTorch twin's weights; images are [B, H, W, C], its faster layout."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from .cases import Case
from .models import Activation, BatchNorm, Conv, Flatten, Linear, Pool, Residual

jax.config.update("jax_default_matmul_precision", "highest")  # float32, as PyTorch's default is

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "softplus100": lambda x: jax.nn.softplus(100 * x) / 100,
}


def parameter_to_jax(parameter: torch.Tensor) -> jax.Array:
    """A parameter in JAX's layout: kernels [H, W, I, O], matrices [I, O]."""
    array = parameter.detach().cpu().numpy()
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def batch_to_jax(x: torch.Tensor | None) -> jax.Array | None:
    """Inputs or targets in JAX's layout: images [B, H, W, C]."""
    if x is None:
        return None
    array = x.cpu().numpy()
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def parameter_from_jax(array: jax.Array) -> torch.Tensor:
    """A parameter's gradient in PyTorch's layout."""
    array = np.asarray(array)
    return torch.tensor(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def apply(layers, parameters: dict, x, prefix: str = ""):
    """Runs the network of `layers` with the parameters of its PyTorch twin, by name."""
    for i, layer in enumerate(layers):
        x = _apply(layer, parameters, x, f"{prefix}{i}.")
    return x


def _apply(layer, parameters, x, prefix):
    weight, bias = (parameters.get(f"{prefix}{name}") for name in ("weight", "bias"))
    match layer:
        case Linear():
            return x @ weight + bias
        case Conv(_, _, stride, padding, groups):
            dimensions = ("NHWC", "HWIO", "NHWC")
            window = (stride,) * 2, [(padding,) * 2] * 2
            y = jax.lax.conv_general_dilated(
                x, weight, *window, dimension_numbers=dimensions, feature_group_count=groups
            )
            return y + bias
        case Activation(name):
            return ACTIVATIONS[name](x)
        case Pool(kind, size):
            rows, height, width, channels = x.shape
            inside = x[:, : height // size * size, : width // size * size]
            windows = inside.reshape(rows, height // size, size, width // size, size, channels)
            return (jnp.max if kind == "max" else jnp.mean)(windows, axis=(2, 4))
        case BatchNorm():
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * weight + bias
        case Flatten():
            return x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        case Residual(body, shortcut):
            branches = (
                apply(body, parameters, x, f"{prefix}body."),
                apply(shortcut, parameters, x, f"{prefix}shortcut."),
            )
            return sum(branches)
    raise TypeError(f"not a layer description: {layer!r}")


def _task(name, y, target):
    match name:
        case "cross_entropy":
            return -jnp.take_along_axis(jax.nn.log_softmax(y), target[:, None], 1).mean()
        case "mse":
            return jnp.mean((y - target) ** 2)
        case "real":
            return jax.nn.softplus(-y).mean()
        case "relativistic":
            real, fake = jnp.split(y, 2)
            return jax.nn.softplus(fake - real).mean()
        case "none":
            return 0.0


def _penalty(name, model, x, target, slope):
    """`(y, penalty)`, as `penalties.functional` in JAX."""
    if name == "jacobian_frobenius":
        y, pull = jax.vjp(model, x)
        cotangents = jnp.broadcast_to(jnp.eye(y.shape[1])[:, None], (y.shape[1], *y.shape))  # [K, B, K]
        (rows,) = jax.vmap(pull)(cotangents)
        return y, jnp.sum(rows**2) / len(x)

    def scalar(x):
        y = model(x)
        return (len(x) * _task("cross_entropy", y, target) if name == "double_backprop" else y.sum()), y

    g, y = jax.grad(scalar, has_aux=True)(x)
    if name == "gradient_matching":
        g = g - slope
    square = jnp.sum(g.reshape(len(x), -1) ** 2, 1)
    match name:
        case "double_backprop" | "r1" | "gradient_matching":
            return y, square.mean()
        case "r1_r2":
            return y, 2 * square.mean()
        case "eikonal" | "gradient_penalty":
            return y, jnp.mean((jnp.sqrt(square) - 1) ** 2)
    raise ValueError(f"no JAX form of {name}")


def step_of(case: Case):
    """The jitted `(parameters, x, target, slope) -> (loss, gradients)`."""

    def loss(parameters, x, target, slope):
        y, penalty = _penalty(case.penalty, partial(apply, case.layers, parameters), x, target, slope)
        return _task(case.task, y, target) + case.weight * penalty

    return jax.jit(jax.value_and_grad(loss))
