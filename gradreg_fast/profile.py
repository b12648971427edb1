"""``python -m gradreg_fast profile``: what runs where on a model of your own, whether it is right, what it gains."""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gradreg_fast import functional, memory, reference
from gradreg_fast.explain import explain
from gradreg_fast.verify import ParityError, everything_restored, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="PACKAGE.MODULE:CALLABLE", help="what returns the model, called with nothing")
    parser.add_argument("--input", required=True, metavar="64x3x32x32", help="the input's shape; it is drawn at random")
    parser.add_argument("--penalty", default="r1", choices=functional.PENALTIES, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--eval", action="store_true", help="in evaluation mode; in training mode without it")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each; default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="a picture of the figures (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """The command: prints its findings; 0 if the model's penalty agrees with autograd's, else 1."""
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    model = load(arguments.model).to(arguments.device, dtype).train(not arguments.eval)
    shape = parse_shape(arguments.input)
    x = torch.randn(shape, device=arguments.device).to(dtype)
    settings = needed(arguments.penalty, model, x)
    show(explain(model, x, arguments.penalty))
    try:
        verification = verify(model, x, arguments.penalty, **settings)
    except ParityError as error:
        print(f"\n{error.verification}\n\nparity: FAILED")
        return 1
    worst = max(verification.rows, key=lambda row: row.error / row.allowed if row.allowed else 0)
    print(f"\nparity: agrees with {verification.against}; nearest to its limit: {worst.name}, error {worst.error:.1e}")
    figures = measure(model, x, arguments.penalty, settings, arguments.repeats)
    for name, (ours, theirs, unit) in figures.items():
        print(f"{name}: {ours:.4g} {unit}, autograd {theirs:.4g} {unit}: {theirs / ours:.2f} times")
    if arguments.out:
        draw(figures, f"{type(model).__name__}, {arguments.penalty}, {arguments.input}", arguments.out)
        print(f"written: {arguments.out}")
    return 0


def load(name: str) -> nn.Module:
    """The model that ``package.module:callable`` makes.

    Raises:
        SystemExit: if there is none, with the reason.
    """
    package, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = importlib.import_module(package)
        for part in attribute.split("."):
            made = getattr(made, part)
        model = made if isinstance(made, nn.Module) else made()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SystemExit(f"model must be PACKAGE.MODULE:CALLABLE, got {name!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(model, nn.Module):
        raise SystemExit(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def parse_shape(text: str) -> list[int]:
    """``64x3x32x32`` as numbers.

    Raises:
        SystemExit: if it is no shape.
    """
    try:
        shape = [int(part) for part in text.split("x")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise SystemExit(f"--input must be a shape like 64x3x32x32, got {text!r}")
    return shape


def needed(penalty: str, model: nn.Module, x: Tensor) -> dict:
    """What a penalty needs beside the model and x, drawn at random."""
    if penalty == "r1_r2":
        return {"fake": torch.randn_like(x)}
    if penalty not in ("double_backprop", "gradient_matching"):
        return {}
    with everything_restored(model), torch.no_grad():
        y = model(x)
    if penalty == "gradient_matching":
        outputs = y[0].numel()
        return {
            "target_gradient": torch.randn_like(x if outputs == 1 else x.unsqueeze(1).expand(-1, outputs, *x.shape[1:]))
        }
    if y.dim() == 2 and y.shape[1] > 1:
        return {"target": torch.randint(y.shape[1], (len(y),), device=y.device)}
    return {"target": torch.randn_like(y), "loss": "mse"}


def measure(
    model: nn.Module, x: Tensor, penalty: str, settings: dict, repeats: int
) -> dict[str, tuple[float, float, str]]:
    """Medians of a step's time, ours and autograd's in turns, and both peaks of memory."""

    def step(penalty: Callable) -> None:
        model.zero_grad()
        y, value = penalty(model, x, **settings)
        (sum(part.square().mean() for part in (y if isinstance(y, tuple) else (y,))) + value).backward()

    steps = [lambda: step(getattr(functional, penalty)), lambda: step(getattr(reference, penalty))]
    times: list[list[float]] = [[], []]
    with everything_restored(model):
        for i in range(repeats + 2):
            for one, each in zip(steps, times, strict=True):
                _wait(x)
                start = time.perf_counter()
                one()
                _wait(x)
                if i > 1:
                    each.append(1e3 * (time.perf_counter() - start))
        peaks = [memory.peak(one, model.zero_grad, str(x.device)) for one in steps]
    figures = {"time of a step": (*map(statistics.median, times), "ms")}
    if None not in peaks:
        figures["peak memory of a step"] = (*(max(peak, 1) / 1e6 for peak in peaks), "MB")
    return figures


def draw(figures: dict[str, tuple[float, float, str]], title: str, path: Path) -> None:
    """A picture of `measure`'s figures.

    Raises:
        SystemExit: if matplotlib is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("--out needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(3.5 * len(figures) + 1, 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, (name, (ours, theirs, unit)) in zip(
        figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True
    ):
        bars = axes.bar(["gradreg_fast", "autograd"], [ours, theirs], color=["tab:blue", "tab:gray"])
        axes.bar_label(bars, fmt="%.3g")
        axes.set_title(name)
        axes.set_ylabel(unit)
    figure.savefig(path, dpi=150)


def show(explanation) -> None:
    """Print it, by rich where there is rich."""
    try:
        from rich.console import Console
    except ImportError:
        print(explanation)
    else:
        Console().print(explanation)


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
