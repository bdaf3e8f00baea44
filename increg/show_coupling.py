"""`increg coupling`: the groups of channels of a net that go together, who writes them, who reads them, what keeps them."""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from caffe_compat.net import Net
from caffe_compat.tools.flags import add_python_flag, flag
from caffe_compat.tools.show import table

from .channels import PASSING, Channels
from .slim.matrices import layouts

HELP = "show which channels of a net can only be pruned together"


@dataclass(frozen=True)
class Group:
    """Channels that go together one by one: the k-th of everybody here.

    writers, readers: layers with a row, with columns for each     others: layers with a parameter for each
    fixed:            what always reads or writes them, so that they stay
    """

    channels: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    others: tuple[str, ...]
    fixed: tuple[str, ...]


def groups(net: Net, *, exact: bool = False) -> list[Group]:
    """The groups of a net in the order of their first channels. With `exact` as `slim` sees them, for which LRN across
    channels needs all that it reads."""
    channels = Channels(net, layouts(net), exact=exact)
    users: list[dict[int, list[str]]] = [defaultdict(list) for _ in range(4)]

    def note(role: int, ids: np.ndarray, name: str) -> None:
        for number in np.unique(ids).tolist():
            if name not in users[role][number]:
                users[role][number].append(name)

    for layer in net.layers:
        if layer.name in channels.writes:
            note(0, channels.writes[layer.name], layer.name)
            note(1, channels.reads[layer.name], layer.name)
        elif layer.type in PASSING and layer.blobs:
            note(2, channels.bottoms[layer.name][0], layer.name)
    for ids, why in channels.reasons:
        note(3, ids, why)
    counts: dict[tuple[tuple[str, ...], ...], int] = defaultdict(int)
    for number in sorted(set().union(*users)):
        counts[tuple(tuple(role.get(number, ())) for role in users)] += 1
    return [Group(count, *names) for names, count in counts.items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The net."""
    parser.add_argument("net", metavar="NET", help="the network definition (prototxt)")
    parser.add_argument("--exact", action="store_true",
                        help="count LRN across channels as a reader of all of them, as `increg slim` must")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase to look at (default TEST)")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Prints a line a group."""
    found = groups(Net(args.net, args.phase, keep_blobs=False), exact=args.exact)
    table(["channels", "written by", "read by", "with", "stays for"],
          [[str(group.channels), *(" ".join(names) or "-" for names in (group.writers, group.readers, group.others)),
            "; ".join(group.fixed) or "-"] for group in found])
    together = sum(len(group.writers) > 1 for group in found)
    print(f"{len(found)} groups of channels; {together} of them with rows of several layers, which go together. A channel goes "
          "when nobody reads it any more; what stays for an unknown layer or an output never does.")
