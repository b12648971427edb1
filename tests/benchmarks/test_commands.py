"""The command line: what it writes, and what it refuses."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import __main__ as command
from benchmarks import overhead, penalties, train
from gradreg_fast.backend import library


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        command.main()

    return run


@pytest.mark.parametrize("name", ["train", "speed", "models", "overhead", "experiment", "plot"])
def test_help(run, capsys, name):
    with pytest.raises(SystemExit) as exit:
        run(name, "--help")
    assert exit.value.code == 0
    assert f"usage: python -m benchmarks {name}" in capsys.readouterr().out


def small(out, *arguments):
    sizes = ("--train-size", 24, "--batch-size", 8, "--epochs", 1, "--seeds", 1, "--threads", 1)
    return ("train", *sizes, "--out", out, *arguments)


def test_train_writes_results_and_a_picture(run, tmp_path):
    run(*small(tmp_path, "--model", "lenet"))
    results = json.loads((tmp_path / "train.json").read_text())
    assert set(results["engines"]) == set(penalties.ENGINES)
    assert len(results["engines"]["autograd"]["losses"][0]) == 3
    assert results["largest_loss_difference"] < 1e-4
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_as_one_does(run, tmp_path):
    arguments = small(tmp_path / "one", "--engine", "gradreg_fast", "--dtype", "float64", "--device", "cpu")
    run(*arguments)
    arguments = [str(argument).replace("one", "two") for argument in arguments]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    root = Path(train.__file__).parents[1]
    subprocess.run([*torchrun, "-m", "benchmarks", *arguments], cwd=root, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    losses = (torch.tensor(results["engines"]["gradreg_fast"]["losses"], dtype=torch.float64) for results in (one, two))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("penalty", train.PENALTIES)
def test_engines_agree_on_every_penalty(run, tmp_path, penalty):
    run(*small(tmp_path, "--penalty", penalty, "--weight", 5))
    assert json.loads((tmp_path / "train.json").read_text())["largest_loss_difference"] < 1e-4


def test_engines_share_random_projections(run, tmp_path):
    run(*small(tmp_path, "--penalty", "jacobian_softmax", "--projections", 2))
    assert json.loads((tmp_path / "train.json").read_text())["largest_loss_difference"] < 1e-4


def test_weight_is_chosen_on_validation_data(run, tmp_path):
    run(*small(tmp_path, "--weight", 0.1, 1000, "--engine", "autograd"))
    results = json.loads((tmp_path / "train.json").read_text())
    accuracy = {each["weight"]: each["accuracy"] for each in results["validation_accuracy"]}
    assert results["weight"] == max(accuracy, key=accuracy.get)
    assert set(accuracy) == {0.1, 1000}


@pytest.mark.skipif(library()[0] is None, reason=f"no compiled library: {library()[1]}")
def test_overhead_tells_steps_and_parts(run, tmp_path, capsys):
    run("overhead", "--quick", "--out", tmp_path)
    seconds = json.loads((tmp_path / "overhead.json").read_text())["seconds"]
    parts = overhead.parts(seconds)
    for i, whole in enumerate(seconds[overhead.COMPILED]):
        assert sum(each[i] for each in parts.values()) == pytest.approx(whole)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*overhead.STEPS, *parts))
    assert (tmp_path / "overhead.png").read_bytes().startswith(b"\x89PNG")


def test_overhead_without_kernels_says_why(run, capsys, monkeypatch):
    monkeypatch.setattr(import_module("gradreg_fast.backend"), "library", lambda: (None, "no C++ compiler in PATH"))
    with pytest.raises(SystemExit):
        run("overhead")
    assert "overhead cannot be measured: backend 'cpp' cannot be used: no C++ compiler" in capsys.readouterr().err


def test_plot_redraws(run, tmp_path):
    peer = {"status": "ok", "units": 6.0, "memory_bytes": 2_000_000, "error": 0.0}
    peers = {
        "gradreg_fast": peer | {"seconds": [1.0, 1.1]},
        "autograd": peer | {"seconds": [2.0, 2.3]},
        "jax": {"status": "wrong", "reason": "off"},
        "plain": peer | {"seconds": [0.5, 0.5], "units": 3.0},
    }
    environment = {"commit": None, "date": "", "device": "cpu", "cpu": "some", "threads": 1, "versions": {"torch": "2"}}
    cases = [{"name": "a", "rows": 8, "peers": peers}, {"name": "b", "rows": 8, "peers": {"jax": peers["jax"]}}]
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"kind": "speed", "environment": environment, "cases": cases}))
    run("plot", path)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "cifar"], "--data must be one of"),
        (["train", "--train-size", "0"], "--train-size: must be an integer of at least 1, got '0'"),
        (["train", "--weight", "-1"], "--weight: must be a number of at least 0"),
        (["train", "--weight", "nan"], "--weight: must be a number"),
        (["train", "--penalty", "double_backprop", "--projections", "2"], "--projections goes with"),
        (["train", "--threads", str(10**6)], "and at most"),
        (["train", "--device", "tpu"], "--device: must be cpu"),
        (["speed", "--cases", "nothing"], "--cases must be parts of the names"),
        (["speed", "--peers", "nobody"], "invalid choice: 'nobody'"),
        (["plot", os.devnull], "RESULTS.json must be a file that another command wrote"),
        (["plot", "missing.json"], "RESULTS.json must be a file"),
    ],
)
def test_bad_arguments_are_named(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
