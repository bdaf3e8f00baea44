"""Draws the graph of a net, as Caffe's draw_net does."""

from __future__ import annotations

import argparse

from ..graph import TEST, TRAIN
from ..proto import read_text
from ..pycaffe.draw import draw_net_to_file
from .flags import flag

HELP = "draw the graph of a net definition"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Caffe's arguments."""
    parser.add_argument("input_net_proto_file", help="the network definition (prototxt)")
    parser.add_argument("output_image_file", help="the picture to write; its ending is the format: png, pdf, dot ...")
    flag(parser, "rankdir", default="LR", choices=("LR", "RL", "TB", "BT"),
         help="the direction from the data on (default LR: from left to right)")
    flag(parser, "phase", default="ALL", choices=("TRAIN", "TEST", "ALL"),
         help="draw the layers of one phase (default ALL)")
    flag(parser, "display_lrm", action="store_true", help="show the learning rate multipliers")


def run(args: argparse.Namespace) -> None:
    """The command."""
    net = read_text(args.input_net_proto_file, "NetParameter").message
    print(f"Drawing net to {args.output_image_file}")
    phase = {"TRAIN": TRAIN, "TEST": TEST, "ALL": None}[args.phase]
    draw_net_to_file(net, args.output_image_file, args.rankdir, phase, args.display_lrm)
