"""`caffe-compat convert`: a Caffe model to PyTorch and other formats, checked blob by blob; or back to Caffe."""

from __future__ import annotations

import argparse
import os
import sys

from ..convert import TARGETS, Options, Report, convert, to_caffe
from ..convert.guess import guess_prototxt
from ..errors import CaffeError
from ..memory import return_freed_memory
from .flags import add_python_flag, add_weight_flags, flag, pairs, weight_options

QUIET = True
HELP = "convert a model and its weights to PyTorch and other formats, or back"

BACK = "caffe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the target, and what to do on the way."""
    targets = "; ".join(f"{name}: {TARGETS.get(name).help}" for name in TARGETS.names())
    parser.add_argument("model", help="the net (prototxt); to go back, an export")
    parser.add_argument("weights", nargs="?", help="its weights (caffemodel or HDF5)")
    flag(parser, "to", choices=[*TARGETS.names(), BACK],
         help=f"what to write. {targets}; {BACK}: a prototxt and a caffemodel")
    flag(parser, "out", required=True, help="the file or folder to write")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase to build the net in (default TEST)")
    flag(parser, "level", type=int, help="the level of the NetState")
    flag(parser, "stage", default="", help="stages of the NetState, separated by commas")
    flag(parser, "input", action="append", default=[], metavar="BLOB=N,C,H,W",
         help="the shape of an input; data layers then need no data")
    add_weight_flags(parser)
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW",
                        help="call the layer OLD of the net NEW in what is written; or a file of such lines; repeatable")
    switches = {
        "fold": "take BatchNorm and Scale into the products next to them",
        "inference": "leave out what does nothing but in training (Dropout)",
        "keep-losses": "keep losses and accuracies",
        "half": "write weights in float16",
        "safetensors": "with --to torch, write weights.safetensors instead of weights.pth",
        "guess": "with weights alone as MODEL: write the deploy prototxt that they give, and what it assumes",
        "allow-paths": "open the files that a net names also outside of its own folder and the working folder",
        "no-check": "do not run what was written and compare it with Caffe",
    }
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    flag(parser, "mean", default="", metavar="B,G,R", help="build in: subtract this from images, one number a channel")
    flag(parser, "scale", type=float, default=1.0, help="build in: multiply images by this, after the mean")
    parser.add_argument("--swap-channels", action="store_true", help="build in: take images as RGB for a net that wants BGR")
    flag(parser, "tolerance", type=float, default=1e-4, help="how far from Caffe a blob may be, in standard deviations")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Converts, and prints what was done."""
    return_freed_memory()
    inputs = dict(map(_shape, args.input))
    if args.guess:
        guess = guess_prototxt(args.model, *list(inputs.values())[:1])
        guess.write(args.out)
        sys.stdout.write("".join(f"{note}\n" for note in guess.notes) + f"wrote {args.out}\n")
    elif args.to is None:
        raise CaffeError(f"--to is missing: what to write, one of {', '.join([*TARGETS.names(), BACK])}")
    elif args.to == BACK:
        written = to_caffe(args.model, args.out, inputs=inputs, check=not args.no_check, tolerance=args.tolerance)
        sys.stdout.write(f"wrote {' and '.join(map(os.fspath, written))}\n")
    else:
        convert_model(args, inputs)


def convert_model(args: argparse.Namespace, inputs: dict[str, tuple[int, ...]]) -> None:
    """From Caffe to a target."""
    options = Options(
        fold=args.fold, inference=args.inference, keep_losses=args.keep_losses, half=args.half,
        safetensors=args.safetensors, rename=pairs(args.rename, "--rename"), mean=_numbers(args.mean), scale=args.scale,
        swap_channels=args.swap_channels)
    report = convert(
        args.model, args.weights, args.to, args.out, phase=args.phase, level=args.level,
        stages=[stage for stage in args.stage.split(",") if stage], inputs=inputs,
        loading=weight_options(args), allow_paths=args.allow_paths, options=options, check=not args.no_check,
        tolerance=args.tolerance)
    print_report(report, args)


def print_report(report: Report, args: argparse.Namespace) -> None:
    """What was loaded, and how far the result is from Caffe."""
    if report.weights is None:
        sys.stdout.write("no weights were given: parameters have their initial values\n")
    else:
        sys.stdout.write(f"{report.weights.path}: {len(report.weights.copied)} layers copied\n")
        for what in ("missing", "unused", "reshaped", "skipped", "assumed"):
            if names := getattr(report.weights, what):
                sys.stdout.write(f"{what}: {', '.join(names)}\n")
    sys.stdout.write(f"{report.comparison.summary() if report.comparison else 'not compared with Caffe'}\n")
    sys.stdout.write(f"wrote {args.out}\n")


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
