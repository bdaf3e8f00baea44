"""The experiments that come with the package: where their prototxts are, and the databases they read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from caffe_compat.db import create_database, make_datum
from caffe_compat.errors import CaffeError, DataError
from caffe_compat.tools.convert_mnist_data import convert_mnist_data

#: The four files of MNIST: images and labels to train with and to test with. They may be compressed (.gz).
MNIST_FILES = {
    "mnist_train_lmdb": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "mnist_test_lmdb": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
#: How many of the 1797 digits are kept for testing, and the seed of the choice, which is the same for every run.
DIGITS_TEST, DIGITS_SPLIT_SEED = 400, 0


def folder(name: str) -> Path:
    """The folder of the experiment `name`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    candidates = package / "prototxt" / name, package.parent / "prototxt" / name
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise CaffeError(f'there is no experiment "{name}": found neither {candidates[0]} nor {candidates[1]}')


def make_mnist(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Makes the two MNIST databases in `target` from the IDX files in `source`; leaves alone what is there."""
    pairs = {name: [find_idx(source, file) for file in files] for name, files in MNIST_FILES.items()}
    for name, (images, labels) in pairs.items():
        if not os.path.exists(database := os.path.join(target, name)):
            convert_mnist_data(images, labels, database)


def find_idx(source: str | os.PathLike[str], name: str) -> str:
    """The path of the IDX file `name` in the folder `source`, compressed or not, with a dash or a dot before `idx`."""
    if not os.path.isdir(source):
        raise DataError(f"{os.fspath(source)}: there is no such folder; give the one with MNIST's four IDX files")
    names = [spelling + ending for spelling in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
    for path in (os.path.join(source, candidate) for candidate in names):
        if os.path.isfile(path):
            return path
    raise DataError(f"{os.fspath(source)}: the folder has no file {name} or {name}.gz; it must hold MNIST's four IDX "
                    f"files: {', '.join(file for files in MNIST_FILES.values() for file in files)}")


def make_digits(target: str | os.PathLike[str]) -> None:
    """Makes digits_train_lmdb (1397 images) and digits_test_lmdb (400) in `target`; leaves alone what is there.

    The images are scans of handwritten digits, 8x8 pixels of 0..16, that scikit-learn brings along (from the UCI
    repository's "Optical Recognition of Handwritten Digits"); they are enlarged to 28x28 pixels of 0..255, bilinearly.
    Both parts have the digits in equal shares.
    """
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = [cv2.resize(image, (28, 28), interpolation=cv2.INTER_LINEAR) for image in digits.images * (255 / 16)]
    pixels = np.rint(images).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        pixels, digits.target, test_size=DIGITS_TEST, stratify=digits.target, random_state=DIGITS_SPLIT_SEED)
    for name, part, labels in (("digits_train_lmdb", train, train_labels), ("digits_test_lmdb", test, test_labels)):
        if not os.path.exists(database := os.path.join(target, name)):
            _write(database, zip(part, labels.tolist()))


def _write(database: str, images: Iterable[tuple[np.ndarray, int]]) -> None:
    with create_database(database) as writer:
        for i, (image, label) in enumerate(images):
            writer.put(b"%08d" % i, make_datum(image[None], label).SerializeToString())
