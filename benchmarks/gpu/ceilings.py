"""``python -m benchmarks.gpu.ceilings``: what the device can do at most, and each kernel's share of it.

The ceilings are the bandwidth of a copy and the rates of large products. A kernel's share is the time that its bytes
take at the copy's bandwidth, or its operations at the product's rate if that is longer, over its own time; beside it
stands the time of the same sweep in PyTorch lines. What kernels move and compute is counted by `numbers_of` and
`mlp_work`, as in the header comments of csrc/cuda/.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import gradreg_fast
from gradreg_fast.backend import KERNELS
from gradreg_fast.blocks import with_blocks
from gradreg_fast.convert import graph_of
from gradreg_fast.graph import Graph, Node
from gradreg_fast.mlp import HALVES, kernel_for
from gradreg_fast.ops import prepare
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.base import NodeGradients
from gradreg_fast.rules.conv_block import ConvBlock
from gradreg_fast.rules.conv_products import ConvProducts
from gradreg_fast.samples import dot_samples, scale_samples

from . import timing

PRODUCTS = {"bfloat16": (torch.bfloat16, False), "tf32": (torch.float32, True), "float32": (torch.float32, False)}
PRODUCTS["float64"] = (torch.float64, False)
ACTIVATIONS = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "Softplus": nn.Softplus, "SiLU": nn.SiLU, "GELU": nn.GELU}
NORMS = {  # the module for images with so many channels, and whether its second reading is from cache
    "BatchNorm": (nn.BatchNorm2d, False),
    "GroupNorm": (lambda channels: nn.GroupNorm(8, channels), False),
    "LayerNorm": (lambda channels: nn.LayerNorm([channels, 32, 32]), False),
    "LayerNorm, rows of 1024": (lambda channels: nn.LayerNorm(1024), True),
    "RMSNorm, rows of 1024": (lambda channels: nn.RMSNorm(1024), True),
}
WIDTHS = (16, 64, 128)
CHANNELS = (16, 64, 256)
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    """Measure, print, write JSON, CSV and PNG."""
    options = timing.arguments(__doc__)
    device, quick = options.device, options.quick

    def median(call):
        return timing.seconds(call, device, quick)[1]

    x = torch.zeros((1 << 16) if quick else (1 << 28), device=device)
    y = torch.empty_like(x)
    bandwidth = 2 * x.nbytes / median(partial(y.copy_, x))
    print(f"copy: {bandwidth / 1e12:.3f} TB/s", flush=True)
    rates = {
        name: rate(dtype, tf32, 128 if quick else 8192, device, median) for name, (dtype, tf32) in PRODUCTS.items()
    }
    for name, value in rates.items():
        print(f"product in {name}: {value / 1e12:.1f} TFLOP/s", flush=True)
    del x, y
    rows = timing.collected(shares(bandwidth, rates, device, quick, median))
    ceilings = {"bytes_per_second": bandwidth, "operations_per_second": rates, "capability": capability(device)}
    draw(rows, timing.finish("ceilings", device, ceilings, rows, options.out))


def shares(bandwidth: float, rates: dict[str, float], device: str, quick: bool, median: Callable) -> Iterator[dict]:
    """Each kernel's bytes, operations, times and share of its bound."""
    count = 1 << 14 if quick else 1 << 26
    for name, dtype, sweep, moved, operations, calls in itertools.chain(
        mlps(2 * WIDTHS[0] if quick else 1 << 17, device),
        norms(count, device),
        convolutions(*((2, 8) if quick else (64, 32)), device),
        stacks(count, device),
        activations(count, device),
    ):
        precision = str(dtype).removeprefix("torch.")
        row = {"kernel": name, "sweep": sweep, "dtype": precision, "bytes": moved, "operations": operations}
        row |= {f"{label}_seconds": median(calls[label]) if label in calls else None for label in ("kernels", "lines")}
        row["share"] = max(moved / bandwidth, operations / rates[precision]) / row["kernels_seconds"]
        print(
            f"{name:24}{sweep:14}{precision:10}{row['kernels_seconds'] * 1e6:9.1f} us {row['share']:7.1%}", flush=True
        )
        yield row


def rate(dtype: torch.dtype, tf32: bool, size: int, device: str, median: Callable) -> float:
    """Operations a second of a large square product."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    time = median(lambda: a @ b)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / time


def capability(device: str) -> list[int] | None:
    """Of the GPU."""
    return list(torch.cuda.get_device_capability()) if device == "cuda" else None


Work = tuple[str, torch.dtype, str, int, float, dict[str, Callable]]
"""Name, dtype, sweep, bytes, operations, and calls that do it: with kernels and in PyTorch lines."""


def both(make: Callable[[], dict[str, Callable]]) -> Iterator[tuple[str, dict[str, Callable]]]:
    """Each sweep's name, and its calls as `make` makes them with either backend."""
    made = {}
    for label, name in {"kernels": "auto", "lines": "torch"}.items():
        with gradreg_fast.backend(name):
            made[label] = make()
    for sweep in made["kernels"]:
        yield sweep, {label: calls[sweep] for label, calls in made.items()}


def under(name: str, call: Callable) -> Callable:
    """The call, with this backend: for what chooses when it runs."""

    def chosen():
        with gradreg_fast.backend(name):
            return call()

    return chosen


def activations(count: int, device: str) -> Iterator[Work]:
    """Every activation's sweeps over so many numbers."""
    for dtype in DTYPES:
        operands = [torch.randn(count, device=device).to(dtype) for _ in range(5)]
        for name, make in ACTIVATIONS.items():
            curved = not graph_of(make()).curvature_free
            numbers = {"forward": 2, "pull": 3, "meet": 5 if curved else 3, "adjoint": 4 if curved else 3}
            for sweep, calls in both(lambda make=make, operands=operands: module_sweeps(make(), *operands)):
                yield name, dtype, sweep, numbers[sweep] * operands[0].nbytes, 0, calls


def norms(count: int, device: str) -> Iterator[Work]:
    """Every normalisation's sweeps over so many numbers, images or rows."""
    channels = 64 if count >= 1 << 20 else 8
    for dtype in DTYPES:
        operands = [torch.randn(count, device=device).to(dtype) for _ in range(5)]
        for name, (make, cached) in NORMS.items():
            shape = (-1, 1024) if "rows" in name else (-1, channels, 32, 32)
            images = [operand.view(shape) for operand in operands]

            def run(make=make, images=images, dtype=dtype):
                return module_sweeps(make(channels).to(device, dtype), *images)

            numbers = {"forward": 2 if cached else 3, **numbers_of(cached)}
            for sweep, calls in both(run):
                yield name, dtype, sweep, numbers[sweep] * operands[0].nbytes, 0, calls


def numbers_of(cached: bool) -> dict[str, int]:
    """Numbers an element that a normalisation's sweeps move (K = 1); sums read all operands first, or from cache."""
    passes = {"pull": 3, "meet": 5, "adjoint": 4}
    sums = {"pull": 2, "meet": 3, "adjoint": 2}
    return {sweep: moved + (0 if cached else sums[sweep]) for sweep, moved in passes.items()}


def convolutions(samples: int, side: int, device: str) -> Iterator[Work]:
    """Two 3 x 3 convolutions in a row, each with ReLU, of so many square images."""
    for dtype in DTYPES:
        for channels in CHANNELS:
            pair = [layer for _ in range(2) for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())]
            model = nn.Sequential(*pair).to(device, dtype)
            operands = torch.randn(5, samples, side, side, channels, device=device).to(dtype).movedim(-1, 2)
            with gradreg_fast.backend(KERNELS[device]):
                graph, tensors = prepare(model, operands[0])
                graph = with_blocks(graph, operands[0], tensors)
                served = [node for node in graph.nodes if node and isinstance(node.rule, (ConvBlock, ConvProducts))]
                calls = sweeps(graph, served[0], *operands) if served else {}
            # a layer's: x, y; u, y, u_z, and on top a pass of v, y, u_z; xdot, y, ydot, and u_z, xdot; d_z, x, and d_z
            numbers = {"forward": 4, "pull": 8, "meet": 10, "adjoint": 14}
            products = {"forward": 2, "pull": 2, "meet": 4, "adjoint": 4}
            for sweep, call in calls.items():
                operations = products[sweep] * 18.0 * channels * operands[0].numel()
                moved = numbers[sweep] * operands[0].nbytes
                yield f"convolution, {channels} channels", dtype, sweep, moved, operations, {"kernels": call}


def stacks(count: int, device: str) -> Iterator[Work]:
    """The passes over stacks of cotangents, K = 8."""
    for dtype in DTYPES:
        a, b = torch.randn(2, 8, max(count >> 15, 1), 1 << 9, device=device).to(dtype)
        factor = torch.rand(a.shape[1], device=device)
        work = {"norms": (1, partial(dot_samples, a, a)), "products": (2, partial(dot_samples, a, b))}
        work |= {"scaling": (2, partial(scale_samples, a, factor)), "both": (3, partial(scale_samples, a, factor, b))}
        for sweep, (numbers, call) in work.items():
            calls = {"kernels": under("auto", call), "lines": under("torch", call)}
            yield "stack of 8", dtype, sweep, numbers * a.nbytes, 0, calls


def mlps(rows: int, device: str) -> Iterator[Work]:
    """Fully connected networks of three layers, their two operations; where kernels serve them."""
    for dtype in DTYPES:
        for width in WIDTHS:
            model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
            model = model.append(nn.Linear(width, width)).to(device, dtype)
            x = torch.randn(rows, width, device=device).to(dtype)
            graph, tensors = prepare(model, x)
            mlp = kernel_for(graph, x, tensors)
            if mlp is None or (device == "cpu" and dtype in HALVES):
                continue
            y, g, _, kept = mlp.forward_pull(x, None, None, tensors, 1, keep=True)
            weights = [tensors[slot] for slot in mlp.weights]
            wanted = [True, False, *(True for _ in tensors)]
            back = x, None, None, kept, weights, 1, (y, g, None), wanted
            calls = {
                "forward, pull": partial(mlp.forward_pull, x, None, None, tensors, 1, keep=True),
                "push, adjoint": partial(mlp.push_adjoint, *back),
            }
            for sweep, call in calls.items():
                moved, operations = mlp_work(width, 3, rows, x.element_size(), sweep == "push, adjoint")
                yield f"MLP {width} wide", dtype, sweep, moved, operations, {"kernels": call}


def mlp_work(width: int, depth: int, rows: int, size: int, backward: bool) -> tuple[int, float]:
    """Bytes and operations of a network's sweep pair, K = 1, all layers equally wide; the weights' bytes left out.

    Forward and pull read x, write y and g, and keep a state and a cotangent a layer; two products a layer. Push and
    adjoint read these, x and both adjoints, write x's gradient and, for the weights' gradients, a tangent and an
    adjoint a layer, all of which the sum over the batch reads again; four products a layer.
    """
    numbers = 3 + 2 * depth if not backward else (4 + 2 * depth) + 2 * depth + (2 + 4 * depth)
    return numbers * rows * width * size, (8.0 if backward else 4.0) * depth * rows * width**2


def module_sweeps(module: nn.Module, x: Tensor, *operands: Tensor) -> dict[str, Callable]:
    """The four sweeps of a module's only node with the backend in force."""
    graph = with_passes(graph_of(module), x)
    return sweeps(graph, graph.nodes[1], x, *operands)


def sweeps(graph: Graph, node: Node, x: Tensor, u: Tensor, xdot: Tensor, d: Tensor, w: Tensor) -> dict[str, Callable]:
    """The four sweeps of a node at x, as calls without arguments."""
    tensors = graph.tensors(x)
    parameters = [None if slot is None else tensors[slot] for slot in node.slots]
    extras = [None if slot is None else tensors[slot] for slot in node.updated]
    rule, saved = node.rule, node.rule.forward((x,), parameters, extras)[1]
    cotangent, tangent = u.unsqueeze(0), xdot.unsqueeze(0)
    meeting = rule.pull_keeping(saved, parameters, cotangent)[1]
    second = None if rule.curvature_free else (w,)

    def gradients():
        return NodeGradients([None] * len(parameters), range(len(parameters)), [True] * len(parameters), {})

    return {
        "forward": lambda: rule.forward((x,), parameters, extras),
        "pull": lambda: rule.pull(saved, parameters, cotangent),
        "meet": lambda: rule.meet(saved, parameters, meeting, (tangent,), gradients(), True),
        "adjoint": lambda: rule.descend(saved, parameters, d, second, gradients(), True),
    }


def draw(rows: list[dict], path: Path) -> None:
    """Each kernel's share of its bound."""
    labels = [f"{row['kernel']}: {row['sweep']}, {row['dtype']}" for row in rows]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.2 * len(rows)), layout="constrained")
    axes.barh(labels, [row["share"] for row in rows], color="#2a7f4f", label="kernels")
    lines = [row["share"] * row["kernels_seconds"] / (row["lines_seconds"] or float("nan")) for row in rows]
    axes.plot(lines, labels, "|", color="black", label="PyTorch lines")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("share of the bound")
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
