"""The CUDA operations with their kernels run on the CPU, so that all of Python above them is tested without a GPU.

Their own sources, checks and launches included, are compiled by a C++ compiler over the header that runs CUDA kernels,
and serve tensors on the CPU.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from gradreg_fast import build

from .native import HERE, cached, run

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

    def compile_to(target):
        objects = [str(target.with_name(f"{file.name}.o")) for file in files]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            [*pool.map(lambda file, to: run([*command, str(file), "-o", to]), files, objects)]
        run([*compiler, "-shared", *objects, *build.link_flags(), "-o", str(target)])

    target = cached("operations_on_cpu.so", command, compile_to)
    torch.ops.load_library(target)
    return torch.ops.gradreg_fast_on_cpu, ctypes.CDLL(target).choose_order
