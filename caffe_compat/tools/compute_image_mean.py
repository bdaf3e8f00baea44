"""Computes the mean image of a database, as Caffe's compute_image_mean does."""

from __future__ import annotations

import argparse
import logging
import os

import numpy as np
from tqdm import tqdm

from .. import proto
from ..db import datum_image, open_database, parse_datum
from ..errors import DataError

log = logging.getLogger(__name__)

HELP = "compute the mean image of a database"


def compute_image_mean(
    db_path: str | os.PathLike[str], output_file: str | os.PathLike[str] | None = None, backend: str = "LMDB",
) -> np.ndarray:
    """The mean of all images, float32 (channels, height, width), also written to `output_file` (a `.binaryproto`).

    The sums are float32 as Caffe's, so that the numbers are Caffe's, too. Raises `DataError` for a database that cannot
    be read and for images of different shapes.
    """
    database = open_database(db_path, backend)
    total, count = None, 0
    log.info("Starting iteration")
    for key, value in tqdm(database.records(), desc=os.fspath(db_path), unit=" images", disable=None):
        record = f"{db_path}: record {key.decode(errors='backslashreplace')}"
        try:
            image = datum_image(parse_datum(value))
        except DataError as error:
            raise DataError(f"{record}: {error}") from error.__cause__
        if total is None:
            total = np.zeros(image.shape, np.float32)
        if image.shape != total.shape:
            raise DataError(f"{record} is {image.shape} (channels, height, width), the records before it are "
                            f"{total.shape}; all must have one shape")
        total += image
        count += 1
        if count % 10000 == 0:
            log.info("Processed %d files.", count)
    if count % 10000:
        log.info("Processed %d files.", count)
    mean = total / np.float32(count)
    if output_file is not None:
        log.info("Write to %s", output_file)
        write_mean(output_file, mean)
    return mean


def write_mean(path: str | os.PathLike[str], mean: np.ndarray) -> None:
    """Writes a mean image (channels, height, width) as Caffe's tool does: with the old four dimensions, not `shape`."""
    channels, height, width = mean.shape
    blob = proto.BVLC.message("BlobProto")(num=1, channels=channels, height=height, width=width)
    blob.data.extend(mean.ravel().tolist())
    with proto.replacing(path) as temporary:
        temporary.write_bytes(blob.SerializeToString())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("input_db", help="the database")
    parser.add_argument("output_file", nargs="?", help="the mean file to write (.binaryproto)")
    parser.add_argument("--backend", default="lmdb", help="lmdb (default) or leveldb")


def run(args: argparse.Namespace) -> None:
    """The command: prints the means of the channels as Caffe does."""
    mean = compute_image_mean(args.input_db, args.output_file, args.backend)
    print(f"Number of channels: {len(mean)}")
    for i, channel in enumerate(mean):
        print(f"mean_value channel [{i}]: {np.cumsum(channel)[-1] / np.float32(channel.size):g}")
