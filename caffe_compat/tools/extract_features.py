"""Stores what a net makes of its data: a database of float Datums for each blob, as Caffe's extract_features does."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..db import create_database, datum_class
from ..errors import CaffeError, NetError
from ..net import Net
from .flags import add_python_flag, device_of, positive

log = logging.getLogger(__name__)

HELP = "store the values of a net's blobs, batch by batch, in databases"


@torch.no_grad()
def extract_features(
    weights: str | os.PathLike[str], model: str | os.PathLike[str], blobs: Sequence[str],
    databases: Sequence[str | os.PathLike[str]], batches: int, backend: str = "LMDB",
    device: torch.device | str = "cpu",
) -> list[int]:
    """Runs `model`, in phase TEST on its own data layers, and writes each of `blobs` into a new database.

    A record is one index of the blob's first axis: its key `%010d` counts them, its Datum has float_data and the blob's
    channels, height and width (1 for axes that it does not have). Returns the number of records in each database.
    Raises `NetError` for a blob that the net does not have, and what `Net`, `copy_from` and `create_database` raise.
    """
    if len(blobs) != len(databases) or len(set(map(os.fspath, databases))) < len(databases):
        raise CaffeError(f"each blob has a database of its own; found the blobs {', '.join(blobs)} and the databases "
                         f"{', '.join(map(os.fspath, databases))}")
    net = Net(model, "TEST", device=device, keep_blobs=blobs)
    for name in blobs:
        if len(net.blobs[name].shape) > 4:
            raise NetError(f'{model}: the blob "{name}" has {len(net.blobs[name].shape)} axes, a Datum up to 4',
                           blob=name)
    net.copy_from(weights)
    counts = [0] * len(blobs)
    with ExitStack() as stack:
        writers = [stack.enter_context(create_database(path, backend)) for path in databases]
        log.info("Extracting Features")
        for _ in tqdm(range(batches), unit=" batches", disable=None):
            net.run()
            for i, (name, writer) in enumerate(zip(blobs, writers)):
                for datum in _datums(net.blobs[name].tensor):
                    writer.put(b"%010d" % counts[i], datum.SerializeToString())
                    counts[i] += 1
    for name, count in zip(blobs, counts):
        log.info("Extracted features of %d query images for feature blob %s", count, name)
    log.info("Successfully extracted the features!")
    return counts


def _datums(values: torch.Tensor) -> list[Any]:
    """A Datum for each first index."""
    array = values.detach().cpu().numpy()
    array = array.reshape(*array.shape, *[1] * (4 - array.ndim)).astype(np.float32, copy=False)
    _, channels, height, width = array.shape
    datum = datum_class()
    return [datum(channels=channels, height=height, width=width, float_data=row.ravel().tolist()) for row in array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Caffe's arguments."""
    parser.add_argument("weights", help="the trained weights (caffemodel)")
    parser.add_argument("model", help="the network definition (prototxt), with its data layers")
    parser.add_argument("blobs", help="names of blobs, separated by commas")
    parser.add_argument("databases", help="the databases to make, as many as blobs, separated by commas")
    parser.add_argument("num_mini_batches", type=positive, help="how many batches to run")
    parser.add_argument("db_type", help="lmdb or leveldb")
    parser.add_argument("mode", nargs="?", choices=("CPU", "GPU"), default="CPU", help="CPU (default) or GPU")
    parser.add_argument("device_id", nargs="?", default="0", help="the number of the GPU (default 0)")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """The command."""
    device = device_of(args.device_id.removeprefix("DEVICE_ID=")) if args.mode == "GPU" else "cpu"
    extract_features(args.weights, args.model, args.blobs.split(","), args.databases.split(","), args.num_mini_batches,
                     args.db_type, device)
