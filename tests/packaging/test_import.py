"""What importing the package needs and loads, seen from a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gradreg_fast

PROBE = """
import contextlib, io, json, sys
import torch
before, said = set(sys.modules), io.StringIO()
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
    import gradreg_fast
print(json.dumps([sorted(set(sys.modules) - before), said.getvalue()]))
"""


def import_beside_torch(folder, **environment):
    """Import the package after torch: the modules that this added, and whatever it printed."""
    env = {**os.environ, "PYTHONPATH": str(Path(gradreg_fast.__file__).parents[1]), **environment}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_import_without_gpu_or_compiler_is_silent_and_light(tmp_path):
    added, said = import_beside_torch(tmp_path, CUDA_VISIBLE_DEVICES="", PATH="")
    assert "gradreg_fast" in added
    assert said == ""
    foreign = [name for name in added if not within(name, "gradreg_fast", *sys.stdlib_module_names)]
    assert [name for name in foreign if not within(name, "torch")] == [], "only torch and the standard library"
    compilers = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension")
    assert [name for name in foreign if within(name, *compilers)] == [], "compilers load at first use, not at import"
    assert len(foreign) < 20, foreign
