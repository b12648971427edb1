"""``python -m benchmarks.gpu.ceilings``: what the device can do at most, and each pass's share of it.

The two ceilings are the bandwidth of a copy and the rates of large products. A pass's share is the time that its bytes
take at the copy's bandwidth, over its own time; beside it stands the time of the same rule in PyTorch lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import gradreg_fast
from gradreg_fast.convert import graph_of
from gradreg_fast.passes import with_passes
from gradreg_fast.rules.base import Rule

from . import timing

PRODUCTS = {"bfloat16": (torch.bfloat16, False), "tf32": (torch.float32, True), "float32": (torch.float32, False)}
PRODUCTS["float64"] = (torch.float64, False)
ACTIVATIONS = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "Softplus": nn.Softplus, "SiLU": nn.SiLU, "GELU": nn.GELU}
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
    rows = []
    for name, dtype, sweep, count, calls in passes(1 << 12 if quick else 1 << 26, device):
        times = {label: median(call) for label, call in calls.items()}
        share = count / bandwidth / times["kernel"]
        row = {"pass": name, "sweep": sweep, "dtype": str(dtype).removeprefix("torch."), "bytes": count}
        rows.append(row | {f"{label}_seconds": value for label, value in times.items()} | {"share": share})
        print(f"{name:12}{sweep:8}{row['dtype']:10}{times['kernel'] * 1e6:9.1f} us {share:7.1%}", flush=True)
    ceilings = {"bytes_per_second": bandwidth, "operations_per_second": rates, "capability": capability(device)}
    draw(rows, timing.finish("ceilings", device, ceilings, rows, options.out))


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


def passes(count: int, device: str) -> Iterator[tuple[str, torch.dtype, str, int, dict[str, Callable]]]:
    """For every activation, dtype and sweep: the bytes that it must move, and calls that do it, kernels and lines."""
    for dtype in DTYPES:
        operands = [torch.randn(count, device=device).to(dtype) for _ in range(5)]
        for name, make in ACTIVATIONS.items():
            curved = not rule_of(make(), operands[0], "torch").curvature_free
            numbers = {"forward": 2, "pull": 3, "meet": 5 if curved else 3, "adjoint": 4 if curved else 3}
            calls = {
                "kernel": sweeps(rule_of(make(), operands[0], "auto"), *operands),
                "lines": sweeps(rule_of(make(), operands[0], "torch"), *operands),
            }
            for sweep, moved in numbers.items():
                yield name, dtype, sweep, moved * operands[0].nbytes, {key: call[sweep] for key, call in calls.items()}


def sweeps(rule: Rule, z: Tensor, u: Tensor, xdot: Tensor, d: Tensor, w: Tensor) -> dict[str, Callable]:
    """The four sweeps of a rule, as calls without arguments; tensors are ``[n]``."""
    saved = rule.forward((z,), (), ())[1]
    cotangent, tangent = u.unsqueeze(0), xdot.unsqueeze(0)
    meeting = (cotangent,) if rule.meets_below else cotangent
    second = None if rule.curvature_free else (w,)
    return {
        "forward": lambda: rule.forward((z,), (), ()),
        "pull": lambda: rule.pull(saved, (), cotangent),
        "meet": lambda: rule.meet(saved, (), meeting, (tangent,), None, True),
        "adjoint": lambda: rule.adjoint(saved, (), d, second),
    }


def rule_of(module: nn.Module, x: Tensor, name: str) -> Rule:
    """The module's rule with this backend."""
    with gradreg_fast.backend(name):
        return with_passes(graph_of(module), x).nodes[1].rule


def draw(rows: list[dict], path: Path) -> None:
    """Each pass's share of the copy's bandwidth."""
    labels = [f"{row['pass']} {row['sweep']}, {row['dtype']}" for row in rows]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.2 * len(rows)), layout="constrained")
    axes.barh(labels, [row["share"] for row in rows], color="#2a7f4f", label="kernels")
    lines = [row["share"] * row["kernel_seconds"] / row["lines_seconds"] for row in rows]
    axes.plot(lines, labels, "|", color="black", label="PyTorch lines")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("share of a copy's bandwidth")
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
