"""The command line: `python -m benchmarks COMMAND`, each with `--help`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import BadArgument, data, experiments, machine, penalties, processes, train, zoo
from .cases import CASES
from .experiments import cells, findings
from .peers import PEERS
from .speed import Plan, measure

FULL = {"rounds": 40, "seconds": 60.0, "visit": 0.02}
QUICK = {"rounds": 7, "seconds": 3.0, "visit": 0.005}
MODELS = {"rounds": 15, "seconds": 8.0, "visit": 0.02}
SLOW_TO_COMPILE = ("inductor", "inductor-autograd", "gradreg_fast-compiled")


def main() -> None:
    """Parses the arguments and runs the command."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except BadArgument as error:
        arguments.parser.error(str(error))


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Train with gradreg_fast, or time it.")
    commands = parser.add_subparsers(required=True, metavar="train | speed | models | overhead | experiment | plot")
    cores = max(1, len(machine.cores()) // processes.WORLD)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def command(name, run, description, commands=commands):
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run, parser=sub)
        return sub

    def out(sub):
        sub.add_argument("--out", type=Path, default=Path("out"), help="folder for results and pictures (%(default)s)")

    def threads(sub):
        sub.add_argument("--threads", type=_between(int, 1, cores), default=cores, help="CPU threads (%(default)s)")

    def common(sub):
        threads(sub)
        sub.add_argument("--device", type=_device, default=device, help="cpu or cuda (%(default)s)")
        out(sub)

    sub = command("train", _train, "Train the same network with each engine and compare losses, accuracy and time.")
    sub.add_argument(
        "--data",
        default="digits",
        help=f"{', '.join(data.NAMES)}, or a .npz file: x, y[, x_test, y_test] (%(default)s)",
    )
    sub.add_argument("--train-size", type=_between(int, 1), help="number of training samples; all by default")
    sub.add_argument("--model", choices=train.MODELS, default="mlp", help="network (%(default)s)")
    sub.add_argument(
        "--penalty", choices=train.PENALTIES, default="jacobian_frobenius", help="what is penalised (%(default)s)"
    )
    sub.add_argument(
        "--projections",
        type=_between(int, 1),
        help="estimate a Jacobian norm by that many random projections; exact by default",
    )
    sub.add_argument(
        "--weight",
        type=_between(float, 0),
        nargs="+",
        default=[0.01],
        help="of the penalty; of several the best on a validation part of the training data is taken (0.01)",
    )
    sub.add_argument(
        "--engine", choices=(*penalties.ENGINES, "all"), default="all", help="none: without penalty (%(default)s)"
    )
    sub.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="in float64 the engines' losses coincide for long; in float32 training amplifies rounding (%(default)s)",
    )
    sub.add_argument("--seeds", type=_between(int, 1), default=3, help="number of runs of each engine (%(default)s)")
    sub.add_argument("--epochs", type=_between(int, 1), default=20, help="passes over the training data (%(default)s)")
    sub.add_argument("--batch-size", type=_between(int, 1), default=64, help="samples a step (%(default)s)")
    sub.add_argument(
        "--lr",
        type=_between(float, 0),
        default=0.03,
        help="learning rate of SGD with momentum 0.9 and cosine decay (%(default)s)",
    )
    common(sub)

    sub = command("speed", _speed, "Time the penalised step of every case with every peer that is installed.")
    sub.add_argument("--quick", action="store_true", help="a few small cases, in under two minutes")
    sub.add_argument(
        "--rows-times", type=_between(int, 1), default=1, help="so many times the rows: for large devices (%(default)s)"
    )
    sub.add_argument("--cases", nargs="+", metavar="CASE", default=[""], help="names or parts of them; all by default")
    sub.add_argument(
        "--peers",
        nargs="+",
        metavar="PEER",
        choices=PEERS,
        default=list(PEERS),
        help=f"of {', '.join(PEERS)}; all by default",
    )
    sub.add_argument(
        "--repeats", type=_between(int, 1), help=f"rounds; {FULL['rounds']}, or {QUICK['rounds']} if quick"
    )
    common(sub)

    sub = command(
        "models", _models, "Check and time whole architectures (timm's and torchvision's too) on one CPU thread."
    )
    sub.add_argument("--quick", action="store_true", help="a few small ones and rounds, without Inductor")
    sub.add_argument("--check", action="store_true", help="rules and parity only: time nothing")
    sub.add_argument("--resume", action="store_true", help="leave out what --out holds of this very commit")
    sub.add_argument(
        "--minutes",
        type=_between(float, 0),
        default=35.0,
        help="after which Inductor, for which all wait to the end, compiles no further step (%(default)s)",
    )
    names, peers = list(zoo.ARCHITECTURES), list(zoo.PEERS)
    kept = "all by default; what the others gave into the same folder before is kept"
    sub.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}; {kept}")
    sub.add_argument("--peers", nargs="+", metavar="PEER", choices=peers, help=f"of {', '.join(peers)}; {kept}")
    out(sub)

    sub = command("overhead", _overhead, "Time a tiny network's step, and the parts of ours, on one CPU thread.")
    sub.add_argument("--quick", action="store_true", help="a few rounds")
    out(sub)

    sub = commands.add_parser(
        "experiment", help=(about := "Run the experiments on what is claimed."), description=about
    )
    actions = sub.add_subparsers(required=True, metavar="list | run | report")
    command("list", _list_experiments, "Name every experiment and what it asks.", actions)
    sub = command("run", _experiment, "Run experiments; what is in the folder already is not run again.", actions)
    sub.add_argument("names", nargs="+", metavar="NAME", choices=(*experiments.NAMES, "all"), help="as listed, or all")
    sub.add_argument("--quick", action="store_true", help="small sizes, each experiment in less than a minute")
    sub.add_argument(
        "--engine",
        choices=cells.CHOICES,
        default="all",
        help="who penalises; none: only what has no penalty; all: autograd too, but the first seed only (%(default)s)",
    )
    threads(sub)
    out(sub)
    command("report", _report, f"Write {findings.PAGE.name} from the committed results.", actions)

    sub = command("plot", _plot, "Redraw the picture of a results file, beside it.")
    sub.add_argument("results", type=Path, metavar="RESULTS.json", help="written by another command")
    return parser


def _between(kind, low, high=math.inf):
    """An argument type: a finite number from `low` to `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            wanted = "an integer" if kind is int else "a number"
            upper = f" and at most {high}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {wanted} of at least {low}{upper}, got {text!r}")
        return value

    return parse


def _device(text):
    if text not in ("cpu", "cuda") or (text == "cuda" and not torch.cuda.is_available()):
        raise argparse.ArgumentTypeError(f"must be cpu, or cuda where there is such a device, got {text!r}")
    return text


def _progress(console):
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _console():
    console = Console(quiet=processes.RANK > 0)
    return console if console.is_terminal else Console(width=240, quiet=processes.RANK > 0)


def _train(arguments):
    engines = tuple(penalties.ENGINES) if arguments.engine == "all" else (arguments.engine,)
    if arguments.projections and not arguments.penalty.startswith("jacobian"):
        raise BadArgument(f"--projections goes with a jacobian_* penalty, got {arguments.penalty}")
    config = train.Config(
        data=arguments.data,
        train_size=arguments.train_size,
        model=arguments.model,
        penalty=arguments.penalty,
        weights=tuple(arguments.weight),
        projections=arguments.projections,
        engines=engines,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        threads=arguments.threads,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    torch.set_num_threads(config.threads)
    console = _console()
    dataset = data.load(config.data, config.train_size)
    train.layers(config, dataset)
    with processes.joined(config.device), _progress(console) as progress:
        task = progress.add_task(f"training with {', '.join(engines)}", total=train.total_steps(config, dataset))
        results = train.train(config, dataset, lambda: progress.advance(task))
    if processes.RANK == 0:
        console.print(_training_table(results))
        _finish(results, arguments.out / "train.json", console)


def _training_table(results):
    config = results["config"]
    title = f"{config['model']} on {results['samples']} samples of {config['data']}, {config['penalty']}"
    chosen = ", ".join(f"{each['weight']:g}: {each['accuracy']:.2%}" for each in results["validation_accuracy"])
    difference, speedup = results["largest_loss_difference"], results["speedup"]
    notes = []
    if set(results["engines"]) != {"none"}:
        notes += [f"weight {results['weight']:g}" + (f", chosen by validation accuracy ({chosen})" if chosen else "")]
    if difference is not None:
        notes += [f"losses of gradreg_fast and autograd differ by {difference:.1e} at most in the first 50 steps"]
        notes += ["autograd / gradreg_fast, time of a step: {1:.2f} ({0:.2f}-{2:.2f})".format(*speedup)]
    table = Table("engine", "test accuracy", "last loss", "ms a step", title=title, caption="\n".join(notes))
    for engine, figures in results["engines"].items():
        accuracy = [100 * value for value in figures["test_accuracy"]]
        deviation = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        low, median, high = (1e3 * value for value in figures["seconds_per_step"])
        loss = statistics.mean(losses[-1] for losses in figures["losses"])
        time = f"{median:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(engine, f"{statistics.mean(accuracy):.2f}{deviation} %", f"{loss:.4f}", time)
    return table


def _speed(arguments):
    from . import report

    cases = [case.quick() for case in CASES if case.quick_rows] if arguments.quick else CASES
    for part in arguments.cases:
        if not any(part in case.name for case in cases):
            names = ", ".join(case.name for case in cases)
            raise BadArgument(f"--cases must be parts of the names of cases, got {part!r}; they are: {names}")
    chosen = [case for case in cases if any(part in case.name for part in arguments.cases)]
    chosen = [replace(case, rows=case.rows * arguments.rows_times) for case in chosen]
    settings = QUICK if arguments.quick else FULL
    if arguments.repeats:
        settings = settings | {"rounds": arguments.repeats}
    plan = Plan(**settings, threads=arguments.threads, device=arguments.device)
    console = _console()
    results = {
        "kind": "speed",
        "environment": machine.environment(plan.threads, plan.device),
        "plan": vars(plan) | {"quick": arguments.quick},
        "cases": [],
    }
    with _progress(console) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:

            def say(what, case=case):
                progress.update(task, description=f"{case.name}: {what}")

            slow = SLOW_TO_COMPILE if arguments.quick and not case.quick_compiled else ()
            measured = measure(case, [name for name in arguments.peers if name not in slow], plan, say)
            left_out = {"status": "skipped", "reason": "--quick compiles for one case only"}
            measured |= {name: left_out for name in arguments.peers if name in slow}
            results["cases"].append({"name": case.name, "rows": case.rows, "peers": measured})
            report.write(results, arguments.out / "speed.json")  # what is measured is kept if the rest is not awaited
            progress.advance(task)
    report.tables(results, console)
    report.write_csv(results, arguments.out / "speed.csv")
    _finish(results, arguments.out / "speed.json", console)


def _list_experiments(arguments):
    table = Table("name", "what is asked", "must be installed first", box=None)
    for name in experiments.NAMES:
        table.add_row(name, experiments.load(name).__doc__.splitlines()[0], "; ".join(experiments.missing(name)))
    _console().print(table)


def _experiment(arguments):
    torch.set_num_threads(arguments.threads)
    console = _console()
    for name in experiments.NAMES if "all" in arguments.names else arguments.names:
        lacking = "; ".join(experiments.missing(name, arguments.quick))
        if not lacking:
            _run_experiment(name, arguments, console)
        elif "all" in arguments.names:
            console.print(f"{name}: skipped, because it needs: {lacking}")
        else:
            raise BadArgument(f"{name} needs: {lacking}")


def _run_experiment(name, arguments, console):
    experiment = experiments.load(name)
    configs = experiment.cells(arguments.quick)
    results = cells.Results(arguments.out / f"{name}.jsonl")
    with _progress(console) as progress:
        task = progress.add_task(name, total=len(configs))
        cells.run(experiment, configs, arguments.engine, results, lambda: progress.advance(task))
    rows = results.rows(configs)
    done = len({*map(cells.key, (row.config for row in rows))})
    if done < len(configs):
        console.print(f"results: {results.path}; told and drawn once all {len(configs)} cells have run, {done} have")
        return
    for finding in findings.of(experiment, rows):
        console.print(f"- {finding.text} [{finding.verdict}]", markup=False)
    console.print(f"results: {results.path}, {findings.draw(experiment, rows, results.path)}")


def _report(arguments):
    print(findings.write_page())


def _models(arguments):
    from . import report, zoo_table

    names = arguments.only or (zoo.QUICK if arguments.quick else zoo.ARCHITECTURES)
    peers = arguments.peers or [name for name in zoo.PEERS if not (arguments.quick and name in SLOW_TO_COMPILE)]
    peers = [] if arguments.check else peers
    console = _console()
    chosen = [zoo.ARCHITECTURES[name] for name in names]
    left_out = [each for each in chosen if zoo.missing(each.package)]
    if left_out:
        packages = " and ".join(dict.fromkeys(each.package for each in left_out))
        console.print(f"left out for want of {packages}: {', '.join(each.name for each in left_out)}")
        console.print(f"to install them: {zoo.INSTALL}", soft_wrap=True)
    plan = Plan(**(QUICK if arguments.quick else MODELS), threads=1, device="cpu")
    path = arguments.out / "models.json"
    results = {
        "kind": "models",
        "environment": machine.environment(plan.threads, plan.device),
        "plan": vars(plan),
        "architectures": json.loads(path.read_text())["architectures"] if path.exists() else {},
    }
    chosen = [each for each in chosen if each not in left_out]
    jobs, compiling = zoo.jobs(chosen, peers, SLOW_TO_COMPILE)
    if arguments.resume:
        jobs, compiling = ([job for job in part if not zoo_table.has(results, job)] for part in (jobs, compiling))
    end = time.monotonic() + 60 * arguments.minutes

    def do(job):
        if job in compiling and time.monotonic() > end:
            return "no time left"
        return job.do(plan, lambda what: progress.update(task, description=f"{job.architecture.name}: {what}"))

    def enter(job, found):
        if isinstance(found, str):
            console.print(f"{job.architecture.name}: {', '.join(job.peers) or 'check'}: {found}", highlight=False)
        else:
            zoo_table.enter(results, job, found)
            report.write(results, path)
        progress.advance(task)

    with _progress(console) as progress:
        task = progress.add_task("", total=len(jobs) + len(compiling))
        for job in jobs:
            enter(job, do(job))
        compiling.sort(key=partial(zoo_table.nodes, results))  # the smallest are compiled soonest
        with machine.side_by_side() as pool:
            for job, found in zip(compiling, pool.map(do, compiling), strict=True):
                enter(job, found)
    zoo_table.show(results, console)
    zoo_table.write_csv(results, path.with_suffix(".csv"))
    _finish(results, path, console)


def _overhead(arguments):
    from . import overhead, report

    plan = Plan(**(QUICK if arguments.quick else FULL), threads=1, device="cpu")
    console = _console()
    with console.status("") as status:
        try:
            seconds = overhead.measure(plan, status.update)
        except RuntimeError as error:
            raise BadArgument(f"overhead cannot be measured: {error}") from error
    environment = machine.environment(plan.threads, plan.device)
    results = {"kind": "overhead", "environment": environment, "plan": vars(plan), "seconds": seconds}
    report.overhead_tables(results, console)
    _finish(results, arguments.out / "overhead.json", console)


def _plot(arguments):
    from . import plot

    print(plot.draw(arguments.results))


def _finish(results, path, console):
    from . import plot, report

    report.write(results, path)
    console.print(f"results: {path}, {plot.draw(path)}")


if __name__ == "__main__":
    main()
