"""Compiles a test's own C++ file, once for each state of the sources."""

import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from gradreg_fast import build

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FOLDERS = (HERE, ROOT / "csrc")
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
    command.append(str(HERE / f"{name}.cpp"))
    return cached(f"{name}{suffix}", command, lambda target: run([*command, "-o", str(target)]))


def cached(name, command, compile_to):
    """The file that `compile_to(path)` makes by this command, once for each state of sources and tools.

    Wherever checkout and environment lie. Other processes wait instead of compiling, too.
    """
    line = repr(command).replace(str(ROOT), "").replace(sys.prefix, "")
    digest = hashlib.sha256((line + build.cache_key(ROOT / "csrc", build.find_compiler())).encode())
    for path in (path for folder in FOLDERS for path in build.source_files(folder)):
        digest.update(path.read_bytes())
    folder = build.cache_folder() / "tests" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    target, unfinished = folder / name, folder / "unfinished"
    with build.locked(folder / "lock"):
        if not target.exists():
            compile_to(unfinished)
            unfinished.replace(target)
    return target


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
