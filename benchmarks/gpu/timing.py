"""Seconds of a call on a device, and what each of these measurements writes."""

from __future__ import annotations

import argparse
import csv
import signal
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..machine import environment, spread
from ..report import write

ROUNDS = 7
VISIT = 0.02  # seconds that a round lasts at least


def arguments(description: str) -> argparse.Namespace:
    """What every measurement here is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that it works")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results and pictures (%(default)s)")
    return parser.parse_args()


def collected(rows: Iterable[dict]) -> list[dict]:
    """All rows, or those that were there when the process was told to end: a run that is cut off tells these."""
    found: list[dict] = []
    before = signal.signal(signal.SIGTERM, _cut_off)
    try:
        for row in rows:
            found.append(row)
    except _CutOff:
        print("cut off", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    return found


class _CutOff(BaseException):
    pass


def _cut_off(*_: object) -> None:
    raise _CutOff


def seconds(call: Callable[[], Any], device: str, quick: bool = False) -> list[float]:
    """Lower quartile, median and upper quartile of a call's seconds, each from a round of calls in a row."""
    clock = _device_clock if device == "cuda" else _clock
    call()
    once = max(clock(call, 1), 1e-7)
    repeats = 1 if quick else max(1, round(VISIT / once))
    return spread([clock(call, repeats) for _ in range(2 if quick else ROUNDS)])


def _clock(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _device_clock(call, repeats):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def finish(kind: str, device: str, results: dict, rows: list[dict], out: Path) -> Path:
    """Write the results as JSON and their rows as CSV; the path without its suffix."""
    path = out / kind
    write(
        {"kind": kind, "environment": environment(torch.get_num_threads(), device), **results, "rows": rows},
        path.with_suffix(".json"),
    )
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return statistics.geometric_mean(values)
