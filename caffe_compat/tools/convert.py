"""`caffe-compat convert`: a Caffe model to PyTorch and other formats, checked blob by blob; or back to Caffe."""

from __future__ import annotations

import argparse
import os
import sys

from ..convert import TARGETS, Options, Report, convert, to_caffe
from ..errors import CaffeError
from ..memory import return_freed_memory
from .flags import add_python_flag, flag

QUIET = True
HELP = "convert a model and its weights to PyTorch and other formats, or back"

BACK = "caffe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the target, and what to do on the way."""
    targets = "; ".join(f"{name}: {TARGETS.get(name).help}" for name in TARGETS.names())
    parser.add_argument("model", help="the net (prototxt); to go back, an export")
    parser.add_argument("weights", nargs="?", help="its weights (caffemodel or HDF5)")
    flag(parser, "to", required=True, choices=[*TARGETS.names(), BACK],
         help=f"what to write. {targets}; {BACK}: a prototxt and a caffemodel")
    flag(parser, "out", required=True, help="the file or folder to write")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase to build the net in (default TEST)")
    flag(parser, "level", type=int, help="the level of the NetState")
    flag(parser, "stage", default="", help="stages of the NetState, separated by commas")
    flag(parser, "input", action="append", default=[], metavar="BLOB=N,C,H,W",
         help="the shape of an input; data layers then need no data")
    flag(parser, "map", default="", metavar="LAYER=NAME,...",
         help="names that layers have in the weight file, or a file with a LAYER=NAME a line")
    flag(parser, "rename", default="", metavar="LAYER=NAME,...", help="names that layers get, in the same form")
    switches = {
        "fold": "take BatchNorm and Scale into the products next to them",
        "inference": "leave out what does nothing but in training (Dropout)",
        "keep-losses": "keep losses and accuracies",
        "half": "write weights in float16",
        "safetensors": "with --to torch, write weights.safetensors instead of weights.pth",
        "partial": "convert even if the weight file lacks layers, which keep their initial values",
        "no-check": "do not run what was written and compare it with Caffe",
    }
    for name, text in switches.items():
        flag(parser, name, action="store_true", help=text)
    flag(parser, "mean", default="", metavar="B,G,R", help="build in: subtract this from images, one number a channel")
    flag(parser, "scale", type=float, default=1.0, help="build in: multiply images by this, after the mean")
    flag(parser, "swap-channels", action="store_true", help="build in: take images as RGB for a net that wants BGR")
    flag(parser, "tolerance", type=float, default=1e-4, help="how far from Caffe a blob may be, in standard deviations")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Converts, and prints what was done."""
    return_freed_memory()
    if args.to == BACK:
        written = to_caffe(args.model, args.out, inputs=dict(map(_shape, args.input)), check=not getattr(args, "no-check"),
                           tolerance=args.tolerance)
        sys.stdout.write(f"wrote {' and '.join(map(os.fspath, written))}\n")
        return
    options = Options(
        fold=args.fold, inference=args.inference, keep_losses=getattr(args, "keep-losses"), half=args.half,
        safetensors=args.safetensors, rename=read_map(args.rename, "rename"), mean=_numbers(args.mean), scale=args.scale,
        swap_channels=getattr(args, "swap-channels"))
    report = convert(
        args.model, args.weights, args.to, args.out, phase=args.phase, level=args.level,
        stages=[stage for stage in args.stage.split(",") if stage], inputs=dict(map(_shape, args.input)),
        names=read_map(args.map, "map"), strict=not args.partial, options=options, check=not getattr(args, "no-check"),
        tolerance=args.tolerance)
    print_report(report, args)


def print_report(report: Report, args: argparse.Namespace) -> None:
    """What was loaded, and how far the result is from Caffe."""
    if report.weights is None:
        sys.stdout.write("no weights were given: parameters have their initial values\n")
    else:
        sys.stdout.write(f"{report.weights.path}: {len(report.weights.copied)} layers copied\n")
        for what in ("missing", "unused", "reshaped"):
            if names := getattr(report.weights, what):
                sys.stdout.write(f"{what}: {', '.join(names)}\n")
    if report.differences:
        worst = max(report.differences, key=lambda difference: difference.relative)
        sys.stdout.write(f"{len(report.differences)} blobs compared with Caffe's; the farthest is {worst}\n")
    else:
        sys.stdout.write("not compared with Caffe\n")
    sys.stdout.write(f"wrote {args.out}\n")


def read_map(text: str, name: str) -> dict[str, str]:
    """`a=b,c=d`, or a file with such a pair a line (# begins a comment)."""
    words = text.split(",")
    if os.path.isfile(text):
        with open(text, encoding="utf-8") as file:
            words = [line.partition("#")[0] for line in file]
    pairs = [word.strip().partition("=") for word in words if word.strip()]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise CaffeError(f"--{name}: found {ours + equals + theirs!r}, expected LAYER=NAME, or the name of a file with "
                             "one a line")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    blob, _, sizes = text.partition("=")
    words = sizes.replace("x", ",").split(",")
    if not blob or not all(word.isdigit() and int(word) > 0 for word in words):
        raise CaffeError(f"--input: found {text!r}, expected BLOB=N,C,H,W with sizes above 0")
    return blob, tuple(map(int, words))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word)
    except ValueError:
        raise CaffeError(f"--mean: found {text!r}, expected numbers separated by commas") from None
