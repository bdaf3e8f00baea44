"""`caffe-compat layers`: which layer types exist, where each is defined, and which message holds its settings."""

from __future__ import annotations

import argparse
import inspect
import os
import sys

from ..layers import LAYERS

QUIET = True
HELP = "list the layer types: blobs, settings, source file and line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names to list; all without."""
    parser.add_argument("type", nargs="*", help="layer types (default all); one alone is shown with its documentation")


def run(args: argparse.Namespace) -> None:
    """Prints a line a type, or all about one."""
    names = args.type or LAYERS.names()
    for name in names:
        cls = LAYERS.get(name)
        place = f"{os.path.relpath(inspect.getfile(cls), _root())}:{inspect.getsourcelines(cls)[1]}"
        counts = f"{_count(cls.bottoms)} -> {_count(cls.tops)}"
        sys.stdout.write(f"{name:26} {counts:16} {cls.param_field or '-':32} {place}\n")
        if len(names) == 1:
            sys.stdout.write(f"\n{inspect.cleandoc(cls.__doc__ or '')}\n")


def _count(count: object) -> str:
    if not isinstance(count, tuple):
        return "as bottoms" if count == "bottoms" else str(count)
    low, high = count
    return f"{low}.." if high is None else f"{low}..{high}"


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
