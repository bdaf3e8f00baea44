"""`caffe-compat upgrade_solver_proto_text`: rewrites an old solver definition (solver_type enum) in today's form."""

from __future__ import annotations

import argparse

from .upgrade_net_proto_text import add_arguments, upgrade_text

__all__ = ["HELP", "add_arguments", "run"]

HELP = "rewrite an old solver definition (prototxt) in today's form"


def run(args: argparse.Namespace) -> None:
    """Reads, upgrades, writes; logs what was changed."""
    upgrade_text(args.input, args.output, "SolverParameter")
