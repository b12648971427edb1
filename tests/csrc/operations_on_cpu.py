"""The CUDA operations with their kernels run on the CPU, so that all of Python above them is tested without a GPU.

Their own sources, checks and launches included, are compiled by a C++ compiler over the header that runs CUDA kernels,
and serve tensors on the CPU.
"""

import ctypes
import hashlib
import subprocess
from functools import cache

import torch

from gradreg_fast import build

from .native import FOLDERS, HERE

SOURCES = ["library.cpp", *(name for name in build.CUDA_SOURCES if name != "cuda/runtime.cu")]
ORDERS = range(3)  # forward, reversed, shuffled


@cache
def library():
    """The operations, as torch.ops.gradreg_fast has them, and a function that chooses the order of threads."""
    sources = build.source_folder()
    command = [*build.find_compiler(), *build.host_flags(sources), "-w", "-O1", f"-I{HERE}"]
    command += ["-include", str(HERE / "operations_on_cpu.h"), "-x", "c++", "-shared"]
    command += [str(HERE / "operations_on_cpu.cpp"), *(str(sources / name) for name in SOURCES), "-x", "none"]
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for path in (path for folder in FOLDERS for path in sorted(folder.rglob("*"))):
        if path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(path.read_bytes())
    target = build.cache_folder() / "tests" / digest.hexdigest()[:16] / "operations_on_cpu.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with build.locked(target.with_suffix(".lock")):  # other processes of the same run wait instead of compiling, too
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            whole = [*command, *build.link_flags(), "-o", str(unfinished)]
            done = subprocess.run(whole, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            unfinished.replace(target)
    torch.ops.load_library(target)
    return torch.ops.gradreg_fast_on_cpu, ctypes.CDLL(target).choose_order
