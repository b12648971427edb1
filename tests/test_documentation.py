"""What the docstrings and the README show is run, and does what they say."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast import functional

MODULES = {
    "gradreg_fast": [name for name in gradreg_fast.__all__ if name not in ("ParityError", "__version__", "modules")],
    "gradreg_fast.functional": [*functional.PENALTIES, "interpolate"],
    "gradreg_fast.modules": ["JacobianReg", "Sine", "WithPenalty"],
    "gradreg_fast.budget": ["Lazy", "on_fraction"],
    "gradreg_fast.lightning": ["PenaltyCallback"],
}


@pytest.mark.parametrize("module, name", [(module, name) for module, names in MODULES.items() for name in names])
def test_example(module, name):
    """Every public function and class has one, and it holds."""
    if module == "gradreg_fast.lightning":
        pytest.importorskip("lightning.pytorch")
    documented = getattr(importlib.import_module(module), name)
    names = vars(importlib.import_module(getattr(documented, "__module__", documented.__name__)))
    tests = doctest.DocTestFinder(recurse=False).find(documented, name, module=False, globs=names)
    assert sum(len(test.examples) for test in tests) > 0, f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


SHARED = {"save", "chunk_size", "output", "model_args", "model_kwargs"}  # of all penalties: in their module's docstring


def test_the_reference_names_every_argument_and_error():
    functions = [getattr(functional, name) for name in (*functional.PENALTIES, "interpolate")]
    functions += [gradreg_fast.value_and_vjp, gradreg_fast.jacobian_sqnorm, gradreg_fast.convert, gradreg_fast.verify]
    for function in functions:
        text, parameters = inspect.getdoc(function), inspect.signature(function).parameters
        assert [name for name in parameters if name not in SHARED and f"{name}: " not in text] == []
        assert "\nReturns:\n" in text and "\nRaises:\n" in text, function.__name__
    assert all(f"``{name}" in functional.__doc__ or f"`{name}`" in functional.__doc__ for name in SHARED)


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(kind):
    """The README's code blocks of a kind, by name."""
    return dict(re.findall(rf"^<!-- {kind}: (.*?) -->\n```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))


def networks():
    convolutions = [nn.Conv2d(2, 4, 3, stride=2), nn.LeakyReLU(0.2), nn.Flatten()]
    return {
        "critic": nn.Sequential(*convolutions, nn.Linear(16, 1)),
        "classifier": nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        "field": nn.Sequential(nn.Linear(3, 8), nn.Softplus(beta=10), nn.Linear(8, 1)),
        "potential": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)),
        "surrogate": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
    }


def tensors(name):
    """What the block of this name calls x, among others."""
    B = 5
    images = {"x": torch.randn(B, 2, 6, 6), "real": torch.randn(B, 2, 6, 6), "fake": torch.randn(B, 2, 6, 6)}
    points = {"points": torch.randn(B, 3), "positions": torch.randn(B, 4, 3), "forces": torch.randn(B, 4, 3)}
    values = {"energies": torch.randn(B), "values": torch.randn(B, 1), "gradients": torch.randn(B, 4)}
    tabular = {"x": torch.randn(B, 4)} if name == "Sobolev" else {}
    return {**images, **points, **values, **tabular, "target": torch.arange(B) % 3}


def run(lines, name):
    """The loss, the penalty if there is one, and every network's gradients."""
    torch.manual_seed(1)
    names = {**networks(), **tensors(name), "step": 0, "gamma": 2.0, "task_loss": torch.mean}
    trained = {key: network for key, network in names.items() if isinstance(network, nn.Module)}
    (imports,) = re.findall(r"^```python\n(import torch\nfrom torch\.nn\.functional.*?)^```$", README, re.M | re.S)
    exec(imports + "import gradreg_fast\n" + lines, names)
    if "loss" in names:
        names["loss"].backward()
    found = {key: names[key].detach() for key in ("loss", "penalty") if key in names}
    for key, network in trained.items():
        found |= {f"{key}.{n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    return found


def test_every_block_has_its_other_half():
    assert list(blocks("before")) == list(blocks("after"))
    assert len(blocks("before")) == README.count("\n<!-- before: ") >= 9


@pytest.mark.parametrize("name", blocks("before"))
@pytest.mark.usefixtures("float64")
def test_both_halves_are_the_same(name):
    before, after = run(blocks("before")[name], name), run(blocks("after")[name], name)
    assert len(before) > 3
    for key, expected in before.items():
        torch.testing.assert_close(after[key], expected, rtol=1e-9, atol=1e-12)
