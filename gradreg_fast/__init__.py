"""Penalties on input gradients as ordinary first-order operations: autograd's numbers, without the second graph."""

from gradreg_fast import functional, modules
from gradreg_fast.backend import backend
from gradreg_fast.convert import convert
from gradreg_fast.explain import explain
from gradreg_fast.meter import PenaltyMeter
from gradreg_fast.ops import jacobian_sqnorm, value_and_vjp
from gradreg_fast.verify import ParityError, verify

__version__ = "0.1.0"

__all__ = [
    "ParityError",
    "PenaltyMeter",
    "__version__",
    "backend",
    "convert",
    "explain",
    "functional",
    "jacobian_sqnorm",
    "modules",
    "value_and_vjp",
    "verify",
]
