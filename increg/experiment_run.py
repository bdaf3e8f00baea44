"""`Run`: one run of an experiment in a folder of its own: data, training, pruning with retraining, and what came of it."""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import torch

from caffe_compat import Solver, create_solver, proto
from caffe_compat.errors import SolverError
from caffe_compat.net import Net
from caffe_compat.solver.actions import on_signals

from . import datasets
from .accuracy import accuracy_outputs
from .experiments import Experiment
from .hook import PruneHook
from .outcome import Outcome, comparison
from .progress import Narrator, Progress, describe
from .quick import hurry_net, hurry_solver, plain_training
from .record import Recorder, Row
from .report import write_report
from .runfolder import (
    BASELINE,
    BASELINE_SOLVER,
    DEPLOY,
    HISTORY,
    LOG,
    NOTE,
    PAGE,
    PRUNED,
    RECORD,
    SNAPSHOTS,
    SOLVER,
    TRAINING,
    add_history,
    write_note,
)


class Run:
    """One run, in the working folder, which messages call `folder`; what a user is to see goes to `out`.

    `plan` are the fields of `reproduce.Plan`; `listeners` get every row of the records; `page` says whether to draw a page.
    """

    def __init__(self, experiment: Experiment, plan: dict[str, Any], device: torch.device, folder: Path, out: TextIO,
                 listeners: Sequence[Callable[[Row], None]] = (), page: bool = True) -> None:
        self.experiment = experiment
        self.plan = plan
        self.device = device
        self.folder = folder
        self.out = out
        self.listeners = listeners
        self.page = page
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """All of it, or what is left of it."""
        self.prepare()
        if not os.path.exists(BASELINE):
            self.train()
        before = self.accuracies(BASELINE)
        self.say(f"Accuracy before pruning: {_percent(before)} %")
        self.prune(before)

    def prepare(self) -> None:
        """Copies the prototxts, with the changes that were asked for, and makes the databases."""
        os.makedirs(SNAPSHOTS, exist_ok=True)
        source, quick = self.experiment.folder, self.plan["quick"]
        solver = proto.read_text(self.experiment.solver(self.plan["method"]), "SolverParameter").message
        if self.experiment.trains:
            baseline = proto.read_text(source / BASELINE_SOLVER, "SolverParameter").message
        elif quick and not self.plan["weights"]:
            baseline = plain_training(solver)
        else:
            baseline = None
        for name, prefix, message in ((BASELINE_SOLVER, "baseline", baseline), (SOLVER, "pruned", solver)):
            if message is None:
                continue
            message.snapshot_prefix = f"{SNAPSHOTS}/{prefix}"
            message.ClearField("solver_mode")  # --gpu decides
            if self.plan["seed"] is not None:
                message.random_seed = self.plan["seed"]
            if quick:
                hurry_solver(message, self.experiment.quick)
            self._copy_net(message.net)
            proto.write_text(name, message)
        shutil.copyfile(source / DEPLOY, DEPLOY)
        if quick and self.plan["data"] is None:
            datasets.stand_in(self.experiment.data, ".", self.experiment.quick.images)
        else:
            datasets.provide(self.experiment.data, self.plan["data"], ".")

    def _copy_net(self, name: str) -> None:
        if self.plan["quick"]:
            net = proto.read_text(self.experiment.folder / name, "NetParameter").message
            proto.write_text(name, hurry_net(net, self.experiment.quick, new=not self.plan["weights"]))
        else:
            shutil.copyfile(self.experiment.folder / name, name)

    def train(self) -> None:
        """Leaves the weights to prune in BASELINE: those that were given, or newly trained ones."""
        weights = self.plan["weights"]
        if weights:
            Net(DEPLOY).copy_from(weights)  # complains if they belong to another net
            shutil.copyfile(weights, f"{BASELINE}.partial")
            os.replace(f"{BASELINE}.partial", BASELINE)
            return
        solver = Solver(BASELINE_SOLVER, device=self.device, keep_blobs=False)
        total = solver.param.max_iter
        solver.add_hook(Recorder(None, TRAINING, listeners=[check_loss]))
        solver.add_hook(Progress("training", total, lambda solver: f"loss {float(solver.net.loss):.4f}", self.out))
        self.solve(solver, "training", "baseline")
        if solver.iter < total:
            self.interrupted(solver, "Training")
        solver.net.save(BASELINE)
        self.say(f"Trained for {total} iterations in {self.seconds['training']:.0f} s")

    def prune(self, before: dict[str, float]) -> None:
        """Leaves the pruned and retrained weights in PRUNED, what happened on the way in RECORD, and reports."""
        solver = create_solver(SOLVER, as_reference=self.plan["as_reference"], device=self.device, keep_blobs=False)
        hook = next(hook for hook in solver.hooks if isinstance(hook, PruneHook))
        solver.add_hook(Recorder(hook, RECORD, listeners=[*self.listeners, check_loss]))
        solver.add_hook(Progress("pruning", None, lambda solver: describe(hook), self.out))
        solver.add_hook(Narrator(hook, self.say))
        solver.load_weights(BASELINE)
        self.solve(solver, "pruning", "pruned")
        if not hook.stages.now.done and solver.iter < solver.param.max_iter:
            self.interrupted(solver, "Pruning")
        solver.net.save(PRUNED)
        self.say(f"Pruned and retrained in {self.seconds['pruning']:.0f} s\n")
        self.report(Outcome.of(hook.layers, min(before.values()), min((after := self.accuracies(PRUNED)).values())),
                    before, after, solver.param)

    def report(self, outcome: Outcome, before: dict[str, float], after: dict[str, float], param: Any) -> None:
        """The tables on the screen, the page, and a note that the run is finished."""
        seed = f"seed {param.random_seed}" if param.random_seed >= 0 else "no seed"
        measured = {"what": f"this run{', quick' if self.plan['quick'] else ''}", "before": _percent(before),
                    "speedup": f"{outcome.budget.speedup:.3f}x", "after": _percent(after),
                    "source": f"{seed}, {datetime.now(UTC):%Y-%m-%d}, {self.device.type}, torch {torch.__version__}"}
        published = [
            {"what": entry.what or "published", "before": entry.before, "speedup": entry.speedup, "after": entry.after,
             "source": entry.source}
            for entry in self.experiment.published if entry.method == self.plan["method"]]
        lines = [*published, measured]
        result = {"method": param.prune_method, **outcome.to_json(), "accuracies": {"before": before, "after": after},
                  "seconds": self.seconds, "published": lines}
        write_note(NOTE, {"plan": self.plan, "result": result})
        self.say(outcome.table())
        if published:
            self.say(f"\n{comparison(lines)}")
        if self.page:
            write_report(Path("."))
        self.say(f"\nIn {self.folder}{os.sep}: the pruned weights {PRUNED} (for {DEPLOY}), "
                 f"{f'{PAGE} to look at, ' if self.page else ''}"
                 f"the numbers behind it {RECORD}, Caffe's log {LOG}")

    # -- helpers ------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, file=self.out, flush=True)

    def solve(self, solver: Solver, title: str, prefix: str) -> None:
        """Trains to the end, from the newest snapshot if there is one; Ctrl-C stops with a snapshot."""
        begin = time.monotonic()
        snapshots = glob.glob(f"{SNAPSHOTS}/{prefix}_iter_*.solverstate")
        newest = max(snapshots, key=os.path.getmtime, default=None)
        if newest is not None:
            self.say(f"Going on from {newest}")
        place = {"device": _name(self.device), "torch": torch.__version__, "threads": torch.get_num_threads()}
        add_history(HISTORY, what=f"{title} {'begins' if newest is None else 'goes on'}", snapshot=newest or "", **place)
        try:
            with on_signals(solver.actions):
                solver.solve(newest)
        finally:
            self.seconds[title] = round(time.monotonic() - begin, 1)
            add_history(HISTORY, what=f"{title} stops", iter=solver.iter, seconds=self.seconds[title])

    def interrupted(self, solver: Solver, what: str) -> None:
        """Says how to go on, and ends the command."""
        self.say(f"{what} was stopped after iteration {solver.iter}; a snapshot is in "
                 f"{self.folder / SNAPSHOTS}{os.sep}. Give the same command again to go on.")
        raise KeyboardInterrupt

    def accuracies(self, weights: str) -> dict[str, float]:
        """The accuracies (top-1, and top-5 if the net has it) of a weights file over test_iter batches."""
        param = proto.read_text(SOLVER, "SolverParameter").message
        net = Net(param.net, "TEST", device=self.device, keep_blobs=False)
        net.copy_from(weights)
        names = accuracy_outputs(net.outputs, param.accuracy_output)
        with torch.no_grad():
            scores = [torch.stack([net.forward()[name].reshape(()) for name in names]) for _ in range(param.test_iter[0])]
        return dict(zip(names, torch.stack(scores).mean(0).tolist()))


def check_loss(row: Row) -> None:
    """Raises `SolverError` if a sample of a record has a loss that is not a number: Caffe's Accuracy takes such outputs for
    right answers, so that the run would end with 100 %. Tests may have one: BatchNorm has no statistics before it has
    trained."""
    if row["what"] == "sample" and not isfinite(row["loss"]):
        raise SolverError(f"training has diverged: the loss is {row['loss']} at iteration {row['iter']}; start from other "
                          "weights, or lower the solver's base_lr")


def _percent(accuracies: dict[str, float]) -> str:
    """In percent, top-1 first, as the papers write them."""
    return "/".join(f"{100 * value:.2f}" for value in sorted(accuracies.values()))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
