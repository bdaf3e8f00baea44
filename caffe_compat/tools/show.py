"""`caffe-compat show`: what is in a file, a prototxt, weights, a solver state, a mean, a database."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice

from .. import hdf5, proto
from ..cost import RULE, layer_costs
from ..db import open_database
from ..db.datum import parse_datum
from ..errors import CaffeError, DataError, ParseError
from ..layers.base import format_shape
from ..net import Net
from ..proto import Document
from ..trust import confined_to
from ..weights import read_weights
from .flags import add_path_flag, add_python_flag, flag

QUIET = True
HELP = "show what is in a prototxt, caffemodel, solverstate, binaryproto, HDF5 file or database"

BINARY_KINDS = {".caffemodel": "NetParameter", ".solverstate": "SolverState", ".binaryproto": "BlobProto"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and for nets the state to build them in."""
    parser.add_argument("file", help="the file, or the folder of a database")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase to show a net in (default TEST)")
    flag(parser, "level", type=int, help="the level of the NetState")
    flag(parser, "stage", default="", help="stages of the NetState, separated by commas")
    add_path_flag(parser)
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Prints tables to standard output."""
    path = args.file
    if os.path.isdir(path):
        show_database(path)
    elif hdf5.is_hdf5(path):
        show_hdf5(path)
    elif os.path.splitext(path)[1] in BINARY_KINDS:
        show_binary(path, BINARY_KINDS[os.path.splitext(path)[1]])
    else:
        show_text(path, args)


def show_text(path: str, args: argparse.Namespace) -> None:
    """A net (built, as far as its data are there) or a solver."""
    try:
        document = proto.read_text(path, "NetParameter")
    except ParseError as as_net:
        try:
            document = proto.read_text(path, "SolverParameter")
        except ParseError:
            raise as_net from None
        _heading(document, "solver")
        print(proto.dump_text(document.message), end="")
        return
    _heading(document, "net")
    stages = [stage for stage in args.stage.split(",") if stage]
    try:
        with confined_to(path, args.allow_paths):
            net = Net(document, args.phase, level=args.level, stages=stages, keep_blobs=False)
    except DataError as error:
        print(f"shapes are not known: {error}")
        table(["layer", "type", "bottoms", "tops"], [
            [layer.name, layer.type, " ".join(layer.bottom), " ".join(layer.top)] for layer in document.message.layer])
        return
    show_net(net)


def show_net(net: Net) -> None:
    """A line a layer: blobs, shapes, parameters, multiply-adds, memory; and their sums."""
    costs = layer_costs(net)
    table(["layer", "type", "bottoms", "tops", "top shapes", "parameters", "multiply-adds", "bytes"], [
        [cost.name, cost.type, " ".join(cost.bottoms), " ".join(cost.tops),
         "; ".join(" ".join(map(str, shape)) for shape in cost.shapes),
         f"{cost.parameters:,}", f"{cost.multiply_adds:,}", f"{cost.memory:,}"] for cost in costs])
    print(f"{len(costs)} layers, {sum(cost.parameters for cost in costs):,} parameters, "
          f"{sum(cost.multiply_adds for cost in costs):,} multiply-adds, {sum(cost.memory for cost in costs):,} bytes of blobs")
    print(f"({RULE})")


def show_binary(path: str, kind: str) -> None:
    """Weights, a solver state or a single blob."""
    document = proto.read_binary(path, kind)
    _heading(document, {"NetParameter": "weights", "SolverState": "solver state", "BlobProto": "blob"}[kind])
    if kind == "NetParameter":
        show_weights(document)
        return
    if kind == "SolverState":
        message = document.message
        print(f"iter {message.iter}, current_step {message.current_step}, weights in {message.learned_net or '(none)'}")
    table(["blob", "shape", "values", "mean", "min", "max"], [
        _blob_row("/".join(map(str, key)) or "(the file)", values) for key, values in document.arrays.items()])


def show_weights(document: Document) -> None:
    """A line a layer with blobs."""
    rows = []
    for i, layer in enumerate(document.message.layer):
        # HDF5 files lack the blobs that a layer shares and does not own
        shapes = [format_shape(document.arrays[key].shape) if (key := ("layer", i, "blobs", j)) in document.arrays
                  else "(shared)" for j in range(len(layer.blobs))]
        rows.append([layer.name, layer.type, "; ".join(shapes)])
    table(["layer", "type", "blobs"], rows)
    print(f"{len(rows)} layers, {sum(values.size for values in document.arrays.values()):,} values")


def show_hdf5(path: str) -> None:
    """Weights, a solver state, or any HDF5 file's data sets."""
    data_sets = hdf5.list_data_sets(path)
    if not any(name.startswith("data/") for name, _, _ in data_sets):
        print(f"{path}: HDF5")
        table(["data set", "shape", "type"], [[name, format_shape(shape), dtype] for name, shape, dtype in data_sets])
        return
    document = read_weights(path)
    _heading(document, "weights (HDF5)")
    show_weights(document)


def show_database(path: str) -> None:
    """The number of records and the first few."""
    errors = []
    for backend in ("LMDB", "LEVELDB"):
        try:
            database = open_database(path, backend, path)
            break
        except CaffeError as error:
            errors.append(str(error))
    else:
        raise DataError(f"{path}: neither an LMDB nor a LevelDB: {'; '.join(errors)}")
    print(f"{path}: {backend}, {database.count()} records")
    rows = []
    for key, value in islice(database.records(), 5):
        datum = parse_datum(value)
        kind = f"encoded, {len(datum.data)} bytes" if datum.encoded else f"{datum.channels} {datum.height} {datum.width}"
        rows.append([key.decode(errors="backslashreplace"), kind, str(datum.label)])
    table(["key", "image", "label"], rows)


def _blob_row(name: str, values: object) -> list[str]:
    statistics = [f"{f():.6g}" for f in (values.mean, values.min, values.max)] if values.size else ["-"] * 3
    return [name, format_shape(values.shape), f"{values.size:,}", *statistics]


def _heading(document: Document, kind: str) -> None:
    print(f"{document.path}: {kind}, dialect {document.dialect.name}")
    for note in document.notes:
        print(f"note: {note}")


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns, aligned."""
    lines = [list(heading), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(heading))]
    for line in lines:
        sys.stdout.write("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() + "\n")
