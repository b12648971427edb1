"""Builds the compiled kernels: one list of sources and flags for `setup.py` and for the build at first use.

CUDA kernels are part of the library where torch is a CUDA build and there is an nvcc; where they do not compile, the
library is built without them. They are free of torch's headers, and the library brings its own CUDA runtime.

The build at first use runs once per machine. Its library lies in a per-user cache (``$GRADREG_FAST_CACHE``, else
``$XDG_CACHE_HOME/gradreg_fast``, else ``~/.cache/gradreg_fast``) in a folder named by a hash of everything that shapes
it, and by the processor's instruction set: kernels for all of them are compiled only ahead of time, where the library
chooses when it runs. Concurrent processes wait for one build; a failed one leaves a marker beside its log, and is not
tried again.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

MODULE = "gradreg_fast._C"
FILE = "_C.abi3.so"  # in Python's limited API: one file for all versions
SOURCES = (
    "bindings.cpp",
    "library.cpp",
    "cpu/active.cpp",
    "cpu/active_avx2.cpp",
    "cpu/active_avx512.cpp",
    "cpu/active_baseline.cpp",
    "cpu/average_pool.cpp",
    "cpu/capability.cpp",
    "cpu/conv.cpp",
    "cpu/conv_avx2.cpp",
    "cpu/conv_avx512.cpp",
    "cpu/conv_baseline.cpp",
    "cpu/elementwise.cpp",
    "cpu/elementwise_avx2.cpp",
    "cpu/elementwise_avx512.cpp",
    "cpu/elementwise_baseline.cpp",
    "cpu/layer_norm.cpp",
    "cpu/max_pool.cpp",
    "cpu/mlp.cpp",
    "cpu/mlp_avx2.cpp",
    "cpu/mlp_avx512.cpp",
    "cpu/mlp_baseline.cpp",
    "cpu/norm.cpp",
    "cpu/norm_avx2.cpp",
    "cpu/norm_avx512.cpp",
    "cpu/norm_baseline.cpp",
    "cpu/pool_avx2.cpp",
    "cpu/pool_avx512.cpp",
    "cpu/pool_baseline.cpp",
)
CUDA_SOURCES = (
    "cuda/average_pool.cpp",
    "cuda/average_pool.cu",
    "cuda/conv.cpp",
    "cuda/conv.cu",
    "cuda/conv_bfloat16.cu",
    "cuda/conv_float16.cu",
    "cuda/conv_float32.cu",
    "cuda/conv_float64.cu",
    "cuda/conv_tf32.cu",
    "cuda/elementwise.cpp",
    "cuda/elementwise.cu",
    "cuda/layer_norm.cpp",
    "cuda/layer_norm.cu",
    "cuda/max_pool.cpp",
    "cuda/max_pool.cu",
    "cuda/mlp.cpp",
    "cuda/mlp_bfloat16.cu",
    "cuda/mlp_float16.cu",
    "cuda/mlp_float32.cu",
    "cuda/mlp_float64.cu",
    "cuda/mlp_tf32.cu",
    "cuda/norm.cpp",
    "cuda/norm.cu",
    "cuda/rows.cpp",
    "cuda/rows.cu",
    "cuda/runtime.cu",
)
CAPABILITIES = ("baseline", "avx2", "avx512")
"""Instruction sets that there are kernels for, in sources whose names end so; numbered as in ``cpu/capability.h``."""
FLAGS = (
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wno-psabi",  # vectors are passed by value, to inlined functions only
    "-DTORCH_TARGET_VERSION=0x020A000000000000",  # the stable ABI of torch 2.10: one library for all later ones
)
LIBRARIES = ("torch", "torch_cpu", "c10")
TARGETS = ("sm_80", "sm_90a", "sm_100a")
"""GPUs that the kernels are compiled for; others, from compute capability 8.0 on, get them from PTX by the driver."""
PTX = "compute_80"
CUDA_FLAGS = (
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=-v",  # registers and shared memory of each kernel, for the log
    *(f"-gencode=arch={target.replace('sm', 'compute')},code={target}" for target in TARGETS),
    f"-gencode=arch={PTX},code={PTX}",
)
NVCC_PACKAGES = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
)
"""An nvcc from PyPI, for machines without a CUDA toolkit: all must be of one version."""


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


def load() -> tuple[ModuleType, str]:
    """The compiled library: the installed one, else the cached one, else one that is built now.

    An installed one without CUDA kernels (a wheel's) stands back for one with them, where that can be built.

    Returns:
        The library, and why it has no CUDA kernels ("" if it has).

    Raises:
        BuildError: if there is none, with the reason.
    """
    sources = source_folder()
    installed = installed_library(sources)
    complete = installed is not None and b"cuda_problem" in installed.read_bytes()
    module = _installed_module() if complete else None
    if module is not None:
        return module, ""
    try:
        return _just_in_time(sources, find_nvcc()), ""
    except BuildError as error:
        reason = str(error)
    module = _installed_module() if installed is not None and not complete else None
    return module or _just_in_time(sources, None), reason


def _installed_module() -> ModuleType | None:
    """The installed library; None if it was made for another machine, torch or Python."""
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        return None


def _just_in_time(sources: Path | None, nvcc: str | None) -> ModuleType:
    if sources is None:
        raise BuildError("the package holds neither a compiled library nor its sources")
    return _load(sources, find_compiler(), nvcc)


def _load(sources: Path, compiler: list[str], nvcc: str | None) -> ModuleType:
    """The cached library, built first if it is not there."""
    capability = cpu_capability()
    folder = cache_folder() / f"{cache_key(sources, compiler, nvcc)}-{capability}"
    library = folder / FILE
    if not library.exists():
        _build_once(sources, compiler, nvcc, capability, folder, library)
    return _import(library)


def installed_library(sources: Path | None) -> Path | None:
    """The library that was compiled ahead of time; None if there is none, or its checkout has changed since."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return None
    library = Path(found.origin)
    if sources is None or sources.parent == Path(__file__).parent:
        return library
    changed = max(path.stat().st_mtime for path in sources.rglob("*.*"))
    return library if library.stat().st_mtime > changed else None


def find_compiler() -> list[str]:
    """The C++ compiler's command: ``$CXX``, else what the system calls c++ or g++."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler ({', '.join(candidates)}) in PATH")


def find_nvcc() -> str:
    """CUDA's compiler, for a torch that can use what it makes.

    Raises:
        BuildError: if torch is built without CUDA, or there is no nvcc.
    """
    import torch

    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} is built without CUDA")
    return any_nvcc()


def any_nvcc() -> str:
    """CUDA's compiler: of ``$CUDA_HOME``, in PATH, in /usr/local/cuda, or from packages of this environment."""
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    packages = importlib.util.find_spec("nvidia")
    for place in packages.submodule_search_locations or () if packages else ():
        folders += map(str, sorted(Path(place).glob("cu*"), reverse=True))
    inside = [shutil.which("nvcc", path=os.path.join(folder, "bin")) for folder in folders if folder]
    home = inside.pop(0) if folders[0] else None
    found = next((nvcc for nvcc in (home, shutil.which("nvcc"), *inside) if nvcc), None)
    if found is None:
        raise BuildError(f"no nvcc in $CUDA_HOME, PATH or /usr/local/cuda; {_where_to_get_nvcc()}")
    return found


def _where_to_get_nvcc() -> str:
    import torch

    version = torch.version.cuda or "13"
    if version.split(".")[0] == "13":  # as NVCC_PACKAGES; earlier ones have no nvcc
        return f"pip install {' '.join(NVCC_PACKAGES)}"
    return f"install the CUDA toolkit {version}"


def cpu_capability() -> str:
    """This processor's best among `CAPABILITIES`, or less where ``$GRADREG_FAST_CPU_CAPABILITY`` says so."""
    import torch

    best = {"AVX2": "avx2", "AVX512": "avx512"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    wish = os.environ.get("GRADREG_FAST_CPU_CAPABILITY")
    return min(best, wish, key=CAPABILITIES.index) if wish in CAPABILITIES else best


def source_names(nvcc: str | None, capability: str | None) -> list[str]:
    """The sources of a library with or without CUDA kernels, for one instruction set or for all; the longest first."""
    mine = tuple(f"_{name}.cpp" for name in CAPABILITIES if capability in (None, name))
    others = tuple(f"_{name}.cpp" for name in CAPABILITIES if capability not in (None, name))
    names = [name for name in (*SOURCES, *(CUDA_SOURCES if nvcc else ())) if not name.endswith(others)]
    return sorted(names, key=lambda name: not name.endswith((".cu", *mine)))


def cache_key(sources: Path, compiler: list[str], nvcc: str | None = None) -> str:
    """A hash of what decides the library's bytes and where it can be loaded."""
    import torch

    digest = hashlib.sha256()
    facts = [compiler, _version(compiler), FLAGS, torch.__version__, torch.compiled_with_cxx11_abi()]
    facts += [sysconfig.get_platform()]
    if nvcc is not None:
        facts += [nvcc, _version([nvcc]), CUDA_FLAGS]
    digest.update(repr(facts).encode())
    for path in source_files(sources):
        if nvcc is not None or path.parent.name != "cuda":
            digest.update(str(path.relative_to(sources)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def source_files(sources: Path) -> list[Path]:
    """All sources and headers below a folder."""
    return [path for path in sorted(sources.rglob("*")) if path.suffix in (".h", ".cpp", ".cuh", ".cu")]


def _version(command: list[str]) -> str:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{shlex.join(command)} does not run ({error})") from None


def host_flags(sources: Path) -> list[str]:
    """How the C++ compiler is called."""
    import torch
    from torch.utils import cpp_extension

    headers = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, "-std=c++17", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    return [*flags, f"-I{sources}", *(flag for header in headers for flag in ("-isystem", header))]


def link_flags(pass_on: str = "-Wl,") -> list[str]:
    """What a library is linked with; `pass_on` is how the compiler is told of flags for the linker."""
    import torch

    torch_libraries = Path(torch.__file__).parent / "lib"
    flags = [f"-L{torch_libraries}", f"{pass_on}--no-as-needed", f"{pass_on}--exclude-libs=ALL"]
    return [*flags, *(f"-l{name}" for name in LIBRARIES)]


def commands(
    sources: Path,
    names: Sequence[str],
    compiler: list[str],
    nvcc: str | None,
    folder: Path,
    library: Path,
    capability: str | None = None,
) -> tuple[list[list[str]], list[str]]:
    """The compilations of the named sources into the folder, in any order, and the link of the library behind them.

    The library will have the CPU's kernels for one instruction set, or choose among all when it runs.
    """
    host, link, pass_on = [*compiler, *host_flags(sources)], [*compiler, "-shared"], "-Wl,"
    if capability is not None:
        host.append(f"-DGRADREG_FAST_CAPABILITY={CAPABILITIES.index(capability)}")
    if nvcc is not None:
        device = [nvcc, f"-ccbin={compiler[0]}", *CUDA_FLAGS, f"-I{sources}"]
        host.append("-DGRADREG_FAST_CUDA")
        link = [*device[:2], "-shared", "-cudart=static", f"-L{Path(nvcc).parent.parent / 'lib'}"]
        pass_on = "-Xlinker="
    compilations, objects = [], []
    for name in names:
        objects.append(str(folder / f"{name.replace('/', '_')}.o"))
        with_what = device if name.endswith(".cu") else host
        compilations.append([*with_what, "-c", str(sources / name), "-o", objects[-1]])
    return compilations, [*link, *objects, *link_flags(pass_on), "-o", str(library)]


def jobs() -> int:
    """How many compilations run side by side: ``$MAX_JOBS``, else one for each processor."""
    wish = os.environ.get("MAX_JOBS", "")
    return int(wish) if wish.isdigit() and int(wish) > 0 else os.cpu_count() or 1


def compile_library(
    sources: Path, compiler: list[str], nvcc: str | None, capability: str | None, library: Path, log: Path
) -> str | None:
    """Compile the library, with nvcc its CUDA kernels too, for one instruction set or for all; None, or the error."""
    names = source_names(nvcc, capability)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        unfinished = Path(scratch) / library.name
        error = _compile(*commands(sources, names, compiler, nvcc, Path(scratch), unfinished, capability), log)
        if error is None:
            os.replace(unfinished, library)
        return error


def compile_ahead(library: Path) -> None:
    """Compile the library there, without CUDA kernels where they do not compile.

    Raises:
        BuildError: if it cannot be compiled, with the reason.
    """
    sources, compiler = source_folder(), find_compiler()
    try:
        choices = (find_nvcc(), None)
    except BuildError:
        choices = (None,)
    with tempfile.TemporaryDirectory() as folder:
        for nvcc in choices:
            error = compile_library(sources, compiler, nvcc, None, library, Path(folder) / "build.log")
            if error is None:
                return
    raise BuildError(error)


def _build_once(
    sources: Path, compiler: list[str], nvcc: str | None, capability: str, folder: Path, library: Path
) -> None:
    """Build the library unless another process just did, or failed to."""
    failure, log = folder / "failed", folder / "build.log"
    if failure.exists():
        raise BuildError(_remembered(failure, log))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            if failure.exists():
                raise BuildError(_remembered(failure, log))
            if library.exists():
                return
            error = compile_library(sources, compiler, nvcc, capability, library, log)
            if error is None:
                return
            failure.write_text(error)
    except OSError as error:
        raise BuildError(f"the cache {folder} cannot be used ({error})") from None
    which = "kernels" if nvcc is None else "CUDA kernels"
    warnings.warn(
        f"gradreg_fast: its {which} could not be compiled, PyTorch's serve instead (log: {log})", stacklevel=2
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
def locked(path: Path):
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
