"""``torch.export`` and ahead-of-time Inductor: converted models as themselves, penalties as operations."""

import pytest
import torch
from torch import nn

import gradreg_fast
from gradreg_fast.modules import WithPenalty


def critic():
    block = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(36, 1)).eval()


def exported(model, x, strict=False):
    batch = torch.export.Dim("batch", min=2, max=64)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_converted_models_are_exported_as_themselves(strict):
    model, x = critic(), torch.randn(4, 3, 8, 8, requires_grad=True)
    programs = [exported(m, x, strict) for m in (model, gradreg_fast.convert(model))]
    plain, converted = ([str(node.target) for node in program.graph.nodes] for program in programs)
    assert converted == plain
    torch.testing.assert_close(programs[1].module()(x[:3]), model(x[:3]))


def test_penalties_are_exported(each_backend):
    model, x = WithPenalty(critic(), "r1").eval(), torch.randn(4, 3, 8, 8)
    for mine, wanted in zip(exported(model, x).module()(x[:3]), model(x[:3]), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_ahead_of_time(tmp_path):
    """The kernels' operations included, where there are any."""
    model, x = WithPenalty(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)), "r1").eval(), torch.randn(4, 5)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    for mine, wanted in zip(torch._inductor.aoti_load_package(package)(x), model(x), strict=True):
        torch.testing.assert_close(mine, wanted)
