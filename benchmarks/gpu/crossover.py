"""``python -m benchmarks.gpu.crossover``: up to which width kernels for fully connected networks pay on this device.

Networks of three layers, the step of gradient matching: value, penalty and all gradients. For each width, dtype and
number of rows, the time with PyTorch lines and with kernels, whose tiles have as many rows as the kernels choose, or as
they are told. From the former, for each dtype, the widest network that the kernels are ahead on with every narrower
one: the entry of `CROSSOVER_ON_CUDA` in gradreg_fast/mlp.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.backend import KERNELS
from gradreg_fast.functional import gradient_matching
from gradreg_fast.mlp import kernel_for
from gradreg_fast.ops import prepare

from . import timing
from .ceilings import capability

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
ROWS = (1 << 10, 1 << 14, 1 << 17)
TILES = ("chosen", "64", "32", "16")  # rows, as csrc/cuda/mlp.h has them
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def main() -> None:
    """Measure, print, write JSON, CSV and PNG."""
    options = timing.arguments(__doc__)
    device, quick = options.device, options.quick
    kernels = KERNELS[device]
    rows = timing.collected(comparisons(kernels, device, quick))
    if not rows:
        print(f"no kernels for fully connected networks serve on {device}")
        return
    table = {dtype: widest(rows, dtype) for dtype in {row["dtype"]: None for row in rows}}
    print(f"crossover on {capability(device) or device}: {table}")
    path = timing.finish("crossover", device, {"capability": capability(device), "crossover": table}, rows, options.out)
    draw(rows, path)


def comparisons(kernels: str, device: str, quick: bool) -> Iterator[dict]:
    """Every case's milliseconds."""
    for dtype in DTYPES[:1] if quick else DTYPES:
        for count in ROWS[:1] if quick else reversed(ROWS):
            for width in WIDTHS[:2] if quick else WIDTHS:
                for row in compare(dtype, width, count, kernels, device, quick):
                    print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                    yield row


def compare(dtype: torch.dtype, width: int, count: int, kernels: str, device: str, quick: bool) -> Iterator[dict]:
    """Milliseconds of a step with lines and with kernels, for each tile; nothing where no kernel serves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    model, x = model.to(device, dtype), torch.randn(count, 3, device=device).to(dtype)
    slope = torch.randn_like(x)

    def step():
        for parameter in model.parameters():
            parameter.grad = None
        y, penalty = gradient_matching(model, x, slope)
        (y.square().mean() + penalty).backward()

    def milliseconds(backend: str) -> float:
        with gradreg_fast.backend(backend):
            return 1e3 * timing.seconds(step, device, quick)[1]

    with gradreg_fast.backend(kernels):
        graph, tensors = prepare(model, x)
        if kernel_for(graph, x, tensors) is None:
            return
    lines = milliseconds("torch")
    for tile in TILES if device == "cuda" else TILES[:1]:
        os.environ["GRADREG_FAST_TILE_ROWS"] = "" if tile == "chosen" else tile
        try:
            row = {"dtype": str(dtype).removeprefix("torch."), "width": width, "rows": count, "tile": tile}
            yield row | {"kernel_ms": milliseconds(kernels), "lines_ms": lines}
        except RuntimeError as error:
            print(f"width {width}, {dtype}, tiles of {tile}: {error}")
    os.environ.pop("GRADREG_FAST_TILE_ROWS", None)


def widest(rows: list[dict], dtype: str) -> int:
    """The widest network with kernels ahead, geometric mean over the numbers of rows, on it and all narrower ones."""
    best, rows = 0, [row for row in rows if row["tile"] == "chosen"]
    for width in sorted({row["width"] for row in rows if row["dtype"] == dtype}):
        here = [row for row in rows if (row["dtype"], row["width"]) == (dtype, width)]
        if timing.geometric_mean([row["lines_ms"] / row["kernel_ms"] for row in here]) < 1:
            break
        best = width
    return best


def draw(rows: list[dict], path: Path) -> None:
    """PyTorch lines over kernels, by width."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    rows = [row for row in rows if row["tile"] == "chosen"]
    for dtype, count in sorted({(row["dtype"], row["rows"]) for row in rows}):
        here = [row for row in rows if (row["dtype"], row["rows"]) == (dtype, count)]
        ratios = [row["lines_ms"] / row["kernel_ms"] for row in here]
        axes.plot([row["width"] for row in here], ratios, "o-", label=f"{dtype}, {count} rows")
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="time of a step, PyTorch lines / kernels")
    axes.axhline(1, color="black", linewidth=1)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
