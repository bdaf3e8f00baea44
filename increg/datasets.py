"""The data that the experiments need: how each set's databases are made from the official archives, or found ready.

`DATASETS` has one entry a set. A run's folder holds the databases under the names that the experiment's net reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from caffe_compat.db import create_database, datum_image, make_datum, open_database, parse_datum
from caffe_compat.errors import DataError
from caffe_compat.registry import Registry
from caffe_compat.tools.compute_image_mean import compute_image_mean, write_mean
from caffe_compat.tools.convert_cifar_data import convert_cifar_data, read_cifar
from caffe_compat.tools.convert_mnist_data import convert_mnist_data

#: An image (channels, height, width) and its label.
Labelled = tuple[np.ndarray, int]

#: The four files of MNIST: images and labels to train with and to test with. They may be compressed (.gz).
MNIST_FILES = {
    "mnist_train_lmdb": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "mnist_test_lmdb": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
#: How many of the 1797 digits are kept for testing, and the seed of the choice, which is the same for every run.
DIGITS_TEST, DIGITS_SPLIT_SEED = 400, 0
#: CIFAR's padding for random crops, and the colour (R, G, B) it is padded with: CIFAR-10's mean, rounded.
PADDING, PADDING_COLOUR = 4, (125, 123, 114)
#: CIFAR-100's files, and the bytes of a record: coarse label, fine label, the planes R, G, B.
CIFAR100_FILES, CIFAR100_RECORD = {"train": "train.bin", "test": "test.bin"}, 2 + 3 * 32 * 32


@dataclass(frozen=True)
class Dataset:
    """A data set. `shape` is that of its stored images, `files` what stands in a run's folder when all is made.

    `make(source, target)` makes them in the folder `target` from `source`, `source` being `wanted` (in words; None if
    the set needs no source); `check(source)` makes nothing. Both raise `DataError` for a source that lacks something.
    `read(source)` gives the images of "train" and "test" without databases, for sets that fit into memory.
    """

    shape: tuple[int, int, int]
    files: tuple[str, ...]
    wanted: str | None
    make: Callable[[Path, Path], None]
    check: Callable[[Path], None] = lambda source: None
    read: Callable[[Path], Mapping[str, Iterable[Labelled]]] | None = None


DATASETS: Registry[Dataset] = Registry("data set")


def provide(name: str, source: str | os.PathLike[str] | None, target: str | os.PathLike[str]) -> None:
    """Makes the databases of the set `name` in the folder `target`, or links them there if `source` is a folder that
    holds them ready-made; leaves alone what is there. Raises `DataError` if `source` is not what it has to be."""
    dataset, target = DATASETS.get(name), Path(target)
    missing = [file for file in dataset.files if not (target / file).exists()]
    if not missing:
        return
    check_source(name, source)
    if source is not None and _is_ready(dataset, Path(source)):
        for file in missing:
            os.symlink(Path(source).resolve() / file, target / file)
    else:
        dataset.make(Path(source or "."), target)


def check_source(name: str, source: str | os.PathLike[str] | None) -> None:
    """Raises `DataError` if the set `name` cannot be made from `source`; makes nothing."""
    dataset = DATASETS.get(name)
    if dataset.wanted is None:
        return
    wanted = f"expected {dataset.wanted}, or a folder with {', '.join(dataset.files)}"
    if source is None:
        raise DataError(f"the data set {name} is needed: --data names {wanted.removeprefix('expected ')}")
    if not os.path.exists(source):
        raise DataError(f"{os.fspath(source)}: there is no such folder or file; {wanted}")
    if not _is_ready(dataset, Path(source)):
        dataset.check(Path(source))


def _is_ready(dataset: Dataset, source: Path) -> bool:
    return all((source / file).exists() for file in dataset.files)


# -- scikit-learn's digits, at hand everywhere ------------------------------------------------------------------------

def make_digits(target: str | os.PathLike[str], shape: tuple[int, int, int] = (1, 28, 28),
                names: tuple[str, str] = ("digits_train_lmdb", "digits_test_lmdb"), most: int | None = None) -> None:
    """Makes databases of 1397 images to train with and 400 to test with (or of `most` each) in `target`, under `names`;
    leaves alone what is there. See `read_digits`."""
    for name, images in zip(names, read_digits(shape).values()):
        if not os.path.exists(database := os.path.join(target, name)):
            _write(database, islice(images, most))


def read_digits(shape: tuple[int, int, int] = (1, 28, 28)) -> dict[str, Iterable[Labelled]]:
    """Scans of handwritten digits, 8x8 pixels of 0..16, that scikit-learn brings along (from the UCI repository's
    "Optical Recognition of Handwritten Digits"), enlarged to the pixels of `shape`, 0..255, bilinearly, the same in every
    channel. Both parts have the digits in equal shares.
    """
    import cv2
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        digits.images * (255 / 16), digits.target, test_size=DIGITS_TEST, stratify=digits.target,
        random_state=DIGITS_SPLIT_SEED)
    channels, height, width = shape

    def enlarged(image: np.ndarray) -> np.ndarray:
        pixels = np.rint(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)).astype(np.uint8)
        return np.broadcast_to(pixels, (channels, height, width))

    return {"train": zip(map(enlarged, train), train_labels.tolist()), "test": zip(map(enlarged, test), test_labels.tolist())}


DATASETS.add("digits")(Dataset((1, 28, 28), ("digits_train_lmdb", "digits_test_lmdb"), None,
                               lambda source, target: make_digits(target), read=lambda source: read_digits()))
#: For experiments whose nets find their data by themselves.
DATASETS.add("none")(Dataset((0, 0, 0), (), None, lambda source, target: None))


# -- MNIST ------------------------------------------------------------------------------------------------------------

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


def _check_mnist(source: Path) -> None:
    for names in MNIST_FILES.values():
        for name in names:
            find_idx(source, name)


DATASETS.add("mnist")(Dataset((1, 28, 28), tuple(MNIST_FILES), "the folder with MNIST's four IDX files", make_mnist,
                              _check_mnist))


# -- CIFAR ------------------------------------------------------------------------------------------------------------

CIFAR10 = ("the folder of CIFAR-10's binary version (cifar-10-batches-bin, from cifar-10-binary.tar.gz), or a folder or tar "
           "file of images in train/<class>/ and test/<class>/")


def make_cifar10(source: Path, target: Path) -> None:
    """CIFAR-10's two databases and its mean image."""
    _convert_cifar10(source, target)
    compute_image_mean(target / "cifar10_train_lmdb", target / "mean.binaryproto")


def make_cifar10_padded(source: Path, target: Path) -> None:
    """CIFAR-10's two databases, the images for training with a border, from which random crops are taken."""
    _convert_cifar10(source, target)
    if not (padded := target / "cifar10_pad4_train_lmdb").exists():
        data = (parse_datum(value) for _, value in open_database(target / "cifar10_train_lmdb").records())
        _write(padded, (_padded((datum_image(datum), datum.label)) for datum in data))


def _convert_cifar10(source: Path, target: Path) -> None:
    """Both databases, in a folder of their own first, so that a run stopped in between can begin again."""
    names = "cifar10_train_lmdb", "cifar10_test_lmdb"
    if all((target / name).exists() for name in names):
        return
    with TemporaryDirectory(dir=target) as folder:
        convert_cifar_data(source, folder)
        for name in names:
            if not (target / name).exists():
                os.rename(os.path.join(folder, name), target / name)


def make_cifar100_padded(source: Path, target: Path) -> None:
    """CIFAR-100's two databases, of the fine labels; the images for training with a border."""
    for name, phase in (("cifar100_pad4_train_lmdb", "train"), ("cifar100_test_lmdb", "test")):
        if not (target / name).exists():
            images = _read_cifar100(source / CIFAR100_FILES[phase])
            _write(target / name, map(_padded, images) if phase == "train" else images)


def _check_cifar100(source: Path) -> None:
    for name in CIFAR100_FILES.values():
        if not (source / name).is_file():
            raise DataError(f"{source}: has no file {name}; the folder must be cifar-100-binary, from "
                            "cifar-100-binary.tar.gz")


def _read_cifar100(path: Path) -> Iterator[Labelled]:
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % CIFAR100_RECORD:
        raise DataError(f"{path}: has {values.size} bytes, which is not a multiple of {CIFAR100_RECORD}, the size of two "
                        "labels and 3 x 32 x 32 pixels; copy it again")
    records = values.reshape(-1, CIFAR100_RECORD)
    return zip(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].tolist())


def _padded(item: Labelled) -> Labelled:
    image, label = item
    channels, height, width = image.shape
    padded = np.empty((channels, height + 2 * PADDING, width + 2 * PADDING), np.uint8)
    padded[:] = np.array(PADDING_COLOUR, np.uint8)[:, None, None]
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = image
    return padded, label


def _check_cifar10(source: Path) -> None:
    if source.is_dir():
        read_cifar(source)  # lists the files, reads none of the images


DATASETS.add("cifar10")(Dataset((3, 32, 32), ("cifar10_train_lmdb", "cifar10_test_lmdb", "mean.binaryproto"), CIFAR10,
                                make_cifar10, _check_cifar10, read=lambda source: {name: images for name, (_, images)
                                                                   in read_cifar(source).items()}))
DATASETS.add("cifar10_pad4")(Dataset((3, 40, 40), ("cifar10_pad4_train_lmdb", "cifar10_test_lmdb"), CIFAR10,
                                     make_cifar10_padded, _check_cifar10))
DATASETS.add("cifar100_pad4")(Dataset(
    (3, 40, 40), ("cifar100_pad4_train_lmdb", "cifar100_test_lmdb"),
    "the folder of CIFAR-100's binary version (cifar-100-binary, from cifar-100-binary.tar.gz)", make_cifar100_padded,
    _check_cifar100))


# -- ImageNet ---------------------------------------------------------------------------------------------------------

ILSVRC12_FILES = "ilsvrc12_train_lmdb", "ilsvrc12_val_lmdb", "imagenet_mean.binaryproto"


def _refuse_ilsvrc12(source: Path, target: Path | None = None) -> None:
    missing = [name for name in ILSVRC12_FILES if not (source / name).exists()]
    raise DataError(f"{source}: has no {', no '.join(missing)}. The experiment's README.md tells how caffe-compat "
                    "convert_imageset and compute_image_mean make them from ILSVRC-12's archives")


DATASETS.add("ilsvrc12")(Dataset((3, 256, 256), ILSVRC12_FILES, "a folder with ILSVRC-12's databases and mean image",
                                 _refuse_ilsvrc12, _refuse_ilsvrc12))


# -- a stand-in for any of them ---------------------------------------------------------------------------------------

def stand_in(name: str, target: str | os.PathLike[str], most: int | None) -> None:
    """Puts digits where the set `name` is expected: databases of its names, with images of its shape, at most `most`
    each, and a mean image of one grey."""
    dataset, target = DATASETS.get(name), Path(target)
    make_digits(target, dataset.shape, dataset.files[:2], most)
    for file in dataset.files[2:]:
        write_mean(target / file, np.full(dataset.shape, 90.0, np.float32))


def _write(database: str | os.PathLike[str], images: Iterable[Labelled]) -> None:
    with create_database(database) as writer:
        for i, (image, label) in enumerate(images):
            writer.put(b"%08d" % i, make_datum(np.ascontiguousarray(image), label).SerializeToString())
