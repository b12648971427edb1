"""The experiments: each runs, is drawn and told; a run that was stopped goes on; the page is made of what is there."""

import json
import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import __main__ as command
from benchmarks import experiments
from benchmarks.experiments import cells, claims, synthetic_1d


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "experiment", *arguments])
        command.main()

    return run


@pytest.fixture
def counted(monkeypatch):
    """An experiment of three cells, which counts how often it is run and stops where it is told to."""
    ran = []

    def run_cell(config, engines):
        ran.append((config["seed"], engines))
        return {engine: {"value": config["seed"]} for engine in engines}

    monkeypatch.setattr(synthetic_1d, "run", run_cell)
    return ran


CONFIGS = [{"weight": 0, "seed": 0}, {"weight": 1, "seed": 0}, {"weight": 1, "seed": 1}]


def test_stopped_run_goes_on(counted, tmp_path):
    path = tmp_path / "a.jsonl"
    steps = iter(range(2))
    with pytest.raises(StopIteration):
        cells.run(synthetic_1d, CONFIGS, "all", cells.Results(path), lambda: next(steps))
    first = list(counted)
    cells.run(synthetic_1d, CONFIGS, "all", cells.Results(path), lambda: None)
    assert counted == first == [(0, ("none",)), (0, ("gradreg_fast", "autograd")), (1, ("gradreg_fast",))]
    rows = cells.Results(path).rows(CONFIGS)
    assert [(row.config["seed"], row.engine) for row in rows] == [(s, e) for s, engines in first for e in engines]


def test_only_lacking_engines_run(counted, tmp_path):
    results = cells.Results(tmp_path / "a.jsonl")
    cells.run(synthetic_1d, CONFIGS, "autograd", results, lambda: None)
    cells.run(synthetic_1d, CONFIGS, "all", results, lambda: None)
    assert counted == [
        (0, ("autograd",)),
        (1, ("autograd",)),
        (0, ("none",)),
        (0, ("gradreg_fast",)),
        (1, ("gradreg_fast",)),
    ]


def test_staircase_is_flat_at_its_points_and_steep_between():
    x = torch.tensor([[-0.9], [-0.2], [0.1], [0.8]], dtype=torch.float64)
    y = torch.sin(4 * x)
    model = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1)).double()
    synthetic_1d.set_staircase(model, x, y)
    value, slope = synthetic_1d.derivative(model, x)
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(slope, torch.zeros_like(x))
    _, between = synthetic_1d.derivative(model, (x[1:] + x[:-1]) / 2)
    torch.testing.assert_close(between, y.diff(dim=0) / x.diff(dim=0) / synthetic_1d.SLOPE)


def test_intervals_and_verdicts():
    low, mean, high = claims.interval([1.0, 2.0, 3.0])
    assert (low, mean, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2, 2 + 4.302653 / 3**0.5))
    assert claims.ratio([1, 2], [2, 1])[1] == pytest.approx(1)
    assert claims.verdict((0.5, 0.6, 0.7)) == claims.SUPPORTS
    assert claims.verdict((0.5, 0.6, 1.7)) == claims.UNDECIDED
    assert claims.verdict((1.5, 1.6, 1.7)) == claims.AGAINST
    assert claims.verdict((1.5, 1.6, 1.7), less_is_better=False) == claims.SUPPORTS
    assert claims.overall([claims.SUPPORTS, claims.SUPPORTS]) == claims.SUPPORTS
    assert claims.overall([claims.SUPPORTS, claims.AGAINST]) == claims.MIXED


def test_every_experiment_is_documented():
    for name in experiments.NAMES:
        experiment = experiments.load(name)
        assert experiment.CLAIM in claims.CLAIMS
        assert experiment.cells(True) and len(experiment.cells(False)) > len(experiment.cells(True))
        for config in experiment.cells(False):
            assert json.loads(json.dumps(config)) == config


def test_list_names_all(run, capsys):
    run("list")
    printed = capsys.readouterr().out
    assert all(name in printed for name in experiments.NAMES)


def test_quick_run_is_told_and_drawn_once_all_cells_have_run(run, tmp_path, capsys):
    arguments = ("run", "synthetic_nd", "--quick", "--threads", "1", "--out", str(tmp_path), "--engine")
    run(*arguments, "none")
    assert "told and drawn once all 8 cells have run, 2 have" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "synthetic_nd.png").exists()
    run(*arguments, "all")
    assert "gradient norm over that without penalty" in capsys.readouterr().out
    assert (tmp_path / "synthetic_nd.png").read_bytes().startswith(b"\x89PNG")
    lines = list(map(json.loads, (tmp_path / "synthetic_nd.jsonl").read_text().splitlines()))
    assert [line["command"].rsplit(" ", 1) for line in lines if "command" in line] == [
        [f"python -m benchmarks experiment {' '.join(arguments)}", engine] for engine in ("none", "all")
    ]
    assert [line["engine"] for line in lines if "engine" in line].count("autograd") == 6


def test_autograd_stands_in_for_gradreg_fast_only_where_it_is_alone():
    rows = [cells.Row({"seed": 0}, "autograd", {"a": 1}), cells.Row({"seed": 0}, "gradreg_fast", {"a": 2})]
    rows.append(cells.Row({"seed": 1}, "autograd", {"a": 3}))
    assert cells.outcomes(rows, "a") == [2, 3]
    assert cells.outcomes(rows, "a", seed=1) == [3]


def test_what_is_missing_is_named(run, capsys, monkeypatch):
    monkeypatch.setattr(synthetic_1d, "NEEDS", {"no_such_package": "pip install no-such-package"})
    with pytest.raises(SystemExit):
        run("run", "synthetic_1d")
    assert "synthetic_1d needs: pip install no-such-package" in capsys.readouterr().err


def test_files_are_not_needed_where_it_must_be_quick(monkeypatch):
    monkeypatch.setattr(synthetic_1d, "NEEDS", {"/no/such/file": "apt-get install file", "no_such": "pip install no"})
    assert experiments.missing("synthetic_1d") == ["apt-get install file", "pip install no"]
    assert experiments.missing("synthetic_1d", quick=True) == ["pip install no"]


def test_page_tells_every_committed_experiment(run, tmp_path, monkeypatch):
    page = experiments.findings.PAGE.read_text()
    monkeypatch.setattr(experiments.findings, "PAGE", tmp_path / "EXPERIMENTS.md")
    run("report")
    assert (tmp_path / "EXPERIMENTS.md").read_text() == page
    assert all(f"### {name}\n" in page for name in experiments.NAMES)
