"""The table of architectures: what it compares, and that the README shows what was measured."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("rich")

from benchmarks import zoo, zoo_table
from benchmarks.speed import Plan, apart

README = Path(__file__).parents[2] / "README.md"
SMALL = zoo.Architecture("SIREN", lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2)), (3,), 5)


def test_the_readme_shows_the_committed_results():
    assert zoo_table.markdown(zoo_table.read_csv()) in README.read_text()


def test_the_committed_results_are_complete_and_right(tmp_path):
    lines = zoo_table.read_csv()
    assert {line["architecture"] for line in lines} >= {each.name for each in zoo.RECREATED}
    assert sum(line["package"] != "" for line in lines) >= 25
    assert all(float(line[f"parity_{mode}"]) <= 1e-9 for line in lines for mode in ("train", "eval"))
    results = json.loads(zoo_table.COMMITTED.with_suffix(".json").read_text())
    zoo_table.write_csv(results, tmp_path / "again.csv")
    assert zoo_table.read_csv(tmp_path / "again.csv") == lines


def test_parity_is_of_the_drop_in_and_the_functional_call_where_eager_has_none():
    assert "hardsigmoid" in zoo.lacking(SMALL)
    for training in (True, False):
        assert max(zoo.parity(SMALL, training).values()) < 1e-12
    assert zoo.left_to_autograd(nn.Flatten(0), torch.randn(3, 1))


def test_worst_finds_small_errors_in_small_gradients():
    truth = {"gradient of a": torch.full((3,), 1e-2), "gradient of b": torch.ones(3), "value 0": torch.tensor(2.0)}
    assert zoo.worst(truth, truth) == 0
    for name, error in {"gradient of a": 1e-8, "gradient of b": 1e-6, "value 0": torch.nan}.items():
        assert not zoo.worst(truth | {name: truth[name].double() + error}, truth) < 5e-7


def test_a_later_run_keeps_what_it_leaves_out_and_tells_what_is_of_its_own_commit():
    eager = {"status": "ok", "seconds": [2.0, 2.0], "memory_bytes": 6}
    mine = {"status": "ok", "seconds": [1.0, 2.0], "memory_bytes": 3}
    checked = {"parameters": 1, "nodes": 2, "by_autograd": ["a", "a"], "eager_lacks": "", "left_to_autograd": False}
    checked["parity"] = {"train": {"functional": 1e-15}, "eval": {"functional": 2e-15}}
    check, plain, compiled = zoo.Job(SMALL), zoo.Job(SMALL, ("functional", "eager")), zoo.Job(SMALL, ("inductor",))
    results = {"environment": {"commit": "first"}, "architectures": {}}
    zoo_table.enter(results, plain, {"eager": dict(eager), "functional": dict(mine)})
    assert zoo_table.rows(results) == []  # not checked yet
    zoo_table.enter(results, check, checked)
    results["environment"]["commit"] = "second"
    zoo_table.enter(results, compiled, {"eager": dict(eager), "inductor": {"status": "failed", "reason": "long"}})
    (line,) = zoo_table.rows(results)
    assert (line["functional_time"], line["functional_memory"], line["with_rule"]) == (1.5, 2.0, 0)
    assert (line["commit"], line["inductor_fails"]) == ("first", "long")
    assert "| 1.50 | - | - | 2.00 | - | - |" in zoo_table.markdown([line])
    assert [zoo_table.has(results, job) for job in (check, plain, compiled)] == [False, False, True]


def test_a_process_that_takes_too_long_is_told_of():
    with pytest.raises(RuntimeError, match="not done after 0 s: starting"):
        apart(_never, None, (), Plan(1, 0.0, 0.0, 1, "cpu"), print, limit=0)


def _never(*_):
    raise AssertionError
