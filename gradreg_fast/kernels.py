"""What kernels there are, as their own header comments in csrc/ tell it.

A comment that begins with ``Kernel NAME: what it computes`` goes on with indented lines, each a field and its text:

    // Kernel slope_kernel: phi' v for a stack
    //   dtypes     float32 float64
    //   bound      memory: reads K + 1 and writes K numbers an element
    //   registers  64

``python -m gradreg_fast info --kernels`` shows them, and what a build may not exceed (registers, bytes of stack and of
shared memory) is checked against them wherever CUDA kernels are compiled for a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gradreg_fast.build import PTX, TARGETS, source_files

HEADING = re.compile(r"// Kernel (\w+): (.+)")
FIELD = re.compile(r"//   (\w+) +(.+)")
CPU_TARGETS = ("SSE2", "AVX2", "AVX-512")


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: of the function.
        task: what it computes.
        file: below csrc/.
        fields: of its header comment: dtypes, bound, and for CUDA registers, stack, shared, tensor.
    """

    name: str
    task: str
    file: str
    fields: dict[str, str]

    @property
    def targets(self) -> tuple[str, ...]:
        """Instruction sets that it is compiled for: ahead of time, all; at first use, of the CPU's the processor's."""
        return (*TARGETS, f"PTX {PTX}") if self.file.startswith("cuda/") else CPU_TARGETS

    def budget(self, field: str) -> int:
        """The most registers, or bytes, that an instance may need; 0 where the comment says nothing."""
        return int(self.fields.get(field, "0").split()[0])


def kernels(sources: Path) -> list[Kernel]:
    """All kernels whose sources lie in a folder."""
    return [kernel for path in source_files(sources) for kernel in _kernels_of(path, sources)]


def _kernels_of(path: Path, sources: Path) -> list[Kernel]:
    found: list[Kernel] = []
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := HEADING.fullmatch(line):
            found.append(Kernel(*heading.groups(), str(path.relative_to(sources)), {}))
            inside = True
        elif inside and (field := FIELD.fullmatch(line)):
            found[-1].fields[field[1]] = field[2]
        else:
            inside = False
    return found
