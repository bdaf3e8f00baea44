"""Makes a database of the images in a list, as Caffe's convert_imageset does."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ..db.database import create_database
from ..db.datum import convert_all, encode_image, make_datum, read_file, read_image
from ..db.image_list import ListedImage, read_image_list
from ..errors import DataError

log = logging.getLogger(__name__)

HELP = "make a database of the images in a list of `path label` lines"

#: How many images are decoded at a time.
GROUP = 64

Result = TypeVar("Result")


def convert_imageset(
    root_folder: str, list_file: str | os.PathLike[str], db_path: str | os.PathLike[str], *, backend: str = "LMDB",
    gray: bool = False, shuffle: bool = False, seed: int | None = None, size: tuple[int, int] | None = None,
    check_size: bool = False, encoded: bool = False, encode_type: str = "", skip_unreadable: bool = False,
) -> int:
    """Writes the images into a new database under the keys `%08d_<path>`, in the list's order or shuffled with `seed`.

    root_folder:      comes before every path as it is, so it should end in a slash
    size:             (height, width) to resize to, or None
    check_size:       all images must have as many values as the first
    encoded:          store image files: the file itself if it needs no change, else newly encoded
    encode_type:      the kind of file ("png", "jpg", ...) to store; by default that of each path. Implies `encoded`
    skip_unreadable:  leave out images that cannot be read (Caffe always does), with a warning for each

    Returns the number of images. Raises `DataError` for what cannot be read, and if `db_path` exists.
    """
    images = read_image_list(list_file)
    if shuffle:
        images = [images[i] for i in np.random.default_rng(seed).permutation(len(images))]
    log.info("A total of %d images.", len(images))
    convert = partial(_convert, root_folder, gray, size, encoded or bool(encode_type), encode_type)
    written, first = 0, None
    with create_database(db_path, backend) as writer, tqdm(total=len(images), unit=" images", disable=None) as progress:
        for i, (image, result) in enumerate(_convert_all(convert, images)):
            progress.update()
            place = f"{list_file}:{image.line}"
            if isinstance(result, DataError):
                if not skip_unreadable:
                    raise DataError(f"{place}: {result}; with skip_unreadable such images are left out") from result
                log.warning("%s: left out: %s", place, result)
                continue
            datum, shape = result
            first = first or shape
            if check_size and prod(shape) != prod(first):
                raise DataError(f"{place}: {image.name} is {shape} (channels, height, width), the first image {first}; "
                                "resize them, or do without check_size")
            writer.put(b"%08d_%s" % (i, os.fsencode(image.name)), datum.SerializeToString())
            written += 1
        if not written:
            raise DataError(f"{list_file}: none of its {len(images)} images can be read; is the root folder "
                            f"{root_folder!r} right?")
    log.info("Processed %d files.", written)
    return written


def _convert_all(
    convert: Callable[[ListedImage], Result], images: list[ListedImage],
) -> Iterator[tuple[ListedImage, Result]]:
    """The images with what becomes of them, decoded on several cores, but not more of them than fit into memory."""
    for start in range(0, len(images), GROUP):
        group = images[start : start + GROUP]
        yield from zip(group, convert_all(convert, group, str))


def _convert(
    root: str, gray: bool, size: tuple[int, int] | None, encoded: bool, kind: str, listed: ListedImage,
) -> tuple[Any, tuple[int, ...]] | DataError:
    """The Datum of an image and its shape (channels, height, width), or why there is none."""
    path = root + listed.name
    suffix = PurePath(path).suffix[1:].lower()
    try:
        image = read_image(path, not gray, size)
        if not encoded:
            return make_datum(image, listed.label), image.shape
        if not (kind or suffix):
            raise DataError(f"{path}: has no suffix that tells what kind of file to store; set encode_type")
        unchanged = size is None and (not kind or _same_kind(suffix, kind.lower()))
        content = read_file(path) if unchanged else encode_image(image, kind or suffix)
        return make_datum(content, listed.label), image.shape
    except DataError as error:
        return error


def _same_kind(suffix: str, kind: str) -> bool:
    return suffix == kind or (suffix, kind) == ("jpeg", "jpg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs; the flags are those of Caffe's tool, and --seed and --skip_unreadable."""
    parser.add_argument("root_folder", help="what comes before every path of the list; should end in /")
    parser.add_argument("list_file", help="a line `path label` for every image")
    parser.add_argument("db_path", help="the database to make")
    parser.add_argument("--gray", action="store_true", help="store grey images")
    parser.add_argument("--shuffle", action="store_true", help="shuffle the images")
    parser.add_argument("--seed", type=int, help="makes --shuffle reproducible")
    parser.add_argument("--backend", default="lmdb", help="lmdb (default) or leveldb")
    parser.add_argument("--resize_width", type=int, default=0, help="width to resize to, with --resize_height")
    parser.add_argument("--resize_height", type=int, default=0, help="height to resize to, with --resize_width")
    parser.add_argument("--check_size", action="store_true", help="all images must have one size")
    parser.add_argument("--encoded", action="store_true", help="store image files in place of pixels")
    parser.add_argument("--encode_type", default="", help="the kind of image files to store: png, jpg, ...")
    parser.add_argument("--skip_unreadable", action="store_true",
                        help="leave out images that cannot be read, as Caffe does")


def run(args: argparse.Namespace) -> None:
    """The command."""
    if (args.resize_height > 0) != (args.resize_width > 0):
        raise DataError(f"resize_height is {args.resize_height} and resize_width is {args.resize_width}; set both or "
                        "none")
    count = convert_imageset(
        args.root_folder, args.list_file, args.db_path, backend=args.backend, gray=args.gray, shuffle=args.shuffle,
        seed=args.seed, size=(args.resize_height, args.resize_width) if args.resize_height > 0 else None,
        check_size=args.check_size, encoded=args.encoded, encode_type=args.encode_type,
        skip_unreadable=args.skip_unreadable)
    print(f"{args.db_path}: {count} images")
