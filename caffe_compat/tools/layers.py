"""`caffe-compat layers`: which layer types exist, where each is defined, and which message holds its settings."""

from __future__ import annotations

import argparse
import inspect
import os
import sys

from .. import convert, proto
from ..layers import LAYERS

_PACKAGE = __name__.partition(".")[0] + "."

QUIET = True
HELP = "list the layer types: blobs, settings, source file and line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names to list; all without."""
    parser.add_argument("type", nargs="*", help="layer types (default all); one alone is shown with its documentation")
    parser.add_argument("--table", action="store_true", help="print which conversions take each type, in Markdown")


def run(args: argparse.Namespace) -> None:
    """Prints a line a type, or all about one."""
    if args.table:
        sys.stdout.write(support_table())
        return
    names = args.type or LAYERS.names()
    for name in names:
        cls = LAYERS.get(name)
        place = f"{os.path.relpath(inspect.getfile(cls), _root())}:{inspect.getsourcelines(cls)[1]}"
        counts = f"{_count(cls.bottoms)} -> {_count(cls.tops)}"
        sys.stdout.write(f"{name:26} {counts:16} {cls.param_field or '-':32} {place}\n")
        if len(names) == 1:
            sys.stdout.write(f"\n{inspect.cleandoc(cls.__doc__ or '')}\n")


def support_table() -> str:
    """A Markdown table of this package's layer types: blobs, settings, and what each conversion makes of them."""
    support = {name: row for name, row in convert.support().items() if LAYERS.get(name).__module__.startswith(_PACKAGE)}
    columns: dict[tuple[str, ...], list[str]] = {}  # targets that all types fare alike in share one
    for target in next(iter(support.values())):
        columns.setdefault(tuple(row[target] for row in support.values()), []).append(target)
    heads = ["type", "bottoms -> tops", "settings", "schema", "run, train", *map(", ".join, columns.values())]
    lines = [heads, ["---"] * len(heads)]
    for number, name in enumerate(support):
        cls = LAYERS.get(name)
        lines.append([name, f"{_count(cls.bottoms)} -> {_count(cls.tops)}", cls.param_field or "", _schema(cls.param_field),
                      "yes", *(cells[number] for cells in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _schema(field: str | None) -> str:
    """The first dialect that knows a type's settings: "" for Caffe's own."""
    knows = (dialect.name for dialect in proto.all_dialects()
             if field is None or field in dialect.descriptor("LayerParameter").fields_by_name)
    return next(knows).removeprefix("bvlc")


def _count(count: object) -> str:
    if not isinstance(count, tuple):
        return "as bottoms" if count == "bottoms" else str(count)
    low, high = count
    return f"{low}.." if high is None else f"{low}..{high}"


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
