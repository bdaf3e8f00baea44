"""Compares two models blob by blob: Caffe nets, torch exports, ONNX files and recordings of real Caffe.

The first is the reference. The exit status is 0 if they are equal and 1 if they differ; in that case the last line
tells the first blob that differs and its layer.
"""

from __future__ import annotations

import argparse

from ..check import Options, compare
from ..check.compare import TOLERANCE
from ..errors import CaffeError
from .flags import add_path_flag, add_python_flag, add_weight_flags, device_of, flag, pairs, weight_options

QUIET = True
HELP = "compare two models (Caffe, torch, ONNX, recording) blob by blob"


class Differs(CaffeError):
    """Two models that were compared are not equal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two models, what to compare them on, and what is allowed."""
    parser.add_argument("a", metavar="A", help="the reference: net.prototxt:weights.caffemodel, a folder with model.py, "
                                               "model.onnx, recording.npz or solver.prototxt")
    parser.add_argument("b", metavar="B", nargs="?", help="the other; a recording is compared with its own net without it")
    flag(parser, "input", help='"random", or a .npy, .npz or image file (default: a recording\'s own, else random)')
    flag(parser, "tolerance", type=float, default=TOLERANCE,
         help=f"the largest error allowed, relative to the std of each blob of A (default {TOLERANCE:g})")
    flag(parser, "seed", type=int, default=0, help="the seed of random inputs (default 0)")
    flag(parser, "phase", choices=("TRAIN", "TEST"), help="the phase of Caffe nets (default the recording's, or TEST)")
    flag(parser, "level", type=int, help="the level of the NetState")
    flag(parser, "stage", default="", help="stages of the NetState, separated by commas")
    flag(parser, "gpu", help="the GPU to run Caffe nets and torch modules on; without it the CPU")
    parser.add_argument("--blob-map", action="append", default=[], metavar="OLD=NEW", help="a blob's names in A and B")
    parser.add_argument("--allow-code", action="store_true", help="run a torch export's model.py, which is code")
    add_path_flag(parser)
    add_weight_flags(parser)
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the table and the verdict."""
    options = Options(
        phase=args.phase, level=args.level, stages=tuple(stage for stage in args.stage.split(",") if stage),
        weights=weight_options(args), allow_code=args.allow_code, allow_paths=args.allow_paths,
        device=str(device_of(args.gpu) or "cpu"))
    report = compare(args.a, args.b, args.input, tolerance=args.tolerance, options=options, seed=args.seed,
                     rename=pairs(args.blob_map, "--blob-map"))
    print(report, flush=True)
    if not report.equal:
        raise Differs(report.summary())
    print(report.summary())
