"""The CUDA operations with their kernels run on the CPU, so that all of Python above them is tested without a GPU.

Their own sources, checks and launches included, are compiled by a C++ compiler over the header that runs CUDA kernels,
and serve tensors on the CPU.
"""

import ctypes
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    compiler = build.find_compiler()
    command = [*compiler, *build.host_flags(sources), "-w", "-O1", f"-I{HERE}"]
    command += ["-include", str(HERE / "operations_on_cpu.h"), "-x", "c++", "-c"]
    files = [HERE / "operations_on_cpu.cpp", *(sources / name for name in SOURCES)]
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for path in (path for folder in FOLDERS for path in sorted(folder.rglob("*"))):
        if path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(path.read_bytes())
    target = build.cache_folder() / "tests" / digest.hexdigest()[:16] / "operations_on_cpu.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with build.locked(target.with_suffix(".lock")):  # other processes of the same run wait instead of compiling, too
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            objects = [str(target.with_name(f"{file.name}.o")) for file in files]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                [*pool.map(lambda file, to: run([*command, str(file), "-o", to]), files, objects)]
            run([*compiler, "-shared", *objects, *build.link_flags(), "-o", str(unfinished)])
            unfinished.replace(target)
    torch.ops.load_library(target)
    return torch.ops.gradreg_fast_on_cpu, ctypes.CDLL(target).choose_order


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
