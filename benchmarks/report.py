"""What is kept and shown of a measurement: the ratios within rounds, tables, JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import overhead
from .machine import spread
from .peers import PEERS, Autograd, GradregFast, GradregFastCompiled, Plain

OURS, COMPILED = GradregFast.name, GradregFastCompiled.name


def ratio(peers: dict, peer: str, base: str = OURS) -> list[float] | None:
    """Quartiles of `peer`'s time over `base`'s, taken round by round; None unless both were timed."""
    if any(peers.get(name, {}).get("status") != "ok" for name in (peer, base)):
        return None
    return spread([a / b for a, b in zip(peers[peer]["seconds"], peers[base]["seconds"], strict=True)])


def rivals(peers: dict, compiled: bool = True) -> list[str]:
    """The peers that do the same work as ours, with or without the compiled ones."""
    return [
        name for name in peers if name not in (OURS, COMPILED, Plain.name) and (compiled or not PEERS[name].compiled)
    ]


def best(peers: dict, names: list[str]) -> str | None:
    """The fastest of `names` by median time."""
    timed = [name for name in names if peers.get(name, {}).get("status") == "ok"]
    return min(timed, key=lambda name: spread(peers[name]["seconds"])[1], default=None)


def floor(peers: dict) -> float | None:
    """Seconds that the fewest operations of any peer would take at the best rate of any, the plain step's included."""
    counted = {name: peer for name, peer in peers.items() if peer.get("units")}
    penalised = [peer["units"] for name, peer in counted.items() if name != Plain.name]
    rates = [peer["units"] / spread(peer["seconds"])[1] for peer in counted.values()]
    return min(penalised) / max(rates) if penalised else None


def summary(peers: dict) -> dict:
    """A case's line: our time and how it compares, each ratio as quartiles; above 1 we are ahead."""
    leader, eager_leader = best(peers, rivals(peers)), best(peers, rivals(peers, compiled=False))
    ours = peers.get(OURS, {})
    timed = ours.get("status") == "ok"
    bound = floor(peers)
    eager_memory = peers.get(Autograd.name, {}).get("memory_bytes")
    return {
        "seconds": spread(ours["seconds"]) if timed else None,
        "best": leader,
        "best_ratio": leader and ratio(peers, leader),
        "compiled_ratio": leader and ratio(peers, leader, COMPILED),
        "best_uncompiled": eager_leader,
        "best_uncompiled_ratio": eager_leader and ratio(peers, eager_leader),
        "autograd_ratio": ratio(peers, Autograd.name),
        "over_plain": ratio(peers, OURS, Plain.name),
        "over_floor": spread(ours["seconds"])[1] / bound if timed and bound else None,
        "memory_ratio": eager_memory / ours["memory_bytes"] if eager_memory and ours.get("memory_bytes") else None,
    }


def tables(results: dict, console: Console) -> None:
    """Prints both tables, what was left out, and what is wrong."""
    console.print(_overview(results), _every_peer(results))
    reasons = defaultdict(list)
    for case in results["cases"]:
        for name, peer in case["peers"].items():
            if peer["status"] != "ok":
                reasons[name, peer["status"], peer["reason"]].append(case["name"])
    for (name, status, reason), cases in reasons.items():
        where = "everywhere" if len(cases) == len(results["cases"]) else ", ".join(cases)
        style = "dim" if status == "skipped" else "bold red"
        console.print(f"[{style}]{name} {status}: {reason} ({where})", highlight=False)


def overhead_tables(results: dict, console: Console) -> None:
    """Prints the whole steps, and the parts of the compiled one."""
    seconds = results["seconds"]
    steps = Table("step", title="8 rows through 8-8-1: median (quartiles)", title_justify="left")
    inside = Table("part", title="the compiled step", title_justify="left")
    steps.add_column("µs", justify="right")
    steps.add_column("over no penalty", justify="right")
    for name in overhead.STEPS:
        ratios = [a / b for a, b in zip(seconds[name], seconds[overhead.PLAIN], strict=True)]
        steps.add_row(name, microseconds(seconds[name]), f"{spread(ratios)[1]:.2f}")
    inside.add_column("µs", justify="right")
    for name, each in overhead.parts(seconds).items():
        inside.add_row(name, microseconds(each))
    console.print(steps, inside)


def microseconds(seconds: list[float]) -> str:
    """Median and quartiles."""
    low, median, high = (f"{1e6 * value:.1f}" for value in spread(seconds))
    return f"{median} ({low}-{high})"


def _overview(results):
    table = Table(title="time of the best peer over ours (above 1: gradreg_fast is ahead)", title_justify="left")
    table.add_column("case", no_wrap=True)
    headings = ("ms", "best of all", "over ours compiled", "best uncompiled", "eager")
    for heading in (*headings, "ours/plain", "ours/floor", "eager/ours memory"):
        table.add_column(heading, justify="right")
    for case in results["cases"]:
        line = summary(case["peers"])
        table.add_row(
            case["name"],
            _number(line["seconds"] and line["seconds"][1] * 1e3),
            _coloured(line["best_ratio"], line["best"]),
            _coloured(line["compiled_ratio"]),
            _coloured(line["best_uncompiled_ratio"], line["best_uncompiled"]),
            _coloured(line["autograd_ratio"]),
            _number(line["over_plain"] and line["over_plain"][1]),
            _number(line["over_floor"]),
            _number(line["memory_ratio"]),
        )
    return table


def _every_peer(results):
    names = [name for name in PEERS if any(name in case["peers"] for case in results["cases"])]
    table = Table(
        title="every peer: ms, units (FLOPs over one forward's), MB at the peak of a step", title_justify="left"
    )
    table.add_column("case", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for case in results["cases"]:
        table.add_row(case["name"], *(_cell(case["peers"].get(name, {"status": "skipped"})) for name in names))
    return table


def _cell(peer):
    if peer["status"] != "ok":
        return "-" if peer["status"] == "skipped" else f"[bold red]{peer['status']}"
    units = f" {peer['units']:.1f}u" if peer["units"] else ""
    memory = f" {peer['memory_bytes'] / 1e6:.1f}MB" if peer["memory_bytes"] is not None else ""
    return f"{spread(peer['seconds'])[1] * 1e3:.3g}{units}{memory}"


def _number(value):
    return "-" if value is None else f"{value:.3g}"


def _coloured(quartiles, name=None):
    if quartiles is None:
        return "-"
    low, middle, high = quartiles
    colour = "green" if middle > 1 else "red"
    return f"[{colour}]{middle:.2f}[/] [dim]{low:.2f}-{high:.2f}{' ' + name if name else ''}[/]"


def write(results: dict, path: Path) -> None:
    """Writes a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def write_csv(results: dict, path: Path) -> None:
    """Writes a row for each case and peer, without the rounds."""
    columns = ["case", "rows", "peer", "status", "reason", "median_s", "low_s", "high_s", "over_ours"]
    columns += ["units", "memory_bytes", "error", "first_step_seconds"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for case in results["cases"]:
            for name, peer in case["peers"].items():
                low, median, high = spread(peer["seconds"]) if peer["status"] == "ok" else (None,) * 3
                over = ratio(case["peers"], name)
                figures = {"median_s": median, "low_s": low, "high_s": high, "over_ours": over and over[1]}
                writer.writerow({"case": case["name"], "rows": case["rows"], "peer": name, **peer, **figures})
