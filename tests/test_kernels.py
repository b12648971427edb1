"""The list of kernels says what their header comments say, and leaves none out."""

import re
import subprocess
import sys
from pathlib import Path

import gradreg_fast
from gradreg_fast import build
from gradreg_fast.kernels import kernels

COMMENT = """\
// What this file is for.
//
// Kernel first_kernel: one thing
//   dtypes     float32 float64
//   registers  40
//   shared     1024 (a tile)
//
// Kernel second_kernel: another
//   bound      memory: 8 bytes an element
// And more about it.
//   this       belongs to no kernel
"""


def test_a_header_comment_is_read(tmp_path):
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "things.cuh").write_text(COMMENT)
    first, second = kernels(tmp_path)
    assert (first.name, first.task, first.file) == ("first_kernel", "one thing", "cuda/things.cuh")
    assert [first.budget(name) for name in ("registers", "shared", "stack")] == [40, 1024, 0]
    assert second.fields == {"bound": "memory: 8 bytes an element"}
    assert set(build.TARGETS) < set(first.targets)


def test_every_kernel_has_a_comment():
    sources = build.source_folder()
    documented = {kernel.name for kernel in kernels(sources) if kernel.file.startswith("cuda/")}
    defined = set()
    for path in sources.rglob("*.cuh"):
        defined |= set(re.findall(r"__global__[^;{]*?(\w+)\(\s*(?:const )?\w+[ <&*]", path.read_text()))
    assert defined == documented


def test_every_comment_tells_what_matters():
    for kernel in kernels(build.source_folder()):
        assert {"dtypes", "bound"} <= kernel.fields.keys(), kernel.name
        assert kernel.budget("registers") <= 255 and kernel.budget("shared") <= 48 << 10


def test_info_lists_them():
    root = Path(gradreg_fast.__file__).parents[1]
    command = [sys.executable, "-m", "gradreg_fast", "info", "--kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for kernel in kernels(build.source_folder()):
        assert f"{kernel.name} ({kernel.file}): {kernel.task}" in done.stdout
    assert "sm_90a" in done.stdout
