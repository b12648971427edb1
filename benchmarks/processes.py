"""Several processes under torchrun, as one run: who takes part, and what they have together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """The process group, where there are several processes; each has the GPU of its local rank."""
    if WORLD == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def synchronised(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over the processes."""
    return module if WORLD == 1 else DistributedDataParallel(module)


def averaged(values: Tensor) -> Tensor:
    """The mean over the processes, of each value."""
    if WORLD > 1:
        distributed.all_reduce(values)
    return values / WORLD
