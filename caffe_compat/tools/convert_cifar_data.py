"""Makes databases of CIFAR-10: of its binary batches, or of images in a folder or archive with a subfolder a class."""

from __future__ import annotations

import argparse
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from ..db import create_database, decode_image, make_datum
from ..errors import DataError

log = logging.getLogger(__name__)

HELP = "make databases of CIFAR-10's binary batches, or of images in <phase>/<class>/ in a folder or tar file"

SIZE = 32
#: A record of a binary batch: the label, then the planes R, G, B.
RECORD = 1 + 3 * SIZE * SIZE
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

#: A phase's images: how many, and (image (channels, height, width), label) one after the other.
Split = tuple[int, Iterator[tuple[np.ndarray, int]]]


def convert_cifar_data(
    source: str | os.PathLike[str], output_folder: str | os.PathLike[str], backend: str = "LMDB",
    shuffle_seed: int | None = 0,
) -> dict[str, int]:
    """Writes `cifar10_train_<backend>` and `cifar10_test_<backend>` into `output_folder`, under the keys `%05d`.

    `source` is a folder with the binary batches (`data_batch_1.bin` ... `test_batch.bin`), whose order is kept, or a
    folder or tar file of images in `train/<class>/` and `test/<class>/`. Their labels are the classes' places in
    alphabetical order, their planes R, G, B as in the binary batches; they are sorted by path and then, as a net cannot
    learn from one class after the other, permuted by `numpy.random.RandomState(shuffle_seed).permutation` (None: not).

    Returns the number of images in each. Raises `DataError` for missing or damaged files and for databases that exist.
    """
    splits, output = read_cifar(source, shuffle_seed), Path(output_folder)
    output.mkdir(parents=True, exist_ok=True)
    return {phase: _write(output / f"cifar10_{phase}_{backend.lower()}", split, backend)
            for phase, split in splits.items()}


def read_cifar(source: str | os.PathLike[str], shuffle_seed: int | None = 0) -> dict[str, Split]:
    """The images of `train` and `test`, in the order in which `convert_cifar_data` writes them."""
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: there is no such folder or file (relative paths start at the working folder, "
                        f"{Path.cwd()})")
    if source.is_dir() and any((source / name).exists() for names in BATCHES.values() for name in names):
        return {phase: _read_batches([source / name for name in names]) for phase, names in BATCHES.items()}
    files = _files_in_folder(source) if source.is_dir() else _files_in_tar(source)
    return {phase: _read_images(source, phase, files, shuffle_seed) for phase in BATCHES}


def _write(path: Path, split: Split, backend: str) -> int:
    count, images = split
    log.info("Writing %s", path)
    with create_database(path, backend) as writer:
        # disable=None: no progress bar unless there is a terminal.
        for i, (image, label) in enumerate(tqdm(images, desc=path.name, total=count, unit=" images", disable=None)):
            writer.put(b"%05d" % i, make_datum(image, label).SerializeToString())
    return count


def _read_batches(paths: list[Path]) -> Split:
    """The images of binary batches."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: is missing; the folder must have {', '.join(p.name for p in paths)}")
    content = [np.fromfile(path, np.uint8) for path in paths]
    for path, values in zip(paths, content):
        if not values.size or values.size % RECORD:
            raise DataError(f"{path}: has {values.size} bytes, which is not a multiple of {RECORD}, the size of a "
                            f"label and 3 x {SIZE} x {SIZE} pixels; copy it again")
    records = np.concatenate(content).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, SIZE, SIZE)
    return len(records), zip(images, records[:, 0].tolist())


def _read_images(source: Path, phase: str, files: dict[PurePosixPath, bytes | Path], seed: int | None) -> Split:
    """The images under `<phase>/<class>/`, at any depth of the folder or archive, decoded one after the other."""
    paths = sorted(path for path in files if len(path.parts) > 2 and path.parts[-3] == phase)
    if not paths:
        raise DataError(f"{source}: has neither binary batches ({BATCHES[phase][0]} ...) nor images in "
                        f"{phase}/<class>/ ({', '.join(SUFFIXES)})")
    labels = {name: label for label, name in enumerate(sorted({path.parts[-2] for path in paths}))}
    log.info("%s: %d images, classes %s", phase, len(paths), labels)
    order = range(len(paths)) if seed is None else np.random.RandomState(seed).permutation(len(paths)).tolist()

    def images() -> Iterator[tuple[np.ndarray, int]]:
        for i in order:
            content = files[paths[i]]
            try:
                image = decode_image(content.read_bytes() if isinstance(content, Path) else content, color=True)
            except DataError as error:
                raise DataError(f"{source}: {paths[i]}: {error}") from error
            yield image[::-1], labels[paths[i].parts[-2]]

    return len(paths), images()


def _files_in_folder(folder: Path) -> dict[PurePosixPath, bytes | Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {PurePosixPath(path.relative_to(folder).as_posix()): path for path in paths}


def _files_in_tar(path: Path) -> dict[PurePosixPath, bytes | Path]:
    """The images in a tar file, compressed or not; they are kept in memory, as a stream cannot be permuted."""
    try:
        with tarfile.open(path) as archive:
            members = ((PurePosixPath(member.name), member) for member in archive if member.isfile())
            return {name: archive.extractfile(member).read() for name, member in members
                    if name.suffix.lower() in SUFFIXES}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a tar file: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("source", help="folder with data_batch_1.bin ..., or folder or tar file with "
                                       "train/<class>/*.jpg ...")
    parser.add_argument("output_folder", help="where to make cifar10_train_<backend> and cifar10_test_<backend>")
    parser.add_argument("backend", nargs="?", default="lmdb", help="lmdb (default) or leveldb")
    parser.add_argument("--shuffle_seed", type=int, default=0,
                        help="how images (not binary batches) are shuffled after sorting by path; -1: not at all")


def run(args: argparse.Namespace) -> None:
    """The command."""
    seed = args.shuffle_seed if args.shuffle_seed >= 0 else None
    for phase, count in convert_cifar_data(args.source, args.output_folder, args.backend, seed).items():
        print(f"{phase}: {count} images")
