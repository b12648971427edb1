"""Compiles all CUDA kernels, whatever torch is here, and holds them against their header comments.

``python tests/csrc/compile_cuda.py [OUT]`` needs nvcc and cuobjdump ($CUDA_HOME, PATH). It fails where an instance of a
kernel, on any target, spills registers, needs more registers, stack (arrays in local memory) or static shared memory
than the kernel's header comment allows, or has tensor-core instructions otherwise than the comment wants; where a
kernel has no comment, or a comment no kernel; where a target or PTX is missing; and where the library that the kernels
are linked into does not load. OUT gets kernels.json: what every instance needs.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from gradreg_fast import build
from gradreg_fast.kernels import Kernel, kernels

LIMITS = {"registers": r"Used (\d+) registers", "stack": r"(\d+) bytes stack frame", "shared": r"(\d+) bytes smem"}
STORES = re.compile(r"\bSTG\b")
TENSOR_CORES = re.compile(r"\b([HQID]MMA|[HQ]GMMA|UTC\w*MMA)\b")


def main() -> None:
    """Compile, check, and tell what was found."""
    sources = build.source_folder()
    documented = {kernel.name: kernel for kernel in kernels(sources) if kernel.file.startswith("cuda/")}
    with tempfile.TemporaryDirectory() as folder:
        log, objects = compile_all(sources, Path(folder))
        instances = instances_of(log)
        for path in objects:
            for key, code in machine_code(run([program("cuobjdump"), "-sass", path])).items():
                instances[key] |= {"tensor": bool(TENSOR_CORES.search(code)), "stores": bool(STORES.search(code))}
        faults = [
            f"{path.name} holds no PTX" for path in objects if ".ptx" not in run([program("cuobjdump"), "-lptx", path])
        ]
    compiled: dict[str, set[str]] = {}
    readable = dict(zip(instances, run(["c++filt", *(name for name, _ in instances)]).splitlines(), strict=True))
    for key, needs in instances.items():
        name, target = re.search(r"(\w+)(<|\()", readable[key])[1], key[1]
        compiled.setdefault(name, set()).add(target)
        if name in documented:
            faults += [
                f"{readable[key]} on {target} {fault}" for fault in faults_of(documented[name], readable[key], needs)
            ]
    faults += [f"{name} has no header comment" for name in compiled.keys() - documented.keys()]
    for name in documented:
        faults += [f"{name} is not compiled for {target}" for target in set(build.TARGETS) - compiled.get(name, set())]
    table = [{"instance": readable[key], "target": key[1], **needs} for key, needs in instances.items()]
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        Path(sys.argv[1], "kernels.json").write_text(json.dumps(table, indent=1) + "\n")
    most = {name: max(needs[name] for needs in instances.values()) for name in LIMITS}
    print(f"{len(compiled)} kernels, {len(instances)} instances for {', '.join(build.TARGETS)}; at most {most}")
    sys.exit("\n".join(sorted(faults)) if faults else None)


def faults_of(kernel: Kernel, instance: str, needs: dict) -> list[str]:
    """What an instance does that its kernel's comment does not allow."""
    faults = [f"spills {needs['spills']} bytes"] if needs["spills"] else []
    for field in LIMITS:
        if needs[field] > kernel.budget(field):
            faults.append(f"needs {needs[field]} of {field}, allowed are {kernel.budget(field)}")
    wanted = re.search(kernel.fields.get("tensor", "(?!)"), instance) is not None
    if not needs["stores"]:
        faults.append("stores nothing: the compiler found its behaviour undefined")
    if wanted != needs["tensor"]:
        faults.append(f"has {'no' if wanted else 'unwanted'} tensor-core instructions")
    return faults


def compile_all(sources: Path, folder: Path) -> tuple[str, list[Path]]:
    """What ptxas says of the CUDA sources, and their objects with kernels; links and loads them, too."""
    compiler, nvcc, library = build.find_compiler(), build.any_nvcc(), folder / "kernels.so"
    names = ("library.cpp", *build.CUDA_SOURCES)
    compilations, link = build.commands(sources, names, compiler, nvcc, folder, library)
    with ThreadPoolExecutor(build.jobs()) as pool:
        logs = dict(zip((Path(command[-1]) for command in compilations), pool.map(run, compilations), strict=True))
    run(link)
    torch.ops.load_library(library)
    return "\n".join(logs.values()), [path for path, log in logs.items() if "entry function" in log]


def run(command: list) -> str:
    """Output and errors of a command that succeeds."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def program(name: str) -> str:
    """A program of the CUDA toolkit."""
    return shutil.which(name, path=Path(build.any_nvcc()).parent) or name


def instances_of(log: str) -> dict[tuple[str, str], dict]:
    """What each instance of a kernel needs on each target, as ptxas tells it."""
    found = {}
    for part in log.split("Compiling entry function")[1:]:
        instance, target = re.match(r" '(\w+)' for '(\w+)'", part).groups()
        needs = {name: int(match[1]) if (match := re.search(text, part)) else 0 for name, text in LIMITS.items()}
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        found[instance, target] = {**needs, "spills": spills}
    return found


def machine_code(sass: str) -> dict[tuple[str, str], str]:
    """The instructions of each instance on each target."""
    found = {}
    for code in sass.split("code for ")[1:]:
        target = code.split(maxsplit=1)[0]
        for function in code.split("Function : ")[1:]:
            found[function.split(maxsplit=1)[0], target] = function
    return found


if __name__ == "__main__":
    main()
