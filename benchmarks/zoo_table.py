"""The table of architectures: as CSV, on the console, and in the README, which shows the committed CSV.

`python -m benchmarks.zoo_table` prints the README's lines.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .machine import spread
from .zoo import ARCHITECTURES, PEERS, Converted, Eager, Functional, Inductor, Job

COMMITTED = Path(__file__).parent / "results" / "models.csv"
NAMES = {Functional.name: "functional", Converted.name: "`convert`", Inductor.name: "Inductor"}
HEADINGS = ("architecture", "batch", "nodes with a rule", "worst error, train", "eval", "eager, ms")


def enter(results: dict, job: Job, found: dict) -> None:
    """Adds what a job found, with ratios within rounds in the place of the rounds; keeps what it left out."""
    known, commit = results["architectures"].setdefault(job.architecture.name, {}), results["environment"]["commit"]
    if not job.peers:
        known |= found | {"commit": commit}
        return
    for peer in found.values():
        peer["commit"] = commit
        if peer["status"] == "ok":
            eager = found[Eager.name]
            ratios = [a / b for a, b in zip(eager["seconds"], peer["seconds"], strict=True)]
            peer |= {"time_ratio": spread(ratios), "memory_ratio": eager["memory_bytes"] / peer["memory_bytes"]}
    for peer in found.values():
        if peer["status"] == "ok":
            peer["seconds"] = spread(peer["seconds"])
    known.setdefault("peers", {}).update(found)


def has(results: dict, job: Job) -> bool:
    """Whether the results hold what a job would find, at this very commit."""
    known, commit = results["architectures"].get(job.architecture.name, {}), results["environment"]["commit"]
    found = [known.get("peers", {}).get(peer, {}) for peer in job.peers] if job.peers else [known]
    return commit is not None and all(each.get("commit") == commit for each in found)


def nodes(results: dict, job: Job) -> float:
    """How many there are in the job's architecture, as far as that is known."""
    return results["architectures"].get(job.architecture.name, {}).get("nodes", math.inf)


def rows(results: dict) -> list[dict]:
    """A flat line for each architecture, in the order of `zoo.ARCHITECTURES`."""
    lines = []
    for name, architecture in ARCHITECTURES.items():
        measured = results["architectures"].get(name, {})
        if "parity" not in measured:
            continue
        peers, parity = measured.get("peers", {}), measured["parity"]
        eager = peers.get(Eager.name, {}).get("seconds")
        line = {
            "architecture": name,
            "package": architecture.package or "",
            "batch": " x ".join(map(str, (architecture.rows, *architecture.shape))),
            "penalty": architecture.penalty,
            "parameters": measured["parameters"],
            "nodes": measured["nodes"],
            "with_rule": measured["nodes"] - len(measured["by_autograd"]),
            "reasons": "; ".join(dict.fromkeys(measured["by_autograd"])),
            "eager_lacks": measured["eager_lacks"],
            "left_to_autograd": int(measured["left_to_autograd"]),
            "parity_train": max(parity["train"].values()),
            "parity_eval": max(parity["eval"].values()),
            "eager_ms": 1e3 * eager[1] if eager else "",
            "commit": measured["commit"],
        }
        for peer in NAMES:
            line |= _figures(peer, peers.get(peer, {"status": "skipped", "reason": "not measured"}))
        lines.append({key: _short(value) for key, value in line.items()})
    return lines


def _figures(name, peer):
    if peer["status"] != "ok":
        return {f"{name}_fails": peer["reason"]}
    low, median, high = peer["time_ratio"]
    return {
        f"{name}_time": median,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_memory": peer["memory_ratio"],
    }


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_csv(results: dict, path: Path) -> None:
    """Writes `rows`."""
    columns = ["architecture", "package", "batch", "penalty", "parameters", "nodes", "with_rule", "reasons"]
    columns += ["eager_lacks", "left_to_autograd", "parity_train", "parity_eval", "eager_ms"]
    columns += [f"{peer}_{figure}" for peer in NAMES for figure in ("time", "low", "high", "memory", "fails")]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "commit"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(results))


def read_csv(path: Path = COMMITTED) -> list[dict]:
    """What `write_csv` wrote, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cells(line: dict) -> list[str]:
    """A line as the tables show it."""
    share = f"{line['with_rule']} of {line['nodes']}"
    errors = [f"{float(line[f'parity_{mode}']):.0e}" for mode in ("train", "eval")]
    name = line["architecture"] + ("¹" if line["eager_lacks"] else "")
    shown = [name, line["batch"].replace(" ", ""), share, *errors, milliseconds(line)]
    for figure in ("time", "memory"):
        for peer in NAMES:
            value = line.get(f"{peer}_{figure}")
            mark = "²" if peer == Converted.name and figure == "time" and int(line["left_to_autograd"]) else ""
            shown.append("-" if value in (None, "") else f"{float(value):.2f}{mark}")
    return shown


def milliseconds(line: dict) -> str:
    """Of eager's step."""
    return f"{float(line['eager_ms']):.0f}" if line["eager_ms"] else "-"


def headings() -> list[str]:
    """Of the tables' columns."""
    return [*HEADINGS, *(f"{figure}, {name}" for figure in ("time", "memory") for name in NAMES.values())]


def markdown(lines: list[dict]) -> str:
    """The README's table."""
    head = [headings(), ["---"] * len(headings())]
    return "\n".join("| " + " | ".join(row) + " |" for row in (*head, *map(cells, lines)))


def show(results: dict, console: Console) -> None:
    """Prints the table, and what fails."""
    table = Table(*headings(), title="eager's time and memory over each one's (above 1: less than eager)")
    lines = rows(results)
    for line in lines:
        table.add_row(*cells(line))
    console.print(table)
    for line in lines:
        for peer in PEERS:
            if reason := line.get(f"{peer}_fails"):
                console.print(f"[dim]{line['architecture']}: {peer} {reason}", highlight=False)


if __name__ == "__main__":
    print(markdown(read_csv()))
