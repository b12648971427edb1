"""``python -m gradreg_fast profile``: its words, its picture, and an exit status that is the parity."""

import gc
import importlib
import sys

import pytest
from torch import nn

from gradreg_fast import __main__, functional
from gradreg_fast.rules import activation

MODULE = """
from torch import nn

def critic():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))

def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))

def nothing():
    return None
"""


@pytest.fixture(autouse=True)
def _earlier_tests_objects_are_kept():
    """A peak of memory takes six collections of garbage: late in the suite, half a second each without this."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "models_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "models_of_a_user", raising=False)
    return "models_of_a_user"


def run(monkeypatch, *words):
    """The exit status."""
    monkeypatch.setattr(sys, "argv", ["gradreg_fast", "profile", *words])
    with pytest.raises(SystemExit) as status:
        __main__.main()
    return status.value.code


SHAPE = ("--input", "3x2x4x4", "--repeats", "1")


@pytest.mark.parametrize("penalty", functional.PENALTIES)
def test_every_penalty(models, monkeypatch, capsys, penalty):
    several = penalty not in ("gradient_penalty", "r1", "r2", "eikonal", "dragan", "r1_r2")
    model = f"{models}:{'classifier' if several else 'critic'}"
    assert run(monkeypatch, model, *SHAPE, "--penalty", penalty, "--dtype", "float64") == 0
    said = capsys.readouterr().out
    for words in ("nodes have a rule", "parity: agrees with autograd in float64", "time of a step", "times"):
        assert words in said


def test_draws_a_picture(models, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, f"{models}:critic", *SHAPE, "--eval", "--out", "figures.png") == 0
    assert (tmp_path / "figures.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "figures.png" in capsys.readouterr().out


def test_fails_where_parity_fails(models, monkeypatch, pytorch_lines, capsys):
    monkeypatch.setattr(activation.Tanh, "curvature", lambda self, saved, parameters, u, xdots, gradients: (None,))
    assert run(monkeypatch, f"{models}:critic", *SHAPE) == 1
    said = capsys.readouterr().out
    assert "DIFFERS" in said
    assert "parity: FAILED" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("models_of_a_user:absent", *SHAPE), "PACKAGE.MODULE:CALLABLE"),
        (("no_such_module:critic", *SHAPE), "PACKAGE.MODULE:CALLABLE"),
        (("models_of_a_user:nothing", *SHAPE), "must return a torch.nn.Module"),
        (("models_of_a_user:critic", "--input", "3x-1"), "shape like"),
        (("models_of_a_user:critic", "--input", "three"), "shape like"),
    ],
)
def test_says_what_is_wrong(models, monkeypatch, words, message):
    assert message in str(run(monkeypatch, *words))


def test_a_module_that_is_there_already(models, monkeypatch, capsys):
    """Not only what makes one."""
    monkeypatch.syspath_prepend(".")
    importlib.import_module("models_of_a_user").ready = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    assert run(monkeypatch, f"{models}:ready", *SHAPE) == 0
