"""The experiments' data: databases from files in the official archives' formats, ready-made ones, and stand-ins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.db import datum_image, open_database, parse_datum
from caffe_compat.errors import DataError
from increg import datasets
from increg.datasets import DATASETS, provide, stand_in


def images(database: Path) -> list[tuple[np.ndarray, int]]:
    """What a database holds."""
    data = [parse_datum(value) for _, value in open_database(database).records()]
    return [(datum_image(datum), datum.label) for datum in data]


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with tiny files of CIFAR-10's and CIFAR-100's binary formats, and the pixels in them."""
    folder, random = tmp_path / "archive", np.random.default_rng(0)
    folder.mkdir()
    pixels = {phase: random.integers(0, 256, (10, 3, 32, 32), np.uint8) for phase in ("train", "test")}
    for phase, values in pixels.items():
        flat, labels = values.reshape(10, -1), np.arange(10, dtype=np.uint8)[:, None]
        np.concatenate([labels[::-1], labels + 50, flat], 1).tofile(folder / f"{phase}.bin")
        records = np.concatenate([labels, flat], 1)
        if phase == "test":
            records.tofile(folder / "test_batch.bin")
        else:
            for k, part in enumerate(np.split(records, 5), 1):
                part.tofile(folder / f"data_batch_{k}.bin")
    return folder, pixels


def test_cifar10(archive: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    folder, pixels = archive
    provide("cifar10", folder, tmp_path)
    for phase, values in pixels.items():
        found = images(tmp_path / f"cifar10_{phase}_lmdb")
        np.testing.assert_array_equal([image for image, _ in found], values)
        assert [label for _, label in found] == list(range(10))
    assert (tmp_path / "mean.binaryproto").exists()
    before = (tmp_path / "mean.binaryproto").stat().st_mtime_ns
    provide("cifar10", None, tmp_path)  # all is there: no source is needed, nothing is made again
    assert (tmp_path / "mean.binaryproto").stat().st_mtime_ns == before
    read = DATASETS.get("cifar10").read(folder)
    np.testing.assert_array_equal([image for image, _ in read["test"]], pixels["test"])


@pytest.mark.parametrize(("name", "first_label"), [("cifar10_pad4", 0), ("cifar100_pad4", 50)])
def test_padded_sets(name: str, first_label: int, archive: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """The images for training have a border of the mean colour; CIFAR-100 has its fine labels."""
    folder, pixels = archive
    provide(name, folder, tmp_path)
    train, test = (images(tmp_path / file) for file in DATASETS.get(name).files)
    assert train[0][0].shape == (3, 40, 40) and test[0][0].shape == (3, 32, 32)
    np.testing.assert_array_equal(train[3][0][:, 4:36, 4:36], pixels["train"][3])
    assert train[3][0][:, 0, 0].tolist() == list(datasets.PADDING_COLOUR) == train[3][0][:, 39, 20].tolist()
    np.testing.assert_array_equal(test[3][0], pixels["test"][3])
    assert [label for _, label in test] == list(range(first_label, first_label + 10))


def test_making_them_can_be_stopped(archive: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """One of two databases is there: the other is made."""
    folder, _ = archive
    provide("cifar10", folder, tmp_path)
    (tmp_path / "cifar10_test_lmdb").rename(tmp_path / "gone")
    (tmp_path / "mean.binaryproto").unlink()
    provide("cifar10", folder, tmp_path)
    assert len(images(tmp_path / "cifar10_test_lmdb")) == 10


def test_ready_databases_are_linked(tmp_path: Path) -> None:
    ready, target = tmp_path / "ready", tmp_path / "run"
    target.mkdir()
    for name in datasets.ILSVRC12_FILES:
        (ready / name).mkdir(parents=True)
    provide("ilsvrc12", ready, target)
    assert all((target / name).resolve() == ready / name for name in datasets.ILSVRC12_FILES)


def test_damaged_cifar100(tmp_path: Path) -> None:
    for name in datasets.CIFAR100_FILES.values():
        (tmp_path / name).write_bytes(b"not 3074 bytes")
    with pytest.raises(DataError, match=r"train.bin: has 14 bytes, which is not a multiple of 3074"):
        provide("cifar100_pad4", tmp_path, tmp_path)
    assert not list(tmp_path.glob("*lmdb"))


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if DATASETS.get(name).files])
def test_stand_ins(name: str, tmp_path: Path) -> None:
    """Digits of every set's shape, under its names."""
    pytest.importorskip("sklearn")
    stand_in(name, tmp_path, 3)
    dataset = DATASETS.get(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(dataset.files)
    for file in dataset.files[:2]:
        found = images(tmp_path / file)
        assert len(found) == 3 and found[0][0].shape == dataset.shape and found[0][0].max() > 200
