"""The `caffe-compat` command: Caffe's tools with Caffe's flags. Errors of ours end it with one line and status 1."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from . import plugins
from .errors import CaffeError, did_you_mean
from .log import show
from .memory import keep_freed_memory

#: The commands: modules of `caffe_compat.tools`.
COMMANDS = (
    "train", "test", "time", "device_query", "convert_mnist_data", "convert_cifar_data", "convert_imageset",
    "compute_image_mean", "extract_features", "draw_net", "upgrade_net_proto_text", "upgrade_net_proto_binary",
    "upgrade_solver_proto_text", "show", "explain", "layers", "convert", "check", "record",
)

#: The values that Caffe's flags take for true and false.
TRUE, FALSE = {"true", "t", "yes", "y", "1"}, {"false", "f", "no", "n", "0"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = Parser(prog="caffe-compat", description="Caffe on PyTorch.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    for name in COMMANDS:
        module = import_module(f".tools.{name}", __package__)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run, log_level=logging.WARNING if hasattr(module, "QUIET") else logging.INFO)
    return run(parser, argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses and carries out: 0 when all went well, 1 (and one line on stderr) for an error of ours."""
    args = parser.parse_args(argv)
    show(getattr(args, "log_level", logging.INFO))
    keep_freed_memory()
    try:
        plugins.load()  # a fork's dialects and layer types, for every command
        args.run(args)
        sys.stdout.flush()
    except CaffeError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left; nothing more can be written, nor flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes flags as Caffe's tools do, and ends errors with a word of advice and status 1.

    Flags have one dash or two. Those that are on or off may say so: --gray, --gray=true, --gray=false, --nogray.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Spells the flags as argparse knows them, and parses."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*self._spelled(words[:end]), *words[end:]], namespace)

    def _spelled(self, words: Sequence[str]) -> list[str]:
        flags = {flag[2:]: action for flag, action in self._option_string_actions.items() if flag.startswith("--")}
        switches = {name for name, action in flags.items() if action.nargs == 0 and name != "help"}
        spelled: list[str] = []
        for word in words:
            name, equals, value = word.lstrip("-").partition("=") if word.startswith("-") else ("", "", "")
            negated = name not in flags and name.startswith("no") and name[2:] in switches
            flag = f"--{name[2:] if negated else name}"
            if flag[2:] in switches:
                on = self._truth(word, value if equals else "true") != negated
                spelled = [other for other in spelled if other != flag] + [flag] * on  # the last word on it counts
            else:
                spelled.append(f"{flag}{equals}{value}" if name in flags else word)
        return spelled

    def _truth(self, word: str, value: str) -> bool:
        if value.lower() not in TRUE | FALSE:
            self.error(f"{word}: expected true or false")
        return value.lower() in TRUE

    def error(self, message: str) -> NoReturn:
        """Prints usage and the error."""
        if "invalid choice" in message and self._subparsers is not None:
            commands = [name for action in self._subparsers._group_actions for name in action.choices]
            word = message.split("'")[1] if "'" in message else ""
            message += did_you_mean(word, commands)
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
