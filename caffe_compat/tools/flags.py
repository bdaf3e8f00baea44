"""Flags that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CaffeError, SolverError
from ..layers.python import allow_python_layers
from ..net import Net
from ..weights import LoadOptions


def flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """Adds `--name`, also as `-name`, which Caffe's tools accept."""
    parser.add_argument(f"--{name}", f"-{name}", dest=name, **options)


class AllowPython(argparse.Action):
    """The flag that lets network files name code to run."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, *_: Any) -> None:
        """Allows it for the rest of the process."""
        allow_python_layers()


def add_python_flag(parser: argparse.ArgumentParser) -> None:
    """--allow_python_layers, for commands that build nets."""
    flag(parser, "allow_python_layers", action=AllowPython,
         help="import the modules that Python layers in the network file name, and run them")


def add_path_flag(parser: argparse.ArgumentParser) -> None:
    """--allow-paths, for commands that look at nets without running them on their data."""
    parser.add_argument("--allow-paths", action="store_true",
                        help="open the files that a net names also outside of its own folder and the working folder")


def add_weight_flags(parser: argparse.ArgumentParser) -> None:
    """--map, --skip and --reshape: how files of weights that do not fit a net are loaded all the same."""
    parser.add_argument("--map", action="append", default=[], metavar="OLD=NEW",
                        help="the net's name NEW for the layer OLD of the weights; or a file of such lines; repeatable")
    parser.add_argument("--skip", action="append", default=[], metavar="LAYER",
                        help="leave layers of the net without weights (names with * and ?); repeatable")
    parser.add_argument("--reshape", action="append", default=[], metavar="LAYER",
                        help="take a layer's weights in whatever shape of as many values they are; repeatable")


def weight_options(args: argparse.Namespace) -> LoadOptions:
    """What the flags of `add_weight_flags` say; strict."""
    return LoadOptions(strict=True, rename=pairs(args.map, "--map"), skip=tuple(args.skip), reshape=tuple(args.reshape))


def pairs(words: Sequence[str], flag_name: str) -> dict[str, str]:
    """`old=new` words, or files with one a line (`#` begins a comment), as a mapping."""
    found: dict[str, str] = {}
    for word in words:
        lines = [word]
        if "=" not in word or os.path.isfile(word):
            try:
                lines = Path(word).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise CaffeError(f"{flag_name} {word}: expected old=new, or a text file of such lines: {error}") from None
        for line in lines:
            line = line.partition("#")[0].strip()
            old, equals, new = (part.strip() for part in line.partition("="))
            if not line:
                continue
            if not (equals and old and new) or old in found:
                raise CaffeError(f'{flag_name} {word}: found "{line}", expected old=new, each old name once')
            found[old] = new
    return found


def add_net_flags(parser: argparse.ArgumentParser, phase: str) -> None:
    """--model, --level, --stage and --gpu: what it takes to build one net."""
    flag(parser, "model", required=True, help="the network definition (prototxt)")
    flag(parser, "phase", default=phase, choices=("TRAIN", "TEST"), help=f"the phase to run in (default {phase})")
    flag(parser, "level", type=int, help="the level of the NetState")
    flag(parser, "stage", default="", help="stages of the NetState, separated by commas")
    flag(parser, "gpu", help="the GPU to run on; without it the CPU")
    add_python_flag(parser)


def build_net(args: argparse.Namespace, weights: str | None, keep_blobs: bool = False) -> Net:
    """The net that the flags of `add_net_flags` describe, with `weights` (files separated by commas) copied into it."""
    stages = [stage for stage in args.stage.split(",") if stage]
    device = device_of(args.gpu) or torch.device("cpu")
    net = Net(args.model, args.phase, level=args.level, stages=stages, device=device, keep_blobs=keep_blobs)
    for path in weights.split(",") if weights else ():
        net.copy_from(path.strip())
    return net


def device_of(gpu: str | None) -> torch.device | None:
    """The device that a --gpu flag names, None for none."""
    if gpu is None:
        return None
    if not torch.cuda.is_available():
        raise SolverError(f"--gpu={gpu}: no CUDA device is available; leave --gpu out to run on the CPU")
    if not gpu.isdigit() or int(gpu) >= torch.cuda.device_count():
        raise SolverError(f"--gpu={gpu}: expected one number below {torch.cuda.device_count()}; "
                          "training on several GPUs at once is not supported")
    return torch.device("cuda", int(gpu))


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number, 1 or more")
    return int(text)
