"""The table of architectures: what it compares, and that the README shows what was measured."""

import pytest
import torch
from torch import nn

pytest.importorskip("rich")

from benchmarks import zoo, zoo_table

SMALL = zoo.Architecture("small", lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2)), (3,), 5)


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


def test_a_later_run_keeps_the_peers_that_it_leaves_out():
    eager = {"status": "ok", "seconds": [2.0, 2.0], "memory_bytes": 6}
    mine = {"status": "ok", "seconds": [1.0, 2.0], "memory_bytes": 3}
    common = {"parameters": 1, "nodes": 2, "by_autograd": ["a", "a"], "eager_lacks": "", "left_to_autograd": False}
    common["parity"] = {"train": {"functional": 1e-15}, "eval": {"functional": 2e-15}}
    results = {"environment": {"commit": "first"}, "architectures": {}}
    zoo_table.enter(results, "SIREN", common | {"peers": {"eager": dict(eager), "functional": dict(mine)}})
    failed = {"status": "failed", "reason": "not compiled"}
    results["environment"]["commit"] = "second"
    zoo_table.enter(results, "SIREN", common | {"peers": {"eager": dict(eager), "inductor": failed}})
    (line,) = zoo_table.rows(results)
    assert (line["functional_time"], line["functional_memory"], line["with_rule"]) == (1.5, 2.0, 0)
    assert (line["commit"], line["inductor_fails"]) == ("second", "not compiled")
    assert "| 1.50 | - | - | 2.00 | - | - |" in zoo_table.markdown([line])
