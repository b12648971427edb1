"""What a step costs where its network costs nothing, 8 rows through 8-8-1, and what these microseconds are made of.

The parts of our compiled step that cannot be called alone are differences of two stages, of which the longer holds the
shorter; differences are taken within rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import gradreg_fast
from gradreg_fast import ops

from . import models
from .cases import Case
from .peers import Autograd, GradregFast, Peer, Plain
from .speed import WRONG, Plan, difference, interleaved

CASE = Case("overhead-8-8-1", models.mlp(8, 1, activation="tanh"), (8,), rows=8, task="mse", penalty="r1")

PLAIN, AUTOGRAD = "no penalty, eager", "penalised, eager double backward"
LINES, COMPILED = "penalised, gradreg_fast in PyTorch lines", "penalised, gradreg_fast compiled"
STEPS = (PLAIN, AUTOGRAD, LINES, COMPILED)

PARTS = {  # of the compiled step: a stage, and what it holds of other parts
    "graph lookup and checks": ("lookup", ()),
    "forward operation": ("forward operation", ()),
    "autograd function": ("vjp", ("lookup", "forward operation")),
    "penalty and loss": ("loss", ("vjp",)),
    "backward operation": ("backward operation", ()),
    "backward pass and accumulation": (COMPILED, ("loss", "backward operation")),
}


def measure(plan: Plan, report: Callable[[str], Any]) -> dict[str, list[float]]:
    """Seconds of each whole step and of each stage of the compiled one, in every round.

    Args:
        plan: how long.
        report: is told what is going on, in a few words.

    Raises:
        RuntimeError: if there is no compiled library, with the reason, or if a step gives wrong numbers.
    """
    torch.set_num_threads(plan.threads)
    plain, eager, lines, compiled = Plain(CASE), Autograd(CASE), GradregFast(CASE), GradregFast(CASE)
    model, batch = compiled.model, compiled.batch

    def step_in_lines():
        with gradreg_fast.backend("torch"):
            return lines.step()

    with gradreg_fast.backend("cpp"):
        check(eager, compiled)
        forward, backward = operations(compiled)
        calls = {
            PLAIN: plain.step,
            AUTOGRAD: eager.step,
            LINES: step_in_lines,
            COMPILED: compiled.step,
            "lookup": lambda: ops.prepare(model, batch.x),
            "vjp": lambda: gradreg_fast.value_and_vjp(model, batch.x),
            "loss": lambda: CASE.loss(*compiled.forward(), batch),
            "forward operation": forward,
            "backward operation": backward,
        }
        return interleaved(calls, plan, report)


def check(*peers: Peer) -> None:
    """Raise unless these give the numbers of autograd in float64."""
    truth = Autograd(CASE, dtype=torch.float64).numbers()
    for peer in peers:
        if not (error := difference(peer.numbers(), truth)) < WRONG:
            raise RuntimeError(f"{peer.name} is off by {error:.1e} from float64 autograd")


def operations(peer: Peer) -> list[Callable[[], Any]]:
    """The compiled operations of a step, in order, each with the arguments that it has there."""
    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "gradreg_fast":
                calls.append(partial(func, *tree_map_only(torch.Tensor, torch.Tensor.detach, args)))
            return func(*args, **(kwargs or {}))

    with Recorder():
        peer.step()
    return calls


def parts(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of each part of the compiled step in every round."""
    return {
        name: [whole - sum(held) for whole, *held in zip(seconds[stage], *map(seconds.get, inner), strict=True)]
        for name, (stage, inner) in PARTS.items()
    }
