"""`increg demo`: the shortest way to see a whole pruning run. It is `increg reproduce digits`, or, with MNIST, `lenet5`."""

from __future__ import annotations

import argparse

from . import reproduce

HELP = "train, prune and retrain a small network on real data, and report what came of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("--mnist", metavar="DIR", dest="data", help="run the reference's LeNet-5 experiment on MNIST, whose "
                        "four IDX files are in DIR, instead of scikit-learn's digits")
    reproduce.add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """The command."""
    args.name, args.method = "lenet5" if args.data else "digits", None
    reproduce.run(args, "demo")
