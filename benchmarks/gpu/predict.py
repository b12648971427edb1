"""``python -m benchmarks.gpu.predict``: what a step of each case must move, compute and launch on an H100, by count.

No GPU is needed: tensors are of PyTorch's device "meta", which has shapes and no numbers, and the planner is told that
it is a GPU. Every call that reaches PyTorch's dispatcher and is no view is counted with the bytes of its operands and
results, its operations and its launches. A call takes the time of its bytes, of its operations, or of its launches,
whichever is longest. In a CUDA graph these times add up. Outside, the step takes as long as the host needs to launch
everything, if that is longer; the host's other work (Python's, and autograd's) is left out for both. Predictions are
there to be compared with what a GPU measures (`python -m benchmarks speed --device cuda`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gradreg_fast.backend import WIDEST_TOGETHER
from gradreg_fast.mlp import widest

from ..cases import CASES, Case
from ..peers import Autograd, GradregFast, Peer
from . import timing

BANDWIDTH = 3.35e12  # bytes a second: an H100's data sheet
RATE = 67e12  # operations a second in float32, likewise
KERNEL = 2.5e-6  # seconds of the shortest kernel in a CUDA graph: assumed
LAUNCH = 5e-6  # seconds of the host for a launch from eager PyTorch: assumed

FREE = ("empty", "new_empty", "_unsafe_view", "detach", "squeeze_")  # beginnings of the names of what launches nothing
LAUNCHES = {"norm_project": 3, "norm_meet": 3, "layer_norm_project": 2, "layer_norm_meet": 2}  # as csrc/cuda has them


class Counter(TorchDispatchMode):
    """Counts what reaches PyTorch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.operations, self.graph_seconds = 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        views = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if views or name.startswith(FREE) or func.namespace == "prim":
            return results
        moved = sum({id(one): _bytes(one) for one in _tensors((args, kwargs))}.values())
        moved += sum(map(_bytes, _tensors(results)))
        launches, operations = LAUNCHES.get(name, 1), 0.0
        if name == "convolution_backward":
            launches = sum(args[-1])
        if name.startswith("mlp_"):
            launches, further, operations = _of_mlp(name, args, results)
            moved += further
        elif formula := flop_registry.get(func._overloadpacket):
            operations = formula(*args, **(kwargs or {}), out_val=results)
        self.launches += launches
        self.bytes += moved
        self.operations += operations
        self.graph_seconds += max(moved / BANDWIDTH, operations / RATE, launches * KERNEL)
        return results


def _of_mlp(name, args, results):
    """Launches, bytes beside those of operands and results, and operations of a pair of sweeps."""
    x, weights = args[0], next(a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor))
    wide = widest(weights) > WIDEST_TOGETHER[x.dtype]  # which has a launch a layer and sweep
    stack = args[9] if name == "mlp_forward_pull" else args[8]
    products = 2.0 * len(x) * sum(weight.numel() for weight in weights) * (1 + stack)
    if name == "mlp_forward_pull":
        return (2 * len(weights) + 1 if wide else 1), 0, products
    kept = args[3].nbytes  # as much again are tangents and adjoints: written, read for the weights' gradients; kept too
    return (2 * len(weights) + 3 if wide else 3), 3 * kept, 2 * products


def _tensors(nested):
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _bytes(tensor):
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())  # the latter of what is expanded


@contextmanager
def planned_for_an_h100() -> Iterator[None]:
    """Let the planner take device "meta" for a GPU with compiled kernels."""
    backend = sys.modules["gradreg_fast.backend"]  # the package has a class of this name
    library, reason = backend.library()
    if library is None:
        raise RuntimeError(f"operations can only be counted where they are compiled: {reason}")
    with (
        mock.patch.dict(backend.KERNELS, meta="cuda"),
        mock.patch.object(backend, "cuda_library", lambda: (library, "")),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
    ):
        yield


def counted(peer: type[Peer], case: Case) -> Counter:
    """One step of a peer."""
    with planned_for_an_h100():
        made = peer(case, "meta")
        made.step()  # makes its graph
        with Counter() as counter:
            made.step()
    return counter


def predictions(cases: list[Case]) -> Iterator[dict]:
    """What was counted of both, the times implied, and their ratios: above 1 we are ahead."""
    for case in cases:
        row: dict = {"case": case.name, "rows": case.rows}
        for label, peer in {"ours": GradregFast, "eager": Autograd}.items():
            found = counted(peer, case)
            row |= {f"{label}_{what}": getattr(found, what) for what in ("launches", "bytes", "operations")}
            row[f"{label}_graph_seconds"] = found.graph_seconds
            row[f"{label}_seconds"] = max(found.graph_seconds, found.launches * LAUNCH)
        row["over_eager"] = row["eager_seconds"] / row["ours_seconds"]
        row["over_graph"] = row["eager_graph_seconds"] / row["ours_graph_seconds"]
        print(
            f"{case.name:44} launches {row['ours_launches']:4} ({row['eager_launches']:6})  MB "
            f"{row['ours_bytes'] / 1e6:7.1f} ({row['eager_bytes'] / 1e6:8.1f})  us {row['ours_seconds'] * 1e6:7.0f}  "
            f"eager over it {row['over_eager']:6.2f}, as CUDA graphs {row['over_graph']:6.2f}",
            flush=True,
        )
        yield row


def draw(rows: list[dict]) -> plt.Figure:
    """Both ratios of every case."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.34 * len(rows)), layout="constrained")
    names = [row["case"] for row in rows]
    for offset, key, colour in ((0.2, "over_eager", "#1f4e9c"), (-0.2, "over_graph", "#8a8a8a")):
        places = [place + offset for place in range(len(rows))]
        label = {"over_eager": "eager double backward", "over_graph": "both as CUDA graphs"}[key]
        axes.barh(places, [row[key] for row in rows], 0.38, color=colour, label=label)
        for place, row in zip(places, rows, strict=True):
            axes.annotate(f" {row[key]:.1f}", (row[key], place), va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="predicted time over gradreg_fast's on an H100, float32: counted, not measured")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Count, print, write JSON, CSV and PNG."""
    options = timing.arguments(__doc__)
    rows = list(predictions([case for case in CASES if case.quick_rows][:2] if options.quick else list(CASES)))
    constants = {"bandwidth": BANDWIDTH, "rate": RATE, "kernel": KERNEL, "launch": LAUNCH}
    path = timing.finish("predict", options.device, {"constants": constants}, rows, options.out)
    draw(rows).savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
