"""The `increg` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from caffe_compat.cli import Parser
from caffe_compat.cli import run as run_command

from . import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = Parser("increg", description="Incremental regularization: prunes Caffe networks while they train.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    command = commands.add_parser("demo", help=demo.HELP, description=demo.HELP)
    demo.add_arguments(command)
    command.set_defaults(run=demo.run, log_level=logging.WARNING)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
