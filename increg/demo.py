"""`increg demo`: a whole pruning run on real data, in a folder of its own: train, prune, retrain, and report.

The run's folder becomes the working folder meanwhile. It gets copies of the experiment's prototxts, the databases and
the snapshots, so `caffe-compat train --solver=solver.prototxt --weights=baseline.caffemodel` repeats the pruning there
by hand. A run that was stopped goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import torch

from caffe_compat import Solver, create_solver, proto
from caffe_compat.errors import CaffeError, DataError
from caffe_compat.net import Net
from caffe_compat.solver.actions import on_signals
from caffe_compat.tools.flags import device_of

from . import experiments
from .config import prune_method
from .hook import PruneHook
from .plots import plot_punishments
from .progress import Narrator, Progress, describe
from .record import Recorder, read_record
from .report import Outcome
from .runfolder import DEFAULT, NOTE, log_to, open_folder, write_note

HELP = "train, prune and retrain a network on real data, and report what came of it"

#: The files of a run.
BASELINE, PRUNED, DEPLOY = "baseline.caffemodel", "pruned.caffemodel", "deploy.prototxt"
NET, BASELINE_SOLVER, SOLVER = "train_val.prototxt", "solver_baseline.prototxt", "solver.prototxt"
LOG, RECORD, PLOT, SNAPSHOTS = "log.txt", "record.jsonl", "punishments.png", "snapshots"
#: The packages of the extra `demo`, and the modules in them.
EXTRAS = {"matplotlib": "matplotlib", "scikit-learn": "sklearn"}
#: What --quick divides the iterations by.
QUICK = 10


@dataclass(frozen=True)
class Plan:
    """What is run: an experiment, the data and weights it starts from, and what is changed in its solvers."""

    experiment: str
    mnist: str | None
    weights: str | None
    seed: int | None
    quick: bool
    as_reference: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("--out", metavar="DIR",
                        help=f"the folder of the run (default {DEFAULT}, numbered if that is taken)")
    parser.add_argument("--mnist", metavar="DIR", help="run the reference's LeNet-5 experiment on MNIST, whose four "
                        "IDX files are in DIR, instead of scikit-learn's digits")
    parser.add_argument("--weights", metavar="FILE",
                        help="start from these trained weights (.caffemodel) instead of training")
    parser.add_argument("--seed", type=int, help="for the first weights, instead of the solver's random_seed")
    parser.add_argument("--gpu", help="the GPU to run on; without it the CPU")
    parser.add_argument("--quick", action="store_true",
                        help=f"1/{QUICK} of the iterations: shows that all works, not how well")
    parser.add_argument("--as-reference", action="store_true",
                        help="follow the defects of the reference implementation; see the increg package")


def run(args: argparse.Namespace) -> None:
    """The command."""
    missing = [name for name, module in EXTRAS.items() if not find_spec(module)]
    if missing:
        raise CaffeError(f'the demonstration needs {" and ".join(missing)}: pip install "caffe-compat[demo]"')
    chosen = device_of(args.gpu) or torch.device("cpu")
    mnist, weights = (None if path is None else os.path.abspath(path) for path in (args.mnist, args.weights))
    plan = Plan("lenet5" if mnist else "digits", mnist, weights, args.seed, args.quick, args.as_reference)
    _check_inputs(plan)
    folder = open_folder(args.out, asdict(plan))
    out = sys.stdout
    print(f"Everything goes to {folder}{os.sep}", file=out, flush=True)
    with chdir(folder), log_to(LOG), _one_thread():
        os.makedirs(SNAPSHOTS, exist_ok=True)
        Demo(plan, chosen, folder, out).run()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread is enough for these small nets, and gives the same sums, so the same results, on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_inputs(plan: Plan) -> None:
    """Complains about missing files before anything is made."""
    if plan.mnist:
        for files in experiments.MNIST_FILES.values():
            for name in files:
                experiments.find_idx(plan.mnist, name)
    if plan.weights and not os.path.isfile(plan.weights):
        raise DataError(f"{plan.weights}: there is no such file; --weights names a trained .caffemodel")


class Demo:
    """One run, in the working folder, which messages call `folder`; what a user is to see goes to `out`."""

    def __init__(self, plan: Plan, device: torch.device, folder: Path, out: TextIO) -> None:
        self.plan = plan
        self.device = device
        self.folder = folder
        self.out = out
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """All of it, or what is left of it."""
        self.prepare()
        if not os.path.exists(BASELINE):
            self.train()
        before = self.accuracy(BASELINE)
        self.say(f"Accuracy before pruning: {100 * before:.2f} %")
        outcome = self.prune(before)
        self.report(outcome)

    def prepare(self) -> None:
        """Copies the prototxts, with the changes that were asked for, and makes the databases."""
        source = experiments.folder(self.plan.experiment)
        for name in (NET, DEPLOY):
            shutil.copyfile(source / name, name)
        for name, prefix in ((BASELINE_SOLVER, "baseline"), (SOLVER, "pruned")):
            message = proto.read_text(source / name, "SolverParameter").message
            message.snapshot_prefix = f"{SNAPSHOTS}/{prefix}"
            if self.plan.seed is not None:
                message.random_seed = self.plan.seed
            if self.plan.quick:
                _hurry(message)
            proto.write_text(name, message)
        if self.plan.mnist:
            experiments.make_mnist(self.plan.mnist, ".")
        else:
            experiments.make_digits(".")

    def train(self) -> None:
        """Leaves the weights to prune in BASELINE: those that were given, or newly trained ones."""
        if self.plan.weights:
            Net(DEPLOY).copy_from(self.plan.weights)  # complains if they belong to another net
            shutil.copyfile(self.plan.weights, f"{BASELINE}.partial")
            os.replace(f"{BASELINE}.partial", BASELINE)
            return
        solver = Solver(BASELINE_SOLVER, device=self.device, keep_blobs=False)
        total = solver.param.max_iter
        solver.add_hook(Progress("training", total, lambda solver: f"loss {float(solver.net.loss):.4f}", self.out))
        self.solve(solver, "training", "baseline")
        if solver.iter < total:
            self.interrupted(solver, "Training")
        solver.net.save(BASELINE)
        self.say(f"Trained for {total} iterations in {self.seconds['training']:.0f} s")

    def prune(self, before: float) -> Outcome:
        """Leaves the pruned and retrained weights in PRUNED, and what happened on the way in RECORD."""
        solver = create_solver(SOLVER, as_reference=self.plan.as_reference, device=self.device, keep_blobs=False)
        hook = next(hook for hook in solver.hooks if isinstance(hook, PruneHook))
        solver.add_hook(Recorder(hook, RECORD))
        solver.add_hook(Progress("pruning", None, lambda solver: describe(hook), self.out))
        solver.add_hook(Narrator(hook, self.say))
        solver.load_weights(BASELINE)
        self.solve(solver, "pruning", "pruned")
        if not hook.stages.now.done:
            self.interrupted(solver, "Pruning")
        solver.net.save(PRUNED)
        self.say(f"Pruned and retrained in {self.seconds['pruning']:.0f} s\n")
        return Outcome.of(hook.layers, before, self.accuracy(PRUNED))

    def report(self, outcome: Outcome) -> None:
        """The table on the screen, the plot, and a note that the run is finished."""
        rows = read_record(RECORD)
        plot_punishments(rows, PLOT, outcome.accuracy_before)
        self.say(outcome.table())
        self.say(f"\nIn {self.folder}{os.sep}: the pruned weights {PRUNED} (for {DEPLOY}), the plot {PLOT}, "
                 f"the numbers behind it {RECORD}, Caffe's log {LOG}")
        write_note(NOTE, {"plan": asdict(self.plan), "result": {**outcome.to_json(), "seconds": self.seconds}})

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
        with on_signals(solver.actions):
            solver.solve(newest)
        self.seconds[title] = round(time.monotonic() - begin, 1)

    def interrupted(self, solver: Solver, what: str) -> None:
        """Says how to go on, and ends the command."""
        self.say(f"{what} was stopped after iteration {solver.iter}; a snapshot is in "
                 f"{self.folder / SNAPSHOTS}{os.sep}. Give the same command again to go on.")
        raise KeyboardInterrupt

    def accuracy(self, weights: str) -> float:
        """The accuracy of a weights file over the whole test set."""
        batches = proto.read_text(SOLVER, "SolverParameter").message.test_iter[0]
        net = Net(NET, "TEST", device=self.device, keep_blobs=False)
        net.copy_from(weights)
        with torch.no_grad():
            scores = [net.forward()["accuracy"] for _ in range(batches)]
        return float(torch.stack(scores).mean())


def _hurry(message: Any) -> None:
    """A tenth of the iterations, and punishments that grow ten times as fast."""
    if prune_method(message) == "None":
        message.max_iter //= QUICK
        message.test_interval = message.max_iter
    else:
        message.AA *= QUICK
        message.losseval_interval //= QUICK
        message.retrain_test_interval //= QUICK
