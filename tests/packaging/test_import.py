"""What importing the package needs and loads, seen from fresh interpreters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gradreg_fast

PROBE = """
import json, sys
import torch
before = set(sys.modules)
import gradreg_fast
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_added_to_torch(folder, **environment):
    """Names of the modules that importing the package loads once torch is there."""
    env = {**os.environ, "PYTHONPATH": str(Path(gradreg_fast.__file__).parents[1]), **environment}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def belongs_to(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_import_without_gpu_or_compiler_is_silent_and_light(tmp_path):
    added = modules_added_to_torch(tmp_path, CUDA_VISIBLE_DEVICES="", PATH="")
    third_party = [name for name in added if name.split(".")[0] not in {*sys.stdlib_module_names, "gradreg_fast"}]
    heavy = [name for name in third_party if not belongs_to(name, "torch")]
    assert heavy == [], "the package may import nothing but torch and the standard library"
    compilers = [
        n for n in third_party if belongs_to(n, "torch._dynamo", "torch._inductor", "torch.utils.cpp_extension")
    ]
    assert compilers == [], "torch's compilers are to be loaded at first use, not at import"
    assert len(third_party) < 20, third_party
    assert "gradreg_fast" in added
