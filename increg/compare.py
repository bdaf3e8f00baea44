"""`increg compare`: methods x speedups x seeds on one small experiment, many runs side by side, and a table of the means.

Each seed has a baseline of its own, trained first; every method prunes those, with the same schedule and retraining. A run
is a folder as `increg reproduce` makes it (`increg report` shows it). The same command again runs what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from caffe_compat.errors import CaffeError
from caffe_compat.proto import replacing

from . import experiments
from .compare_setup import case, make_data, make_experiment
from .experiment_run import Run
from .runfolder import BASELINE, LOG, NOTE, SNAPSHOTS, log_to, write_note

HELP = "compare pruning methods: many short runs side by side, and a table of means and spreads"

#: What the default methods are: IncReg and the one-shot baseline that it has to beat.
METHODS = "Reg_Col", "L1_Col"
TABLE, RESULTS, ERROR = "compare.txt", "compare.json", "error.txt"


@dataclass(frozen=True)
class Task:
    """One run: the training of a seed's baseline (`method` ""), or its pruning."""

    seed: int
    method: str = ""
    speedup: float = 0.0

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{case(self.method, self.speedup)}_seed{self.seed}" if self.method else f"baseline_seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("name", metavar="NAME", nargs="?", default="convnet", help="the experiment (default convnet)")
    parser.add_argument("--data", metavar="PATH", help="where the experiment's data are; its README.md tells what is needed")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD",
                        help=f'as in increg reproduce, or "all" (default {" ".join(METHODS)})')
    parser.add_argument("--speedups", nargs="+", type=float, default=[4.0], metavar="X",
                        help="of the convolutions, by multiply-adds (default 4)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default 1 2 3")
    parser.add_argument("--iterations", type=int, default=10000,
                        help="of the baselines' training; pruning is shortened in proportion (default 10000)")
    parser.add_argument("--shorten", type=int, metavar="F",
                        help="shorten pruning and retraining F times instead, with penalties F times as large")
    parser.add_argument("--judges", type=int, metavar="N",
                        help="so many of the test images judge retraining; the results are of all of them (default all)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, which all runs share (default cpu)")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--out", metavar="DIR", default="runs/compare", help="default runs/compare")
    parser.add_argument("--cache", metavar="DIR", help="where the decoded data go (default DIR/data)")


def run(args: argparse.Namespace) -> None:
    """The command."""
    experiment = experiments.load(args.name)
    known = experiment.methods()
    methods = list(known) if args.methods == ["all"] else args.methods
    for method in methods:
        experiment.solver(method)
    if not experiment.trains:
        raise CaffeError(f"{experiment.name} does not train its weights itself; increg compare needs an experiment that does")
    for name in ("iterations", "shorten", "judges", "jobs"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise CaffeError(f"--{name} is {value}, expected 1 or more")
    try:
        torch.empty(0, device=args.device)
    except RuntimeError as error:
        raise CaffeError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    out = Path(args.out).resolve()
    data = Path(args.cache).resolve() if args.cache else out / "data"
    settings = {"experiment": experiment.name, "iterations": args.iterations, "shorten": args.shorten, "judges": args.judges,
                "data": args.data}
    _claim(out, settings)
    make_data(experiment, args.data, data)
    derived = out / experiment.name
    make_experiment(experiment, data, derived, args.iterations, args.speedups, shorten=args.shorten, judges=args.judges)
    tasks = [Task(seed) for seed in args.seeds]
    tasks += [Task(seed, method, speedup) for speedup in args.speedups for seed in args.seeds for method in methods]
    failed = Runner(tasks, out, derived, args.device, args.jobs, args.minutes).run()
    rows = summary(out, tasks)
    write_note(out / RESULTS, {**settings, "rows": rows, "runs": {task.name: _result(out / task.name) for task in tasks}})
    text = table(rows)
    with replacing(out / TABLE) as temporary:
        temporary.write_text(text + "\n")
    print(f"\n{text}\n\nIn {out}{os.sep}: {TABLE}, {RESULTS}, and a folder of each run")
    if failed:
        raise CaffeError(f"{len(failed)} runs failed: {', '.join(failed)}; see {ERROR} or {LOG} in each one's folder")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Notes in `out` what is compared there; complains if it is something else."""
    path = out / NOTE
    if path.exists() and json.loads(path.read_text()) != settings:
        raise CaffeError(f"{out}: holds a comparison of other settings; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_note(path, settings)


class Runner:
    """Runs tasks in processes of their own, `jobs` at a time; a seed's pruning waits for its baseline."""

    def __init__(self, tasks: Sequence[Task], out: Path, experiment: Path, device: str, jobs: int,
                 minutes: float | None) -> None:
        self.todo = [task for task in tasks if not _result(out / task.name)]
        self.total = len(tasks)
        self.out, self.experiment, self.device, self.jobs = out, experiment, device, jobs
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.running: dict[Task, tuple[Any, Any]] = {}
        self.failed: list[str] = []

    def run(self) -> list[str]:
        """Runs all; returns the names of those that failed. At the deadline, or Ctrl-C, or SIGTERM, runs stop with a
        snapshot."""
        context = get_context("spawn")  # a forked process could not use CUDA
        terminates = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while (self.todo or self.running) and time.monotonic() < self.deadline:
                for task in self._ready():
                    self.todo.remove(task)
                    self.running[task] = _start(context, task, self.out, self.experiment, self.device)
                self._reap()
                if not self.running and not any(self._ready()):
                    break  # what is left waits for a baseline that failed
                time.sleep(0.1)
        finally:
            for process, listens in self.running.values():
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT if listens.is_set() else signal.SIGTERM)
            for process, _ in self.running.values():
                process.join()
            self._reap()
            signal.signal(signal.SIGTERM, terminates)
        return self.failed

    def _ready(self) -> Iterator[Task]:
        able = [task for task in self.todo if not task.method or _result(self.out / Task(task.seed).name)]
        return iter(able[:max(0, self.jobs - len(self.running))])

    def _reap(self) -> None:
        for task, (process, _) in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[task]
            result = _result(self.out / task.name)
            if not result and process.exitcode not in STOPPED:
                self.failed.append(task.name)
            done = self.total - len(self.todo) - len(self.running)
            print(f"{done:4}/{self.total}  {task.name:32}{_words(result)}", flush=True)


def _words(result: dict[str, Any]) -> str:
    if not result:
        return "stopped or failed"
    if "speedup" not in result:
        return f"{100 * result['accuracy_before']:.2f} %  {result['seconds']['training']:.0f} s"
    return (f"{100 * result['accuracy_before']:.2f} -> {100 * result['accuracy_after']:.2f} %  {result['speedup']:.2f}x  "
            f"{result['seconds']['pruning']:.0f} s")


#: The exit statuses of a run that was told to stop: by SIGINT, with a snapshot; by SIGTERM, before it had begun.
INTERRUPTED = 130
STOPPED = INTERRUPTED, -signal.SIGTERM


def _start(context: Any, task: Task, out: Path, experiment: Path, device: str) -> tuple[Any, Any]:
    """The process of a task, and an event that tells when it can be told to stop: before, SIGINT is ignored in it."""
    listens = context.Event()
    process = context.Process(target=work, args=(asdict(task), str(out), str(experiment), device, listens))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process, listens


def work(task: dict[str, Any], out: str, experiment: str, device: str, listens: Any) -> None:
    """One run, in a process of its own. Leaves `run.json` with a result, or `error.txt`."""
    job = Task(**task)
    folder = Path(out) / job.name
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    from . import plugin  # noqa: F401  (what `caffe-compat` does for its commands)

    baseline = Path(out) / Task(job.seed).name / BASELINE
    loaded = experiments.load(experiment)
    plan = {"experiment": loaded.name, "method": case(job.method, job.speedup) if job.method else loaded.main_method(),
            "data": None, "weights": str(baseline) if job.method else None, "seed": job.seed, "quick": False,
            "as_reference": False}
    (folder / ERROR).unlink(missing_ok=True)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        listens.set()
        with chdir(folder), log_to(LOG):
            current = Run(loaded, plan, torch.device(device), folder, sys.stdout, page=False)
            if job.method:
                current.run()
            else:
                current.prepare()
                current.train()
                accuracy = min(current.accuracies(BASELINE).values())
                write_note(NOTE, {"plan": plan, "result": {"accuracy_before": accuracy, "seconds": current.seconds}})
            shutil.rmtree(SNAPSHOTS)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BaseException as error:
        (folder / ERROR).write_text(str(error) if isinstance(error, CaffeError) else traceback.format_exc())
        sys.exit(1)


def _result(folder: Path) -> dict[str, Any]:
    """What came of a run; empty if it is not finished."""
    try:
        return json.loads((folder / NOTE).read_text()).get("result", {})
    except FileNotFoundError:
        return {}


def summary(out: Path, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """For each method and speedup: over the seeds that are finished, means and standard deviations, in percent."""
    cases = dict.fromkeys((task.speedup, task.method) for task in tasks if task.method)
    rows = []
    for speedup, method in cases:
        found = [_result(out / task.name) for task in tasks if (task.speedup, task.method) == (speedup, method)]
        found = [result for result in found if result]
        if not found:
            continue
        row: dict[str, Any] = {"method": method, "target": speedup, "seeds": len(found)}
        for name, values in {
                "before": [100 * result["accuracy_before"] for result in found],
                "after": [100 * result["accuracy_after"] for result in found],
                "change": [100 * (result["accuracy_after"] - result["accuracy_before"]) for result in found],
                "speedup": [result["speedup"] for result in found],
                "seconds": [result["seconds"]["pruning"] for result in found]}.items():
            row[name] = round(mean(values), 3)
            row[f"{name}_sd"] = round(stdev(values), 3) if len(values) > 1 else None
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `summary` as text: accuracies in percent, mean +- standard deviation over the seeds."""
    head = f"{'target':>7}  {'method':16}{'seeds':>5}{'before':>16}{'after':>16}{'change':>16}{'speedup':>16}{'seconds':>9}"
    lines = [head]
    for row in sorted(rows, key=lambda row: (row["target"], -row["after"])):
        cells = "".join(f"{_spread(row, name):>16}" for name in ("before", "after", "change", "speedup"))
        lines.append(f"{row['target']:>6g}x  {row['method']:16}{row['seeds']:>5}{cells}{row['seconds']:>9.0f}")
    return "\n".join(lines)


def _spread(row: dict[str, Any], name: str) -> str:
    spread = row[f"{name}_sd"]
    return f"{row[name]:.2f}" + ("" if spread is None else f" +- {spread:.2f}")
