"""How it is measured: each case in a process of its own, every peer checked first, then timed in interleaved rounds.

A round visits every peer once, in rotating order; a visit repeats the step until it lasts long enough to be timed. So a
round's times are side by side, ratios are taken within rounds, and a slow minute of the machine hits every peer alike.
A peer's loss and gradients are compared with eager autograd's in float64 before it is timed; one with wrong numbers,
more than twice as far off as eager's in float32, is reported as wrong and not timed. Every PyTorch peer flushes
denormals to zero, as XLA always does: a softplus network's eager step is three times slower without.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .cases import Case, Workload
from .machine import restrict
from .peers import PEERS, Autograd, Peer, Plain

WRONG = 2e-2  # relative; one ReLU that rounding puts on its other side moves a small gradient by up to 6e-3


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: the number of rounds.
        seconds: for all rounds of a case; when they are spent the rounds end, but never before the fifth.
        visit: the least duration of a visit, in seconds.
        threads: CPU cores that every peer may use.
        device: "cpu" or "cuda".
    """

    rounds: int
    seconds: float
    visit: float
    threads: int
    device: str


def measure(case: Case, peers: Sequence[str], plan: Plan, report: Callable[[str], Any]) -> dict:
    """Measures one case in a fresh process.

    Args:
        case: the workload.
        peers: names in `PEERS`.
        plan: how long.
        report: is told what is going on, in a few words.

    Returns:
        For each peer its `status` ("ok", "wrong", "skipped" or "failed") and figures.
    """
    try:
        return apart(_measure, case, peers, plan, report=report)
    except RuntimeError as error:
        return {name: _unmeasured("failed", str(error)) for name in peers}


def apart(
    function: Callable,
    workload: Workload,
    peers: Sequence[str],
    plan: Plan,
    report: Callable[[str], Any],
    limit: float = 86_400.0,
):
    """`function(workload, peers, plan, report)`, run in a fresh process that is set up for `plan`.

    Raises:
        RuntimeError: if the process ends without a result, or has none after `limit` seconds.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    os.environ |= {"OMP_NUM_THREADS": str(plan.threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take most of a GPU's memory for itself
    process = context.Process(target=_here, args=(function, workload, peers, plan, sender))
    process.start()
    sender.close()
    try:
        result = _received(receiver, report, limit)
        process.join(timeout=10)
        return result
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()


def _received(receiver, report, limit):
    """What the process returns; its words before that are passed on."""
    end, doing = time.monotonic() + limit, "starting"
    while receiver.poll(max(0.0, end - time.monotonic())):
        message = receiver.recv()
        if not isinstance(message, str):
            return message
        report(doing := message)
    raise RuntimeError(f"not done after {limit:.0f} s: {doing}")


def _here(function, workload, peers, plan, sender):
    restrict(plan.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    sender.send(function(workload, peers, plan, sender.send))


def _measure(case, peers, plan, report):
    return timed(case, {name: PEERS[name] for name in peers}, plan, report)


def timed(
    workload: Workload,
    peers: dict[str, type[Peer]],
    plan: Plan,
    report: Callable[[str], Any],
    eager: type[Peer] = Autograd,
) -> dict:
    """As `measure`, in this process: `eager` gives the right numbers."""
    results: dict[str, dict] = {}
    report("reference in float64")
    workload = balanced(workload, plan.device, eager)
    ready = dict(_ready(workload, peers, plan, results, report, eager))
    times = interleaved({name: peer.step for name, peer in ready.items()}, plan, report) if ready else {}
    for name, peer in ready.items():
        report(f"memory of {name}")
        results[name] |= {
            "status": "ok",
            "seconds": times[name],
            "units": peer.units(),
            "memory_bytes": peer.peak_memory(plan.device),
        }
    return {name: results[name] for name in peers}


def _ready(case, peers, plan, results, report, eager) -> Iterator[tuple[str, Peer]]:
    """The peers that run and are right; the others are entered into `results`."""
    plain = Plain(case, plan.device, torch.float64).numbers() if Plain.name in peers else None
    truth, wrong = eager(case, plan.device, torch.float64).numbers(), WRONG
    for name, kind in peers.items():
        if reason := kind.unavailable(case, plan.device):
            results[name] = _unmeasured("skipped", reason)
            continue
        report(f"preparing {name}")
        try:
            start = time.perf_counter()
            peer = kind(case, plan.device)
            error = difference(peer.numbers(), plain if name == Plain.name else truth)
            results[name] = {"error": error, "first_step_seconds": time.perf_counter() - start}
        except Exception as exception:  # a peer that fails must not end the measurement of the others
            message = f"{type(exception).__name__}: {exception}".strip().splitlines()[0]
            results[name] = _unmeasured("failed", message[:300])
            continue
        if error >= wrong:  # where batch statistics are of a few numbers, eager's own rounding may be as large
            wrong = max(WRONG, 2 * difference(eager(case, plan.device).numbers(), truth))
        if error < wrong:
            yield name, peer
        else:
            results[name] |= _unmeasured("wrong", f"off by {error:.1e} from float64 autograd")


def _unmeasured(status, reason):
    return {"status": status, "reason": reason}


def balanced(case: Workload, device: str = "cpu", eager: type[Peer] = Autograd) -> Workload:
    """The case with a weight that gives task and penalty gradients of like size, so that neither can hide an error."""
    if case.task == "none":
        return case
    (_, task), (_, both) = (peer(case, device, torch.float64).numbers() for peer in (Plain, eager))
    penalty = {name: (both[name] - task[name]) / case.weight for name in task}
    return replace(case, weight=float(f"{_norm(task) / _norm(penalty):.0e}"))


def _norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def difference(numbers: tuple, truth: tuple) -> float:
    """The largest relative difference of loss and gradients; NaN counts as infinite.

    A parameter's difference is relative to the norm of its gradient, or to a hundredth of all gradients' norm where its
    own is smaller (a bias before a normalisation has none).
    """
    (loss, gradients), (true_loss, true_gradients) = numbers, truth
    floor = 1e-2 * _norm(true_gradients)
    differences = [(loss - true_loss).abs() / true_loss.abs()]
    for name, true in true_gradients.items():
        differences.append((gradients[name] - true).norm() / torch.maximum(true.norm(), floor))
    return torch.stack(differences).nan_to_num(nan=float("inf")).max().item()


def interleaved(
    calls: dict[str, Callable[[], Any]], plan: Plan, report: Callable[[str], Any]
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    Args:
        calls: what is timed, by name.
        plan: how long.
        report: is told what is going on, in a few words.
    """
    synchronise = torch.cuda.synchronize if plan.device.startswith("cuda") else contextlib.nullcontext

    def visit(call, repeats):
        call()  # as in training, where the step before was the same: caches and heap are not the last peer's
        synchronise()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronise()
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in calls.items():
        seconds = visit(call, 1)
        repeats[name] = 1 if seconds > plan.visit else max(1, round(plan.visit / visit(call, 2)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    start = time.perf_counter()
    for i in range(plan.rounds):
        if i >= 5 and time.perf_counter() - start > plan.seconds:
            break
        report(f"round {i + 1} of {plan.rounds}")
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(visit(calls[name], repeats[name]))
    return times
