"""``python -m gradreg_fast info``: what a bug report needs; ``profile``: what a model gains."""

from __future__ import annotations

import argparse
import os
import platform

import torch

import gradreg_fast
from gradreg_fast import build, profile
from gradreg_fast.backend import current, library


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m gradreg_fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, what is compiled for what, and why not where not")
    profile.add_arguments(commands.add_parser("profile", help="what runs where, parity, time and memory of a model"))
    arguments = parser.parse_args()
    if arguments.command == "profile":
        raise SystemExit(profile.run(arguments))
    for name, value in facts().items():
        print(f"{name:16}{value}")


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
    lines["CUDA kernels"] = "none: not part of this version"
    lines["cache"] = str(build.cache_folder()) + ("" if os.path.isdir(build.cache_folder()) else " (not made yet)")
    return lines


if __name__ == "__main__":
    main()
