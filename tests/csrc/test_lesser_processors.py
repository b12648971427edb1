"""What is marked `each_processor`, again in processes that are told to use fewer instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_kernels(capability):
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.each_processor" in path.read_text()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "each_processor", *files],
        env={**os.environ, "GRADREG_FAST_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
