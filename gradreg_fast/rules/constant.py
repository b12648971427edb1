"""What has no derivative: comparisons, signs, rounding, positions of extrema, detached values, new tensors."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from gradreg_fast.rules.base import Rule
from gradreg_fast.rules.call import Call, Constant, Parameter, function


class Lifted(Rule):
    """A parameter as a value, where a rule takes values alone: it depends on no input."""

    def forward(self, inputs, parameters, extras):
        return parameters[0], ()

    def gradient(self, saved, parameters, d, gradients):
        gradients.add(0, lambda: d.clone())


def as_value(operand):
    """An operand of a rule that takes values alone."""
    return Call(Lifted(), (), (operand,)) if isinstance(operand, Parameter) else operand


COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
LOGIC = ("logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite", "isclose")
STEPS = ("sign", "floor", "ceil", "round", "trunc", "argmax", "argmin", "argsort", "bucketize")
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "bool", "long", "int")


@function("detach", torch.detach, *COMPARISONS, *(getattr(operator, name) for name in COMPARISONS))
@function(*(getattr(torch, name) for name in (*COMPARISONS, *LOGIC, *STEPS, *LIKE)))
@function(*(name for name in (*LOGIC, *STEPS, *NEW) if hasattr(Tensor, name)))
def constant(*arguments, **keywords):
    return Constant()
