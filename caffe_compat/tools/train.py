"""`caffe-compat train`: trains or finetunes a model, obeying SIGINT and SIGHUP."""

from __future__ import annotations

import argparse
import logging

from .. import plugins
from ..errors import SolverError
from ..solver.actions import on_signals, parse_action
from .flags import add_python_flag, device_of, flag

log = logging.getLogger(__name__)

HELP = "train or finetune a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Caffe's flags, and --as-reference for plug-ins."""
    flag(parser, "solver", required=True, help="the solver definition (prototxt)")
    flag(parser, "weights", help="pretrained weights to start from, separated by commas")
    flag(parser, "snapshot", help="a .solverstate to resume from")
    parser.add_argument("--skip-data", action="store_true",
                        help="with a snapshot that Caffe wrote, which does not tell where the data were: begin after what its "
                             "iterations read, not at the first item as Caffe does")
    flag(parser, "gpu", help="the GPU to run on; without it solver_mode and device_id decide")
    flag(parser, "sigint_effect", default="stop", help="on SIGINT: stop (with a snapshot), snapshot or none")
    flag(parser, "sighup_effect", default="snapshot", help="on SIGHUP: stop, snapshot or none")
    add_python_flag(parser)
    parser.add_argument("--as-reference", action="store_true",
                        help="for comparing with recorded runs: follow the defects of the reference implementation of a "
                             "pruning method (see the increg package) and Caffe's own arithmetic")


def run(args: argparse.Namespace) -> None:
    """Trains to max_iter."""
    if args.snapshot and args.weights:
        raise SolverError("give a snapshot to resume training or weights to finetune, but not both")
    if args.skip_data and not args.snapshot:
        raise SolverError("--skip-data goes with --snapshot: there are no iterations whose data could be skipped")
    interrupt = parse_action(args.sigint_effect, "--sigint_effect")
    hangup = parse_action(args.sighup_effect, "--sighup_effect")
    solver = plugins.create_solver(args.solver, as_reference=args.as_reference, device=device_of(args.gpu), keep_blobs=False)
    if args.weights:
        solver.load_weights(args.weights)
    log.info("Starting Optimization")
    with on_signals(solver.actions, interrupt, hangup):
        solver.solve(args.snapshot, skip_data=args.skip_data)
    log.info("Optimization Done.")
