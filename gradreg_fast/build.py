"""Builds the compiled kernels: one list of sources and flags for `setup.py` and for the build at first use.

The second kind runs once per machine. Its library lies in a per-user cache (``$GRADREG_FAST_CACHE``, else
``$XDG_CACHE_HOME/gradreg_fast``, else ``~/.cache/gradreg_fast``) in a folder named by a hash of everything that shapes
it. The kernels choose among instruction sets when they run, so that of the processor only its family is in the hash.
Concurrent processes wait for one build; a failed one leaves a marker beside its log, and is not tried again.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

MODULE = "gradreg_fast._C"
SOURCES = (
    "bindings.cpp",
    "library.cpp",
    "cpu/active.cpp",
    "cpu/active_avx2.cpp",
    "cpu/active_avx512.cpp",
    "cpu/active_baseline.cpp",
    "cpu/capability.cpp",
    "cpu/conv.cpp",
    "cpu/conv_avx2.cpp",
    "cpu/conv_avx512.cpp",
    "cpu/conv_baseline.cpp",
    "cpu/mlp.cpp",
    "cpu/mlp_avx2.cpp",
    "cpu/mlp_avx512.cpp",
    "cpu/mlp_baseline.cpp",
)
FLAGS = (
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wno-psabi",  # vectors are passed by value, to inlined functions only
    "-DTORCH_TARGET_VERSION=0x020A000000000000",  # the stable ABI of torch 2.10: one library for all later ones
)
LIBRARIES = ("torch", "torch_cpu", "c10")


class BuildError(RuntimeError):
    """Why there is no compiled library."""


def source_folder() -> Path | None:
    """Where the C++ sources are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next((folder for folder in (package / "csrc", package.parent / "csrc") if folder.is_dir()), None)


def cache_folder() -> Path:
    """Where libraries that are built at first use lie."""
    own = os.environ.get("GRADREG_FAST_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradreg_fast"


def load() -> ModuleType:
    """The compiled library: the installed one, else the cached one, else one that is built now.

    Raises:
        BuildError: if there is none, with the reason.
    """
    sources = source_folder()
    if is_installed(sources):
        try:
            return importlib.import_module(MODULE)
        except ImportError:  # made for another torch or Python; the one in the cache never is
            pass
    if sources is None:
        raise BuildError("the package holds neither a compiled library nor its sources")
    compiler = find_compiler()
    folder = cache_folder() / cache_key(sources, compiler)
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        _build_once(sources, compiler, folder, library)
    return _import(library)


def is_installed(sources: Path | None) -> bool:
    """Whether a library was compiled ahead of time, and not before its checkout last changed."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return False
    if sources is None or sources.parent == Path(__file__).parent:
        return True
    changed = max(path.stat().st_mtime for path in sources.rglob("*.*"))
    return Path(found.origin).stat().st_mtime > changed


def find_compiler() -> list[str]:
    """The C++ compiler's command: ``$CXX``, else what the system calls c++ or g++."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler ({', '.join(candidates)}) in PATH")


def cache_key(sources: Path, compiler: list[str]) -> str:
    """A hash of what decides the library's bytes and where it can be loaded."""
    import torch

    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{shlex.join(compiler)} does not run ({error})") from None
    digest = hashlib.sha256()
    facts = (compiler, version, FLAGS, torch.__version__, torch.compiled_with_cxx11_abi(), platform.machine())
    digest.update(repr((facts, sysconfig.get_config_var("EXT_SUFFIX"), sys.version_info[:2])).encode())
    for path in sorted(sources.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(str(path.relative_to(sources)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commands(sources: Path, compiler: list[str], folder: Path, library: Path) -> tuple[list[list[str]], list[str]]:
    """The compilations of the sources into the folder, in any order, and the link of the library behind them."""
    import torch
    from torch.utils import cpp_extension

    headers = [str(sources), *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    common = [*FLAGS, "-std=c++17", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    common += [f"-I{sources}", *(flag for header in headers[1:] for flag in ("-isystem", header))]
    compilations, objects = [], []
    for name in SOURCES:
        objects.append(str(folder / f"{name.replace('/', '_')}.o"))
        compilations.append([*compiler, *common, "-c", str(sources / name), "-o", objects[-1]])
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    link = [*compiler, "-shared", *objects, f"-L{torch_libraries}", "-Wl,--no-as-needed"]
    return compilations, [*link, *(f"-l{name}" for name in LIBRARIES), "-o", str(library)]


def jobs() -> int:
    """How many compilations run side by side: ``$MAX_JOBS``, else one for each processor."""
    wish = os.environ.get("MAX_JOBS", "")
    return int(wish) if wish.isdigit() and int(wish) > 0 else os.cpu_count() or 1


def _build_once(sources: Path, compiler: list[str], folder: Path, library: Path) -> None:
    """Build the library unless another process just did, or failed to."""
    failure, log = folder / "failed", folder / "build.log"
    if failure.exists():
        raise BuildError(_remembered(failure, log))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if failure.exists():
                raise BuildError(_remembered(failure, log))
            if library.exists():
                return
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unfinished = Path(scratch) / library.name
                error = _compile(*commands(sources, compiler, Path(scratch), unfinished), log)
                if error is None:
                    os.replace(unfinished, library)
                    return
            failure.write_text(error)
    except OSError as error:
        raise BuildError(f"the cache {folder} cannot be used ({error})") from None
    warnings.warn(
        f"gradreg_fast: its kernels could not be compiled, PyTorch's serve instead (log: {log})", stacklevel=2
    )
    raise BuildError(_remembered(failure, log))


def _remembered(failure: Path, log: Path) -> str:
    return f"an earlier build failed ({failure.read_text().strip()}; log: {log}; to try again, remove {failure})"


def _compile(compilations: list[list[str]], link: list[str], log: Path) -> str | None:
    """Run the commands, with progress on stderr and their output in the log; None, or the first error."""
    outputs: list[str] = []
    with ThreadPoolExecutor(jobs()) as pool, _Progress(len(compilations) + 1) as progress:

        def run(command: list[str]) -> bool:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            outputs.append(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}exit status {done.returncode}\n")
            progress.step()
            return done.returncode == 0

        built = all(list(pool.map(run, compilations))) and run(link)
    log.write_text("\n".join(outputs))
    if built:
        return None
    lines = [line.strip() for output in outputs for line in output.splitlines() if "rror" in line]
    return lines[0] if lines else "the compiler gave no reason"


class _Progress:
    """One line on stderr that counts, on a terminal; elsewhere only its beginning."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def __enter__(self) -> _Progress:
        self._show("\r" if sys.stderr.isatty() else "\n")
        return self

    def __exit__(self, *exception) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr, flush=True)

    def step(self) -> None:
        """One command is done."""
        self.done += 1
        if sys.stderr.isatty():
            self._show("\r")

    def _show(self, end: str) -> None:
        counter = f" {self.done}/{self.total}" if sys.stderr.isatty() else ""
        print(f"gradreg_fast: compiling kernels, once{counter} ...", end=end, file=sys.stderr, flush=True)


@contextmanager
def _locked(path: Path):
    """Hold an exclusive lock between processes."""
    try:
        import fcntl
    except ImportError:
        raise BuildError(f"kernels are not built on {platform.system()}") from None
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also if the process dies
        yield


def _import(library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(library))
    specification = importlib.util.spec_from_file_location(MODULE, library, loader=loader)
    try:
        module = importlib.util.module_from_spec(specification)
        loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{library} cannot be loaded ({error})") from None
    sys.modules[MODULE] = module
    return module
