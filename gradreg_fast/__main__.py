"""``python -m gradreg_fast``: `info`, what a bug report needs, or all kernels; `profile`, what a model gains."""

from __future__ import annotations

import argparse
import os
import platform

import torch

import gradreg_fast
from gradreg_fast import build, profile
from gradreg_fast.backend import cuda_library, current, library
from gradreg_fast.kernels import Kernel, kernels


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m gradreg_fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, what is compiled for what, and why not where not")
    info.add_argument("--kernels", action="store_true", help="every kernel instead: dtypes, targets, needs, bound")
    profile.add_arguments(commands.add_parser("profile", help="what runs where, parity, time and memory of a model"))
    arguments = parser.parse_args()
    if arguments.command == "profile":
        raise SystemExit(profile.run(arguments))
    if arguments.kernels:
        sources = build.source_folder()
        if sources is None:
            parser.error("the kernels' sources, which tell of them, are not in this package")
        print("\n\n".join(map(description, kernels(sources))))
        return
    for name, value in facts().items():
        print(f"{name:16}{value}")


def description(kernel: Kernel) -> str:
    """What a kernel's header comment tells, as a paragraph."""
    fields = {"targets": ", ".join(kernel.targets)} | kernel.fields
    if kernel.file.startswith("cuda/"):
        fields |= {name: f"at most {kernel.budget(name)}" for name in ("registers", "stack", "shared")}
    heading = f"{kernel.name} ({kernel.file}): {kernel.task}"
    return "\n".join([heading, *(f"  {name:12}{text}" for name, text in fields.items())])


def facts() -> dict[str, str]:
    """Versions and the state of the compiled kernels; builds them if they can be."""
    try:
        choice = current()
    except ValueError as error:
        choice = str(error)
    module, reason = library()
    lines = {
        "gradreg_fast": gradreg_fast.__version__,
        "torch": f"{torch.__version__} ({torch.get_num_threads()} threads)",
        "python": f"{platform.python_version()} ({platform.system()}, {platform.machine()})",
        "backend": choice,
    }
    if module is None:
        lines["CPU kernels"] = f"none: {reason}"
    else:
        lines["CPU kernels"] = f"{module.cpu_capability()}, of {module.__file__}"
        lines["compiled by"] = f"C++ {module.compiler}"
    cuda, reason = cuda_library()
    lines["CUDA kernels"] = f"none: {reason}" if cuda is None else f"{', '.join(build.TARGETS)}, PTX"
    lines["cache"] = str(build.cache_folder()) + ("" if os.path.isdir(build.cache_folder()) else " (not made yet)")
    return lines


if __name__ == "__main__":
    main()
