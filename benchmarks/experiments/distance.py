"""Does the eikonal equation make a network learn the signed distance to a mesh from its surface and few distances?

The elephant of Debian's `libcgal-demo` (5,558 triangles, one unit tall), and a network 3-64-64-64-1 with softplus units
(beta 100). It knows points on the surface, whose distance is zero, and the signed distances of few points in the box
around; the loss is the mean absolute error there, plus 0.1 times `eikonal` at those and as many random points. Adam,
rate 0.005, cosine decay, 800 steps of 256 surface points, 64 known and 320 random ones. Tested are the distances of
1,000 other points of the box, and the angle between the gradient and the normal at 1,000 points of the surface.
Intervals are over five draws of weights and batches; the known distances are always the same.
"""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import loop, machine, models, plot
from ..penalties import Batch
from .cells import Row, outcomes, values
from .claims import Finding, geometric, ratio, said, verdict
from .synthetic_1d import derivative

CLAIM = "distance"
MESHES = Path("/usr/share/doc/libcgal-dev/data.tar.gz")  # where Debian's libcgal-demo puts them
NEEDS = {
    "trimesh": "pip install trimesh",
    "rtree": "pip install rtree",
    str(MESHES): "apt-get install libcgal-demo",
}

KNOWN, TESTED = (64, 512), 1000
WEIGHT = 0.1
SURFACE, SPACE = 256, 64  # points of a batch; as many random ones come on top
BOX = 0.6  # half of its side
PIXELS = 96
KINDS = {0: ("distances only", plot.GREY), WEIGHT: ("with the eikonal penalty", plot.AHEAD)}
MEASURES = {
    "distance": ("mean absolute error of the distance (the mesh is 1 tall)", ".4f"),
    "angle": ("mean angle between gradient and normal, degrees", ".1f"),
}


def cells(quick: bool) -> list[dict]:
    """Numbers of known distances, without and with the penalty."""
    seeds, steps = (1, 8) if quick else (5, 800)
    return [
        {"mesh": "sphere" if quick else "elephant", "known": known, "weight": weight, "steps": steps, "seed": seed}
        for known in (KNOWN[-1:] if quick else KNOWN)
        for weight in KINDS
        for seed in range(seeds)
    ]


@cache
def mesh(name: str):
    """The elephant, or a sphere where it must be quick, as a `trimesh.Trimesh` one unit tall."""
    import trimesh

    if name == "sphere":
        return trimesh.creation.icosphere(radius=0.5)
    with tarfile.open(MESHES) as archive:
        data = archive.extractfile("data/meshes/elephant.off").read()
    return trimesh.load(io.BytesIO(data), file_type="off")


def surface(name: str, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random points of the surface and their outward normals, [N, 3]."""
    import trimesh

    x, faces = trimesh.sample.sample_surface(mesh(name), points, seed=seed)
    return torch.tensor(np.asarray(x)).float(), torch.tensor(mesh(name).face_normals[faces]).float()


@cache
def distances(name: str, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random points of the box [N, 3] and their signed distances [N, 1], negative inside."""
    import trimesh

    x = BOX * (2 * np.random.default_rng(seed).random((points, 3)) - 1)
    signed = -trimesh.proximity.signed_distance(mesh(name), x)
    return torch.from_numpy(x).float(), torch.from_numpy(signed).float()[:, None]


def batches(name: str, known: int, steps: int, seed: int):
    """Surface points, known points and random points, with the distances of the first two."""
    on_surface, _ = surface(name, 20_000, seed)
    in_space, signed = (part[:known] for part in distances(name, KNOWN[-1], 0))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        first = torch.randint(len(on_surface), (SURFACE,), generator=generator)
        second = torch.randint(known, (SPACE,), generator=generator)
        free = BOX * (2 * torch.rand(SURFACE + SPACE, 3, generator=generator) - 1)
        x = torch.cat([on_surface[first], in_space[second], free])
        yield Batch(x, torch.cat([torch.zeros(SURFACE, 1), signed[second]]))


def _task(y, target):
    error = (y[: len(target)] - target).abs()
    return error[:SURFACE].mean() + error[SURFACE:].mean()


def run(config: dict, engines: tuple[str, ...]) -> dict[str, dict]:
    """Trains the network; its errors, and with the first seed its picture."""
    runs = {}
    for engine in engines:
        model = models.build(models.mlp(64, 64, 64, 1, activation="softplus100"), (3,), config["seed"])
        loss = loop.objective(engine, "eikonal", model, _task, config["weight"])
        runs[engine] = loop.Run(model, loss, loop.adam(5e-3, config["steps"]))
    loop.lockstep(list(runs.values()), batches(*(config[name] for name in ("mesh", "known", "steps", "seed"))))
    shown = config["seed"] == 0 and config["known"] == KNOWN[-1]
    return {engine: _outcome(each, config["mesh"], shown) for engine, each in runs.items()}


def _outcome(run, name, shown):
    x, signed = distances(name, TESTED, 1000)
    on_surface, normals = surface(name, TESTED, 1000)
    _, slope = derivative(run.model, on_surface)
    cosine = torch.nn.functional.cosine_similarity(slope, normals).clamp(-1, 1)
    outcome = {
        "distance": (loop.outputs(run.model, x) - signed).abs().mean().item(),
        "angle": cosine.acos().rad2deg().mean().item(),
        "seconds_per_step": machine.spread(run.processor_seconds),
    }
    if shown:
        outcome["picture"] = _picture(run.model)
    return outcome


LIGHT = torch.nn.functional.normalize(torch.tensor([[0.5, 0.6, 0.8]]))


@torch.no_grad()
def _picture(model) -> list[list[float]]:
    """The zero level set from the front, by marching along parallel rays: shades from 0 to 1, -1 beside it."""
    side = BOX * (2 * (torch.arange(PIXELS) + 0.5) / PIXELS - 1)
    y, x = torch.meshgrid(side.flip(0), side, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, BOX)], 2).flatten(0, 1)  # [P^2, 3]
    for _ in range(60):
        points[:, 2] -= 0.7 * loop.outputs(model, points)[:, 0].clamp(-0.02, 0.1)
    met = (points[:, 2] > -BOX) & (loop.outputs(model, points)[:, 0].abs() < 0.01)
    with torch.enable_grad():
        _, slope = derivative(model, points)
    return _shades(slope, met)


def _shades(normals, met):
    shades = (torch.nn.functional.normalize(normals) @ LIGHT.T)[:, 0].clamp_min(0) * 0.8 + 0.2
    return [[round(value, 2) for value in row] for row in torch.where(met, shades, -1.0).view(PIXELS, PIXELS).tolist()]


def true_picture(name: str) -> list[list[float]]:
    """The mesh in the same light: of very many points of its surface the foremost in every pixel."""
    points, normals = surface(name, 400_000, 0)
    column, row = (((points[:, axis] * sign / BOX + 1) / 2 * PIXELS).long() for axis, sign in ((0, 1), (1, -1)))
    order = points[:, 2].argsort()  # the foremost is written last
    shown = torch.zeros(PIXELS * PIXELS, 3)
    met = torch.zeros(PIXELS * PIXELS, dtype=torch.bool)
    for place, normal in zip((row * PIXELS + column)[order].tolist(), normals[order], strict=True):
        shown[place], met[place] = normal, True
    return _shades(shown, met)


def findings(rows: list[Row]) -> list[Finding]:
    """Errors with and without the penalty."""
    found = []
    for known in values(rows, "known"):
        for measure, (label, form) in MEASURES.items():
            of_kind = {weight: outcomes(rows, measure, known=known, weight=weight) for weight in KINDS}
            ends = ratio(of_kind[WEIGHT], of_kind[0])
            text = (
                f"{known} known distances, {label}: {said(geometric(of_kind[0]), form)} without the penalty, "
                f"{said(geometric(of_kind[WEIGHT]), form)} with it, {said(ends)} times."
            )
            found.append(Finding(text, verdict(ends)))
    return found


def draw(rows: list[Row]) -> Figure:
    """Both errors over the number of known distances, a step's time, and the surfaces."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
    known = values(rows, "known")
    for panel, (measure, (label, _)) in zip(axes[0], MEASURES.items(), strict=False):
        for weight, (kind, colour) in KINDS.items():
            ends = [geometric(outcomes(rows, measure, known=number, weight=weight)) for number in known]
            plot.intervals(panel, known, ends, "o-", colour, kind)
        panel.set(xscale="log", yscale="log", xlabel="points with known distance, besides the surface's")
        panel.set_ylabel(label, fontsize=9)
        panel.set_xticks(known, known)
        panel.minorticks_off()
        plot.plain_ticks(panel.yaxis)
        panel.legend(frameon=False, fontsize=9)
    plot.steps(axes[0, 2], rows)
    plot.style(*axes[0])
    pictures = {
        kind: outcomes(rows, "picture", known=KNOWN[-1], weight=weight, seed=0)[0]
        for weight, (kind, _) in KINDS.items()
    }
    for panel, (kind, picture) in zip(
        axes[1], ({"the mesh": true_picture(rows[0].config["mesh"])} | pictures).items(), strict=True
    ):
        panel.imshow(np.ma.masked_less(picture, 0), cmap="gray", vmin=0, vmax=1)
        title = kind if kind == "the mesh" else f"learned from {KNOWN[-1]} points, {kind}"
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.suptitle("Signed distance to a mesh (geometric mean, 95% confidence), and the networks' zero surfaces")
    return figure
