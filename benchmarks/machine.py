"""The machine and the versions that a figure belongs to, and the spread that it has."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def restrict(threads: int) -> None:
    """Confines this process to that many cores and PyTorch to that many threads; JAX knows no other way."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:threads])
    torch.set_num_threads(threads)


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """Yields a pool of threads, each confined to a core of its own, and so the processes that it starts."""
    free = list(cores())

    def confine():
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {free.pop()})

    pool = ThreadPoolExecutor(len(free), initializer=confine)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def environment(threads: int, device: str) -> dict:
    """The machine and the versions that a figure belongs to."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "jax", "gradreg_fast", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "cpu": _cpu(),
        "threads": threads,
        "versions": versions,
    }


def _commit():
    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(exclude)results")  # which every run may write
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
