"""Makes a database of the images and labels in a pair of IDX files, MNIST's format."""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import zlib
from math import prod

import numpy as np
from tqdm import tqdm

from ..db import create_database, make_datum
from ..errors import DataError

log = logging.getLogger(__name__)

HELP = "make a database of MNIST's IDX files (or any others; .gz too)"


def convert_mnist_data(
    images_file: str | os.PathLike[str], labels_file: str | os.PathLike[str], db_path: str | os.PathLike[str],
    backend: str = "LMDB",
) -> int:
    """Writes the images with their labels into a new database, in the files' order, under the keys `%08d`.

    Returns their number. Raises `DataError` for files that are no IDX files, damaged, or of different lengths, and for
    a `db_path` that exists; then nothing is written.
    """
    images = read_idx(images_file, 3)
    labels = read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_file} has {len(images)} images, but {labels_file} has {len(labels)} labels; they "
                        "must be a pair")
    count, rows, columns = images.shape
    log.info("A total of %d items.", count)
    log.info("Rows: %d Cols: %d", rows, columns)
    with create_database(db_path, backend) as writer:
        # disable=None: no progress bar unless there is a terminal.
        for i, label in enumerate(tqdm(labels.tolist(), desc=os.fspath(db_path), unit=" images", disable=None)):
            writer.put(b"%08d" % i, make_datum(images[i : i + 1], label).SerializeToString())
    log.info("Processed %d files.", count)
    return count


def read_idx(path: str | os.PathLike[str], axes: int) -> np.ndarray:
    """The uint8 array in an IDX file of `axes` axes, which may be compressed with gzip (whatever its name).

    The format: two zero bytes, the type (8 for uint8), the number of axes; the size of each as 4 bytes, the highest
    first; the values.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except OSError as error:  # gzip's own among them
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or incomplete ({error}); copy it again") from error
    magic = bytes((0, 0, 8, axes))
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != magic:
        raise DataError(f"{path}: is not an IDX file of {axes} axes: it starts with {content[:4].hex() or 'nothing'}, "
                        f"expected {magic.hex()}; "
                        f"{'images have 3 axes, labels 1' if content[:3] == magic[:3] else 'is it the right file?'}")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i]) for i in range(axes)]
    if len(content) - start != prod(shape):
        raise DataError(f"{path}: its header says {' x '.join(map(str, shape))} values, but {len(content) - start} "
                        "follow; copy it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("images_file", help="IDX file of images, e.g. train-images-idx3-ubyte.gz")
    parser.add_argument("labels_file", help="IDX file of labels, e.g. train-labels-idx1-ubyte.gz")
    parser.add_argument("db_path", help="the database to make")
    parser.add_argument("--backend", default="lmdb", help="lmdb (default) or leveldb")


def run(args: argparse.Namespace) -> None:
    """The command."""
    count = convert_mnist_data(args.images_file, args.labels_file, args.db_path, args.backend)
    print(f"{args.db_path}: {count} images")
