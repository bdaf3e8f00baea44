"""The `increg` command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from caffe_compat.cli import Parser
from caffe_compat.cli import run as run_command

#: The commands, and their modules in this package.
COMMANDS = {"demo": "demo", "reproduce": "reproduce", "compare": "compare", "report": "report", "slim": "slim.command",
            "budget": "show_budget", "coupling": "show_coupling", "sensitivity": "sensitivity"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = Parser("increg", description="Incremental regularization: prunes Caffe networks while they train.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    for name, home in COMMANDS.items():
        module = import_module(f".{home}", __package__)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run, log_level=logging.WARNING)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
