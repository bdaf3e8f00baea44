"""The `caffe-compat` command: Caffe's tools with Caffe's flags. One function a command; errors of ours end with status 1."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import torch

from . import log as logs
from . import plugins
from .errors import CaffeError, SolverError, did_you_mean
from .net import Net
from .solver.actions import on_signals, parse_action

log = logging.getLogger(__name__)

#: Tools that are modules of `caffe_compat.tools`: each has HELP, add_arguments(parser) and run(args).
TOOLS = ("convert_mnist_data", "convert_cifar_data")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return run(_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses and carries out: 0 when all went well, 1 (and one line on stderr) for an error of ours."""
    args = parser.parse_args(argv)
    if getattr(args, "show_log", True):
        logs.show()
    try:
        args.run(args)
    except CaffeError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests the command that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Prints usage and the error, exits with status 1 as all errors do."""
        if "invalid choice" in message and self._subparsers is not None:
            commands = [name for action in self._subparsers._group_actions for name in action.choices]
            word = message.split("'")[1] if "'" in message else ""
            message += did_you_mean(word, commands)
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("caffe-compat", description="Caffe on PyTorch.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)

    train_parser = commands.add_parser("train", help="train or finetune a model")
    flag(train_parser, "solver", required=True, help="the solver definition (prototxt)")
    flag(train_parser, "weights", help="pretrained weights to start from, separated by commas")
    flag(train_parser, "snapshot", help="a .solverstate to resume from")
    flag(train_parser, "gpu", help="the GPU to run on; without it solver_mode and device_id decide")
    flag(train_parser, "sigint_effect", default="stop", help="on SIGINT: stop (with a snapshot), snapshot or none")
    flag(train_parser, "sighup_effect", default="snapshot", help="on SIGHUP: stop, snapshot or none")
    train_parser.add_argument("--as-reference", action="store_true",
                              help="follow the defects of the reference implementation (pruning); see the increg package")
    train_parser.set_defaults(run=train)

    test_parser = commands.add_parser("test", help="score a model")
    flag(test_parser, "model", required=True, help="the network definition (prototxt)")
    flag(test_parser, "weights", required=True, help="the weights to score")
    flag(test_parser, "iterations", type=int, default=50, help="how many batches to run (default 50)")
    flag(test_parser, "gpu", help="the GPU to run on; without it the CPU")
    flag(test_parser, "level", type=int, help="the level of the NetState")
    flag(test_parser, "stage", default="", help="stages of the NetState, separated by commas")
    test_parser.set_defaults(run=test)

    for name in TOOLS:
        module = import_module(f".tools.{name}", __package__)
        tool = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(tool)
        tool.set_defaults(run=module.run)
    return parser


def flag(parser: argparse.ArgumentParser, name: str, **options: object) -> None:
    """Adds `--name`, also as `-name`, which Caffe's tools accept."""
    parser.add_argument(f"--{name}", f"-{name}", dest=name, **options)


def device(gpu: str | None) -> torch.device | None:
    """The device that a --gpu flag names, None for none."""
    if gpu is None:
        return None
    if not torch.cuda.is_available():
        raise SolverError(f"--gpu={gpu}: no CUDA device is available; leave --gpu out to run on the CPU")
    if not gpu.isdigit() or int(gpu) >= torch.cuda.device_count():
        raise SolverError(f"--gpu={gpu}: expected one number below {torch.cuda.device_count()}; "
                          "training on several GPUs at once is not supported")
    return torch.device("cuda", int(gpu))


def train(args: argparse.Namespace) -> None:
    """`caffe-compat train`: trains to max_iter, obeying SIGINT and SIGHUP."""
    if args.snapshot and args.weights:
        raise SolverError("give a snapshot to resume training or weights to finetune, but not both")
    interrupt = parse_action(args.sigint_effect, "--sigint_effect")
    hangup = parse_action(args.sighup_effect, "--sighup_effect")
    solver = plugins.create_solver(args.solver, as_reference=args.as_reference, device=device(args.gpu), keep_diffs=False)
    if args.weights:
        solver.load_weights(args.weights)
    log.info("Starting Optimization")
    with on_signals(solver.actions, interrupt, hangup):
        solver.solve(args.snapshot)
    log.info("Optimization Done.")


@torch.no_grad()
def test(args: argparse.Namespace) -> None:
    """`caffe-compat test`: means of all outputs over `iterations` batches."""
    if args.iterations < 1:
        raise SolverError(f"--iterations={args.iterations}: expected 1 or more")
    stages = [stage for stage in args.stage.split(",") if stage]
    net = Net(args.model, "TEST", level=args.level, stages=stages, device=device(args.gpu) or "cpu", keep_diffs=False)
    for weights in args.weights.split(","):
        net.copy_from(weights.strip())
    log.info("Running for %d iterations.", args.iterations)
    totals: dict[str, torch.Tensor] = {}
    loss = torch.zeros((), device=net.device)
    for batch in range(args.iterations):
        for name, tensor in net.forward().items():
            totals[name] = totals[name] + tensor if name in totals else tensor
            for value in tensor.flatten().tolist():
                log.info("Batch %d, %s = %g", batch, name, value)
        loss = loss + net.loss
    log.info("Loss: %g", loss / args.iterations)
    for name, total in totals.items():
        weight = net.loss_weights.get(name)
        for value in (total.flatten() / args.iterations).tolist():
            log.info("%s = %g%s", name, value, f" (* {weight:g} = {weight * value:g} loss)" if weight else "")


if __name__ == "__main__":
    sys.exit(main())
