"""``python -m benchmarks.gpu.crossover``: up to which size kernels pay on this device, for networks that they can take.

Fully connected networks of three layers by their width, and three 3 x 3 convolutions in a row by their channels, each a
step of gradient matching: value, penalty and all gradients. For each size, dtype and number of samples, the time with
kernels, whose tiles are as large as they choose, or as they are told, and with what serves where they do not (the
library's products, with passes around them). Threads a block are not swept: no kernel leaves them free, 256 share out
its registers. From the former, the largest network that the kernels are ahead on with every smaller one goes into a new
gradreg_fast/measured.py in OUT, beside what other devices have there.
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
from gradreg_fast import measured
from gradreg_fast.backend import KERNELS
from gradreg_fast.blocks import with_blocks
from gradreg_fast.functional import gradient_matching
from gradreg_fast.mlp import kernel_for
from gradreg_fast.ops import prepare

from . import timing
from .ceilings import capability

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CHANNELS = (4, 8, 16, 32, 64, 128, 256)
ROWS, IMAGES = (1 << 10, 1 << 16), (64,)
CHOSEN = "chosen"
TILES = {"width": ("64", "32", "16"), "channels": ("128", "64")}  # csrc/cuda/mlp.h and tiled.h
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def main() -> None:
    """Measure, print, write JSON, CSV, PNG and the tables."""
    options = timing.arguments(__doc__)
    device, quick = options.device, options.quick
    found = capability(device)
    if found:  # what serves without the kernels is what they are compared with
        nowhere = dict.fromkeys(DTYPES, 0)
        measured.WIDTHS[tuple(found)] = measured.CHANNELS[tuple(found)] = nowhere
    rows = timing.collected(comparisons(device, quick))
    if not rows:
        print(f"no kernels for such networks serve on {device}")
        return
    tables = {kind: table(rows, kind) for kind in TILES}
    print(f"crossover on {found or device}: {tables}")
    path = timing.finish("crossover", device, {"capability": found, "crossover": tables}, rows, options.out)
    draw(rows, path)
    if found:
        (options.out / "measured.py").write_text(rewritten(Path(measured.__file__).read_text(), tuple(found), tables))


def comparisons(device: str, quick: bool) -> Iterator[dict]:
    """Every case's milliseconds; those that tables are made of first."""
    some = 1 if quick else None
    cases = [("width", width, count) for count in ROWS[:some] for width in WIDTHS[:some]]
    cases += [("channels", channels, count) for count in IMAGES for channels in CHANNELS[:some]]
    dtypes, told = DTYPES[:some], device == "cuda"
    for kind, size, count in cases:
        for dtype in dtypes:
            yield from compare(kind, size, count, dtype, (CHOSEN,), device, quick)
    for dtype in dtypes if told else ():
        for kind, size, count in cases:
            yield from compare(kind, size, count, dtype, TILES[kind], device, quick)


def network(kind: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of so many units or channels a layer, and the shape of a sample."""
    if kind == "width":
        layers = nn.Linear(3, size), nn.Tanh(), nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1)
        return nn.Sequential(*layers), (3,)
    convolutions = [layer for _ in range(3) for layer in (nn.Conv2d(size, size, 3, padding=1), nn.LeakyReLU(0.2))]
    return nn.Sequential(*convolutions, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16 * size, 1)), (size, 32, 32)


def compare(
    kind: str, size: int, count: int, dtype: torch.dtype, tiles: tuple[str, ...], device: str, quick: bool
) -> Iterator[dict]:
    """Milliseconds of a step with kernels, for each tile, and without; nothing where no kernel serves."""
    torch.manual_seed(0)
    model, shape = network(kind, size)
    count = count if kind == "width" or not quick else 2
    model, x = model.to(device, dtype), torch.randn(count, *shape, device=device).to(dtype)
    slope, kernels = torch.randn_like(x), KERNELS[device]

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
        served = kernel_for if kind == "width" else with_blocks
        if served(graph, x, tensors) in (None, graph):
            return
    without = milliseconds("auto" if device == "cuda" else "torch")
    for tile in tiles:
        os.environ["GRADREG_FAST_TILE_ROWS"] = "" if tile == CHOSEN else tile
        row = {"kind": kind, "size": size, "samples": count, "dtype": str(dtype), "tile": tile}
        try:
            row |= {"kernel_ms": milliseconds(kernels), "without_ms": without}
        except RuntimeError as error:
            print(f"{row}: {error}")
            continue
        print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        yield row
    os.environ.pop("GRADREG_FAST_TILE_ROWS", None)


def table(rows: list[dict], kind: str) -> dict[str, int]:
    """For each dtype that was measured, up to which size kernels pay."""
    rows = [row for row in rows if (row["kind"], row["tile"]) == (kind, CHOSEN)]
    dtypes = {row["dtype"]: None for row in rows}
    return {dtype: largest([row for row in rows if row["dtype"] == dtype]) for dtype in dtypes}


def largest(rows: list[dict]) -> int:
    """The largest size with kernels ahead, geometric mean over the numbers of samples, on it and all smaller ones."""
    best = 0
    for size in sorted({row["size"] for row in rows}):
        ratios = [row["without_ms"] / row["kernel_ms"] for row in rows if row["size"] == size]
        if timing.geometric_mean(ratios) < 1:
            break
        best = size
    return best


def rewritten(source: str, capability: tuple[int, int], tables: dict[str, dict[str, int]]) -> str:
    """gradreg_fast/measured.py with these entries for a device; others' stay.

    Args:
        source: its text.
        capability: of the device.
        tables: by kind, the largest size of each dtype.
    """
    lines = [line for line in source.splitlines() if f"    {capability}: " not in line]
    for kind, name in {"width": "WIDTHS", "channels": "CHANNELS"}.items():
        (start,) = (i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
        opening = lines[start].removesuffix("}")
        entry = ", ".join(f"{dtype}: {size}" for dtype, size in tables[kind].items())
        end = ["}"] if opening != lines[start] else []
        lines[start : start + 1] = [opening, f"    {capability}: {{{entry}}},", *end]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Without kernels over with them, by size."""
    figure, both = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes, kind in zip(both, TILES, strict=True):
        chosen = [row for row in rows if (row["kind"], row["tile"]) == (kind, CHOSEN)]
        for dtype, count in sorted({(row["dtype"], row["samples"]) for row in chosen}):
            here = [row for row in chosen if (row["dtype"], row["samples"]) == (dtype, count)]
            ratios = [row["without_ms"] / row["kernel_ms"] for row in here]
            axes.plot([row["size"] for row in here], ratios, "o-", label=f"{dtype}, {count} samples")
        axes.set(xscale="log", yscale="log", xlabel=kind, ylabel="time of a step, without kernels / with")
        axes.axhline(1, color="black", linewidth=1)
        if chosen:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
