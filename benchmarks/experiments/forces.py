"""How much better are energies and forces of a molecule learned when forces are matched, and what does a step cost?

Ethanol frames of molecular dynamics (Langevin, 500 K, a frame each 10 fs) with energies and forces of GFN2-xTB, by
`tblite` and `ase`. The network sees the 36 inverse distances between the atoms, through 64 and 64 tanh units; its
energy's negative gradient is the forces. Mean squared error of the energies plus 0.01 times `gradient_matching` of the
forces, never tuned; Adam, rate 0.01, cosine decay, 800 steps of all frames. Errors are root mean squares on 150 other
frames of the same trajectory; intervals are over five draws of frames and weights.
"""

from __future__ import annotations

from functools import cache

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import loop, machine, plot
from ..penalties import Batch
from .cells import Row, outcomes, values
from .claims import Finding, geometric, ratio, said, verdict
from .synthetic_1d import derivative

CLAIM = "forces"
NEEDS = {"tblite": "pip install tblite", "ase": "pip install ase"}

SIZES, TESTED = (25, 50, 100), 150
WEIGHT = 0.01
KINDS = {0: ("energies only", plot.GREY), WEIGHT: ("energies and forces", plot.AHEAD)}
MEASURES = {"energy": "energy error in meV", "force": "force error in meV/Å (root mean square of a component)"}


class InverseDistances(nn.Module):
    """Positions [B, A, 3] to the inverse distances of all pairs, scaled to order one [B, A (A - 1) / 2]."""

    def __init__(self, positions: Tensor):
        super().__init__()
        atoms = positions.shape[1]
        first, second = torch.triu_indices(atoms, atoms, 1)
        pairs = torch.zeros(len(first), atoms)
        pairs[range(len(first)), first], pairs[range(len(first)), second] = 1, -1
        self.register_buffer("differences", torch.kron(pairs, torch.eye(3)))  # [3 P, 3 A]
        inverse = self._inverse(positions)
        self.register_buffer("mean", inverse.mean(0))
        self.register_buffer("scale", 1 / inverse.std(0))

    def _inverse(self, x):
        return F.linear(x.flatten(1), self.differences).unflatten(1, (-1, 3)).square().sum(2).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        """The scaled inverse distances."""
        return (self._inverse(x) - self.mean) * self.scale


def cells(quick: bool) -> list[dict]:
    """Numbers of frames, without and with forces."""
    seeds, steps, frames = (1, 8, 120) if quick else (5, 800, 250)
    return [
        {"samples": size, "weight": weight, "frames": frames, "steps": steps, "seed": seed}
        for size in SIZES
        for weight in KINDS
        for seed in range(seeds)
    ]


@cache
def trajectory(frames: int, spacing: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in Å and forces in eV/Å, [N, 9, 3], and energies less their mean in eV, [N, 1]."""
    import numpy as np
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from tblite.ase import TBLite

    ethanol, random = molecule("CH3CH2OH"), np.random.default_rng(0)
    ethanol.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(ethanol, temperature_K=500, rng=random)
    dynamics = Langevin(ethanol, units.fs, temperature_K=500, friction=0.01 / units.fs, rng=random)
    kept = []
    for frame in range(frames + 10):
        dynamics.run(spacing)
        if frame >= 10:  # by then it has left where it began
            kept.append((ethanol.get_positions(), ethanol.get_forces(), [ethanol.get_potential_energy()]))
    x, forces, energies = (torch.from_numpy(np.stack(part)) for part in zip(*kept, strict=True))
    return x.float(), forces.float(), (energies - energies.mean(0)).float()


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains on some of the frames, and tests on others."""
    x, forces, energies = trajectory(config["frames"])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(config["seed"]))
    train, test = order[: config["samples"]], order[config["samples"] :][-TESTED:]
    offset, scale = energies[train].mean(), energies[train].std()
    batch = Batch(x[train], (energies[train] - offset) / scale, -forces[train] / scale)
    runs = {}
    for engine in engines:
        torch.manual_seed(config["seed"])
        model = nn.Sequential(
            InverseDistances(x[train]),
            *(nn.Linear(36, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)),
        )
        loss = loop.objective(engine, "gradient_matching", model, F.mse_loss, config["weight"])
        runs[engine] = loop.Run(model, loss, loop.adam(1e-2, config["steps"]))
    loop.lockstep(list(runs.values()), [batch] * config["steps"])
    outcomes_of = {}
    for engine, each in runs.items():
        y, slope = derivative(each.model, x[test])
        outcomes_of[engine] = {
            "energy": 1e3 * (y * scale + offset - energies[test]).square().mean().sqrt().item(),
            "force": 1e3 * (slope * scale + forces[test]).square().mean().sqrt().item(),
            "seconds_per_step": machine.spread(each.processor_seconds),
        }
    return outcomes_of


def findings(rows: list[Row]) -> list[Finding]:
    """Errors with and without forces."""
    found = []
    for size in values(rows, "samples"):
        for measure, label in MEASURES.items():
            of_kind = {weight: outcomes(rows, measure, samples=size, weight=weight) for weight in KINDS}
            ends = ratio(of_kind[WEIGHT], of_kind[0])
            text = (
                f"{size} frames, {label}: {said(geometric(of_kind[0]), '.0f')} without matching, "
                f"{said(geometric(of_kind[WEIGHT]), '.0f')} with it, {said(ends)} times."
            )
            found.append(Finding(text, verdict(ends)))
    return found


def draw(rows: list[Row]) -> Figure:
    """Both errors over the number of frames, and the time of a step."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=(3, 3, 2))
    sizes = values(rows, "samples")
    for panel, (measure, label) in zip(axes, MEASURES.items(), strict=False):
        for weight, (kind, colour) in KINDS.items():
            ends = [geometric(outcomes(rows, measure, samples=size, weight=weight)) for size in sizes]
            plot.intervals(panel, sizes, ends, "o-", colour, f"trained on {kind}")
        panel.set(xscale="log", yscale="log", xlabel="training frames", ylabel=label)
        panel.set_xticks(sizes, sizes)
        panel.minorticks_off()
        plot.plain_ticks(panel.yaxis)
        panel.legend(frameon=False, fontsize=9)
    plot.steps(axes[2], rows)
    plot.style(*axes)
    figure.suptitle("Ethanol, energies and forces of GFN2-xTB: errors on other frames (geometric mean, 95% confidence)")
    return figure
