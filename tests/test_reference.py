"""The package's oracle says what the suite's own says."""

import pytest
import torch
from torch import nn

from gradreg_fast import reference
from tests import parity

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("outputs", [1, 3])
def test_agrees(outputs):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, outputs))
    x, cotangent = torch.randn(4, 5), torch.randn(4, outputs)
    parity.assert_parity(model, reference.value_and_vjp, parity.value_and_vjp, x, cotangent)
    parity.assert_parity(model, reference.value_and_vjp, parity.value_and_vjp, x)
    parity.assert_parity(model, reference.jacobian_sqnorm, parity.jacobian_sqnorm, x)
    rows, expected = reference.jacobian(model, x)[1], parity.jacobian(model, x.clone().requires_grad_())[1]
    torch.testing.assert_close(rows.transpose(0, 1), expected)


def test_x_need_not_require_a_gradient():
    model, x = nn.Linear(5, 2), torch.randn(4, 5)
    _y, g = reference.value_and_vjp(model, x)
    assert g.shape == x.shape
    assert not x.requires_grad
    torch.testing.assert_close(reference.jacobian_sqnorm(nn.Flatten(0), torch.randn(4))[1], torch.ones(4))
