"""`increg reproduce`: runs an experiment, from its data to the table of published and measured numbers.

The run's folder becomes the working folder meanwhile. It gets copies of the experiment's prototxts, the databases and
the snapshots, so `caffe-compat train --solver=solver.prototxt --weights=baseline.caffemodel` repeats the pruning there
by hand. A run that was stopped goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from caffe_compat.errors import CaffeError, DataError
from caffe_compat.tools.flags import device_of

from . import experiments
from .datasets import check_source
from .experiment_run import Run
from .runfolder import LOG, log_to, open_folder

HELP = "run an experiment of the papers, and compare with the published numbers"

#: The packages of the extra `demo`, and the modules in them.
EXTRAS = {"matplotlib": "matplotlib", "scikit-learn": "sklearn"}


@dataclass(frozen=True)
class Plan:
    """What is run: an experiment, the data and weights it starts from, and what is changed in its solvers.

    data: None for digits, at hand everywhere; seed: for the first weights, None for the solver's random_seed
    """

    experiment: str
    method: str
    data: str | None = None
    weights: str | None = None
    seed: int | None = None
    quick: bool = False
    as_reference: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("name", nargs="?", metavar="NAME",
                        help="the experiment, or the folder of one; without it all there are, and their methods, are listed")
    parser.add_argument("--data", metavar="PATH", help="where the experiment's data are; its README.md tells what is needed")
    parser.add_argument("--method", help="prune with this method instead of the experiment's own")
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every run has."""
    parser.add_argument("--out", metavar="DIR", help="the folder of the run (default runs/NAME, numbered if that is taken)")
    parser.add_argument("--weights", metavar="FILE",
                        help="start from these trained weights (.caffemodel) instead of training")
    parser.add_argument("--seed", type=int, help="for the first weights, instead of the solver's random_seed")
    parser.add_argument("--gpu", help="the GPU to run on; without it the CPU")
    parser.add_argument("--quick", action="store_true", help="a minutes-long version: shows that all works, not how well; "
                        "without the experiment's data it takes scikit-learn's digits")
    parser.add_argument("--as-reference", action="store_true",
                        help="follow the defects of the reference implementation; see the increg package")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs while running, too")


def run(args: argparse.Namespace, folder_name: str | None = None) -> None:
    """The command. `folder_name` is that of the default folder, if it is not the experiment's."""
    if args.name is None:
        list_experiments()
        return
    missing = [name for name, module in EXTRAS.items() if not find_spec(module)]
    if missing:
        raise CaffeError(f'this needs {" and ".join(missing)}: pip install "caffe-compat[demo]"')
    experiment = experiments.load(args.name)
    chosen = device_of(args.gpu) or torch.device("cpu")
    data, weights = (None if path is None else os.path.abspath(path) for path in (args.data, args.weights))
    plan = Plan(experiment.name, args.method or experiment.main_method(), data, weights, args.seed, args.quick,
                args.as_reference)
    check_inputs(plan, experiment)
    folder = open_folder(args.out, asdict(plan), folder_name or experiment.name)
    out = sys.stdout
    print(f"Everything goes to {folder}{os.sep}", file=out, flush=True)
    listeners = []
    with chdir(folder), log_and_threads(experiment.threads):
        if args.tensorboard:
            from .tensorboard import FOLDER, Logs

            listeners.append(Logs(f"{FOLDER}/pruning").add)
        Run(experiment, asdict(plan), chosen, folder, out, listeners).run()


def check_inputs(plan: Plan, experiment: experiments.Experiment) -> None:
    """Complains about whatever is missing before anything is made."""
    experiment.solver(plan.method)
    if not (plan.quick and plan.data is None):
        check_source(experiment.data, plan.data)
    if plan.weights and not os.path.isfile(plan.weights):
        raise DataError(f"{plan.weights}: there is no such file; --weights names a trained .caffemodel")
    if not (plan.weights or plan.quick or experiment.trains):
        raise DataError(f"{experiment.name} starts from trained weights: --weights names {experiment.weights}")


@contextmanager
def log_and_threads(threads: int) -> Iterator[None]:
    """Caffe's log goes to LOG; `threads` of the CPU are used, 0 for as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with log_to(LOG):
            yield
    finally:
        torch.set_num_threads(before)


def list_experiments() -> None:
    """Prints what there is to run."""
    for name in experiments.names():
        experiment = experiments.load(name)
        needs: list[Any] = [experiment.data, *([] if experiment.trains else ["trained weights"])]
        print(f"{name:12}{experiment.title}; needs {' and '.join(needs)}\n{'':12}methods: {', '.join(experiment.methods())}")
