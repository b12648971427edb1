"""What the source distribution holds: all that a build at home or at first use needs, and nothing else."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"]
MADE = {"PKG-INFO", "setup.cfg"}
KINDS = {"gradreg_fast": {".py", ".typed"}, "csrc": {".h", ".cpp", ".cuh", ".cu"}}

pytest.importorskip("setuptools", minversion="77")


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="an installed package has no build script")
def test_contents(tmp_path):
    for folder in (*KINDS, "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path)
    wanted = {
        str(path.relative_to(tmp_path))
        for folder, suffixes in KINDS.items()
        for path in (tmp_path / folder).rglob("*")
        if path.suffix in suffixes
    }
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as opened:
        found = {member.name.partition("/")[2] for member in opened if member.isfile()}
    assert {name for name in found if ".egg-info/" not in name} == wanted | {*FILES} | MADE
