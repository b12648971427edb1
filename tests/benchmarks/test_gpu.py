"""The GPU script's own measurements, on the CPU with small sizes, and what it does when time is short."""

import csv
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks.gpu.crossover import largest, rewritten, table
from gradreg_fast import measured
from gradreg_fast.backend import library

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "name, columns",
    [
        ("ceilings", {"bytes", "share"}),
        ("crossover", {"kernel_ms", "without_ms"}),
        ("predict", {"ours_launches", "over_eager"}),
    ],
)
def test_measurements_leave_their_results(tmp_path, monkeypatch, capsys, name, columns):
    if name == "predict" and library()[0] is None:
        pytest.skip(library()[1])
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--device", "cpu", "--out", str(tmp_path)])
    import_module(f"benchmarks.gpu.{name}").main()
    said = capsys.readouterr().out
    if name == "crossover" and "no kernels" in said:
        pytest.skip(said)
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert results["kind"] == name and results["environment"]["versions"]["torch"]
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["rows"]) > 0 and columns <= rows[0].keys()
    assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_crossover_is_where_kernels_fall_behind_for_the_first_time():
    ratios = {16: 3.0, 32: 1.5, 64: 0.8, 128: 1.2}
    row = {"kind": "width", "dtype": "torch.float32", "tile": "chosen", "samples": 1, "kernel_ms": 1.0}
    rows = [row | {"size": width, "without_ms": ratio} for width, ratio in ratios.items()]
    rows += [row | {"tile": "64"}, row | {"kind": "channels"}]
    assert table(rows, "width") == {"torch.float32": 32}
    assert largest([row | {"size": 16, "without_ms": 0.5}]) == 0


def test_the_tables_are_written_anew():
    """Again for the same device, and beside another's; comments stay."""
    source = Path(measured.__file__).read_text()
    for device, width in (((9, 0), 64), ((8, 0), 96), ((9, 0), 128)):
        tables = {"width": {"torch.float32": width, "torch.bfloat16": 2 * width}, "channels": {"torch.float64": 8}}
        source = rewritten(source, device, tables)
    found: dict = {}
    exec(source, found)
    latest = {(9, 0): {torch.float32: 128, torch.bfloat16: 256}, (8, 0): {torch.float32: 96, torch.bfloat16: 192}}
    assert found["WIDTHS"] == latest
    assert found["CHANNELS"] == {key: {torch.float64: 8} for key in latest}
    assert source.count("# ") == Path(measured.__file__).read_text().count("# ")


def test_the_script_ends_in_time_and_says_what_it_left_out(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable}
    done = run("bash", "benchmarks/gpu/run.sh", str(tmp_path), "--minutes", "0", "--dry-run", env=env)
    assert done.returncode == 0, done.stderr
    steps = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [step["step"] for step in steps][:3] == ["build", "parity-kernels", "ceilings"]
    assert {step["status"] for step in steps} == {"no time left", "no compute-sanitizer"}
    assert run("bash", "benchmarks/gpu/run.sh", str(tmp_path), "--wrong").returncode == 2
