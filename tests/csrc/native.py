"""Compiles a test's own C++ file, once for each state of the sources."""

import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from gradreg_fast import build

HERE = Path(__file__).parent
FOLDERS = (HERE, HERE.parent.parent / "csrc")
SANITIZERS = ("-fsanitize=address", "-fno-sanitize-recover=all", "-DPROGRAM")


@cache
def module(name):
    """The pybind11 module that ``name.cpp`` defines."""
    from torch.utils import cpp_extension

    headers = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", *(f for h in headers for f in ("-isystem", h))]
    library = _compiled(name, flags, sysconfig.get_config_var("EXT_SUFFIX"))
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    found = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, library, loader=loader))
    loader.exec_module(found)
    return found


def program(name):
    """``name.cpp`` as a program under AddressSanitizer."""
    return _compiled(name, ["-O0", "-g", *SANITIZERS], "")


def has_compiler():
    """Whether there is a compiler for this."""
    try:
        build.find_compiler()
    except build.BuildError:
        return False
    return os.uname().machine == "x86_64"


def _compiled(name, flags, suffix):
    command = [*build.find_compiler(), "-std=c++17", "-Wall", "-Wextra", *flags, *(f"-I{folder}" for folder in FOLDERS)]
    digest = hashlib.sha256(repr(command).encode())
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cuh", ".cpp"):
                digest.update(path.read_bytes())
    folder = build.cache_folder() / "tests" / digest.hexdigest()[:16]
    target = folder / f"{name}{suffix}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{name}.{os.getpid()}"
        done = subprocess.run(
            [*command, str(HERE / f"{name}.cpp"), "-o", str(unfinished)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        unfinished.replace(target)
    return target
