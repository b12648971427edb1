"""Peak memory of one step, measured alike for every peer.

On CUDA PyTorch's allocator says it. On a CPU the kernel says it: the high-water mark of resident memory (`VmHWM`) is
reset through `/proc/self/clear_refs` and read after the step, so that everything counts, whoever allocates it
(PyTorch's tensors, oneDNN's scratch, XLA's buffers). Before that, glibc is told to map every block above 64 kB by
itself and to give freed memory back: a block counts while it is in use and not longer. That slows allocation down, so
memory is measured after all timing, in a process that ends afterwards. Resolution: about 0.3 MB.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SELF = Path("/proc/self")


def peak(step: Callable, release: Callable, device: str) -> int | None:
    """Bytes by which one call of `step` raises memory use at its highest.

    Args:
        step: what is measured.
        release: frees what the previous step left, so that every peer's gradients count as part of the step.
        device: "cpu" or "cuda".

    Returns:
        The bytes; None where nothing measures them.
    """
    measure = _peak_cuda if device.startswith("cuda") else _peak_resident
    try:
        return measure(step, release)
    except OSError:  # no /proc, or it does not let us
        return None


def _peak_cuda(step, release):
    release()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_resident(step, release):
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(_M_TRIM_THRESHOLD, 0)
    step()
    rises = []
    for _ in range(3):
        release()
        gc.collect()
        libc.malloc_trim(0)
        (_SELF / "clear_refs").write_text("5")
        before = _status("VmRSS")
        step()
        rises.append(_status("VmHWM") - before)
    return int(statistics.median(rises))


def _status(field):
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
