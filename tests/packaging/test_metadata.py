"""What the project's files promise: dependencies, version, and the commands of the README."""

import re
import sys
from pathlib import Path

import pytest

import gradreg_fast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest there

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_name(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def test_torch_is_the_only_runtime_dependency(pyproject):
    assert [requirement_name(r) for r in pyproject["project"]["dependencies"]] == ["torch"]


def test_an_isolated_build_brings_no_torch(pyproject):
    assert [requirement_name(r) for r in pyproject["build-system"]["requires"]] == ["setuptools"]


def test_extras(pyproject):
    assert set(pyproject["project"]["optional-dependencies"]) == {"test", "bench", "experiments", "lightning", "dev"}


def test_one_wheel_serves_every_python(pyproject):
    """The oldest Python is the same wherever it is named: as limited API, as tag, and as what builds the wheel."""
    oldest = re.fullmatch(r">=3\.(\d+)", pyproject["project"]["requires-python"]).group(1)
    named = {
        "csrc/bindings.cpp": rf"Py_LIMITED_API 0x03{int(oldest):02X}0000",
        "setup.py": rf'"py_limited_api": "cp3{oldest}"',
        "pyproject.toml": rf'build = "cp3{oldest}-manylinux_x86_64"',
    }
    for file, line in named.items():
        assert line in (ROOT / file).read_text(encoding="utf-8"), f"{file}: {line}"


def test_version_is_the_same_everywhere(pyproject):
    version = pyproject["project"]["version"]
    assert gradreg_fast.__version__ == version
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == version


def test_types_are_published():
    assert (Path(gradreg_fast.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name, runs", [("main", "-m benchmarks train"), ("test", "-m pytest")])
def test_readme_command_is_one_line(name, runs):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^<!-- command: {name} -->\n```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    lines = blocks[0].splitlines()
    assert len(lines) == 1
    assert runs in lines[0]
