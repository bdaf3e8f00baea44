"""The tools that make databases and mean files."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tarfile
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_compat.db import create_database, datum_image, make_datum, open_database, parse_datum
from caffe_compat.errors import CaffeError, DataError
from caffe_compat.tools.compute_image_mean import compute_image_mean
from caffe_compat.tools.convert_cifar_data import convert_cifar_data
from caffe_compat.tools.convert_imageset import convert_imageset
from caffe_compat.tools.convert_mnist_data import convert_mnist_data

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "data_layer"
RNG = np.random.default_rng(0)


def command(tool: str, *argv: object) -> None:
    """What the command line does with a tool."""
    module = import_module(f"caffe_compat.tools.{tool}")
    assert module.HELP
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(word) for word in argv]))


def content(path) -> list[tuple[bytes, np.ndarray, int]]:
    datums = [(key, parse_datum(value)) for key, value in open_database(path).records()]
    return [(key, datum_image(datum), datum.label) for key, datum in datums]


# -- convert_mnist_data -----------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4) for size in array.shape) + array.tobytes()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_mnist(tmp_path, capsys, compress):
    images, labels = RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8), np.arange(12, dtype=np.uint8)[::-1]
    (tmp_path / "images").write_bytes(compress(idx(images)))
    (tmp_path / "labels").write_bytes(compress(idx(labels)))
    command("convert_mnist_data", tmp_path / "images", tmp_path / "labels", tmp_path / "db")
    assert "db: 12 images" in capsys.readouterr().out
    found = content(tmp_path / "db")
    assert [key for key, _, _ in found] == [b"%08d" % i for i in range(12)]
    np.testing.assert_array_equal([image for _, image, _ in found], images[:, None])
    assert [label for _, _, label in found] == labels.tolist()


@pytest.mark.parametrize(("images", "labels", "message"), [
    (idx(np.zeros((2, 3, 3), np.uint8)), idx(np.zeros(3, np.uint8)), "images has 2 images, but .*labels has 3 labels"),
    (idx(np.zeros(2, np.uint8)), idx(np.zeros(2, np.uint8)), "images: is not an IDX file of 3 axes: it starts with "
                                                             "00000801"),
    (idx(np.zeros((2, 3, 3), np.uint8))[:-1], b"", "images: its header says 2 x 3 x 3 values, but 17 follow"),
    (b"", b"", "images: is not an IDX file of 3 axes: it starts with nothing"),
    (gzip.compress(bytes(1000), mtime=0)[:-9], b"", "images: the compressed file is damaged"),
    (gzip.compress(bytes(1000), mtime=0)[:15] + b"xxxx", b"", "images: "),
    (None, b"", "images: cannot be read: No such file"),
])
def test_bad_mnist(tmp_path, images, labels, message):
    if images is not None:
        (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels").write_bytes(labels)
    with pytest.raises(DataError, match=message):
        convert_mnist_data(tmp_path / "images", tmp_path / "labels", tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_real_mnist(tmp_path, shared):
    folder = shared / "data" / "mnist"
    if not folder.exists():
        pytest.skip("needs MNIST beside the repository")
    files = folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    assert convert_mnist_data(*files, tmp_path / "db") == 10000
    labels = [parse_datum(value).label for _, value in open_database(tmp_path / "db").records()]
    assert labels[:5] == [7, 2, 1, 0, 4]
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# -- convert_cifar_data -----------------------------------------------------------------------------------------------


def test_cifar_binary(tmp_path, capsys):
    source = tmp_path / "cifar-10-batches-bin"
    source.mkdir()
    records = {}
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records[name] = RNG.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[name][:, 0] %= 10
        (source / name).write_bytes(records[name].tobytes())
    command("convert_cifar_data", source, tmp_path / "out", "lmdb")
    assert capsys.readouterr().out == "train: 20 images\ntest: 4 images\n"
    train, test = content(tmp_path / "out" / "cifar10_train_lmdb"), content(tmp_path / "out" / "cifar10_test_lmdb")
    assert [key for key, _, _ in train] == [b"%05d" % i for i in range(20)]
    expected = np.concatenate(list(records.values()))
    for (_, image, label), record in zip(train + test, expected, strict=True):
        assert label == record[0]
        np.testing.assert_array_equal(image.ravel(), record[1:])

    (source / "test_batch.bin").write_bytes(bytes(3074))
    with pytest.raises(DataError, match="test_batch.bin: has 3074 bytes, which is not a multiple of 3073"):
        convert_cifar_data(source, tmp_path / "other")
    (source / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="data_batch_3.bin: is missing"):
        convert_cifar_data(source, tmp_path / "other")
    with pytest.raises(DataError, match="there is no such folder or file"):
        convert_cifar_data(tmp_path / "nowhere", tmp_path / "other")


def solid(folder: Path, paths: dict[str, tuple[int, int, int]]) -> None:
    """PNG images of one colour (R, G, B) each."""
    for path, color in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / path), np.full((32, 32, 3), color[::-1], np.uint8))


@pytest.mark.parametrize("source", ["folder", "archive.tar.xz"])
@pytest.mark.parametrize("seed", [0, None])
def test_cifar_images(tmp_path, source, seed):
    paths = {f"cifar/{phase}/{name}/{i}.png": (10 * label + i, 2, 3) for phase, count in (("train", 4), ("test", 2))
             for label, name in enumerate(["bird", "cat", "zebra"]) for i in range(count)}
    solid(tmp_path / "folder", paths)
    with tarfile.open(tmp_path / "archive.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "folder", "x")
    assert convert_cifar_data(tmp_path / source, tmp_path, shuffle_seed=seed) == {"train": 12, "test": 6}
    for phase, count in (("train", 12), ("test", 6)):
        reds = [color[0] for path, color in sorted(paths.items()) if f"/{phase}/" in path]
        order = range(count) if seed is None else np.random.RandomState(seed).permutation(count)
        found = content(tmp_path / f"cifar10_{phase}_lmdb")
        for (_, image, label), i in zip(found, order, strict=True):
            assert image.shape == (3, 32, 32) and image[:, 0, 0].tolist() == [reds[i], 2, 3]
            assert label == reds[i] // 10
        assert [key for key, _, _ in found] == [b"%05d" % i for i in range(count)]


def test_bad_cifar_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither binary batches .* nor images in train/<class>/"):
        convert_cifar_data(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="bad.tar: cannot be read as a tar file"):
        convert_cifar_data(tmp_path / "bad.tar", tmp_path / "out")
    solid(tmp_path / "broken", {"train/a/0.png": (1, 2, 3), "test/a/0.png": (1, 2, 3)})
    (tmp_path / "broken" / "test" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken: test/a/1.png: OpenCV cannot decode the 8 bytes"):
        convert_cifar_data(tmp_path / "broken", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["cifar10_train_lmdb"]  # the one that is whole


# -- convert_imageset -------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    """Three images and their list: a colour PNG, a grey PNG, a colour JPEG, of different sizes."""
    pixels = {"a b.png": RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8),
              "sub/grey.png": RNG.integers(0, 256, (4, 7), dtype=np.uint8), "c.jpeg": np.full((8, 8, 3), 100, np.uint8)}
    (tmp_path / "sub").mkdir()
    for name, image in pixels.items():
        assert cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "list.txt").write_text("a b.png 3\nsub/grey.png 1\n\nc.jpeg -2\n")
    return pixels


def test_imageset(tmp_path, images, capsys):
    command("convert_imageset", f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "db")
    assert "db: 3 images" in capsys.readouterr().out
    found = content(tmp_path / "db")
    assert [key for key, _, _ in found] == [b"00000000_a b.png", b"00000001_sub/grey.png", b"00000002_c.jpeg"]
    assert [label for _, _, label in found] == [3, 1, -2]
    np.testing.assert_array_equal(found[0][1], images["a b.png"].transpose(2, 0, 1))
    np.testing.assert_array_equal(found[1][1], np.stack([images["sub/grey.png"]] * 3))


def test_imageset_resized_grey_shuffled(tmp_path, images):
    command("convert_imageset", "--gray", "--resize_width=3", "--resize_height=2", "--shuffle", "--seed=1",
            "--check_size", f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "db")
    found = content(tmp_path / "db")
    order = np.random.default_rng(1).permutation(3)
    assert [label for _, _, label in found] == [[3, 1, -2][i] for i in order]
    grey = next(image for _, image, label in found if label == 1)
    np.testing.assert_array_equal(grey, cv2.resize(images["sub/grey.png"], (3, 2))[None])


def test_imageset_encoded(tmp_path, images):
    def datums(name, **settings):
        convert_imageset(f"{tmp_path}/", tmp_path / "list.txt", tmp_path / name, **settings)
        return [parse_datum(value) for _, value in open_database(tmp_path / name).records()]

    for datum, name in zip(datums("same", encoded=True), ["a b.png", "sub/grey.png", "c.jpeg"], strict=True):
        assert datum.encoded and datum.data == (tmp_path / name).read_bytes()
    as_jpg = datums("jpg", encode_type="jpg")
    assert as_jpg[2].data == (tmp_path / "c.jpeg").read_bytes()
    assert all(datum.encoded and datum.data.startswith(b"\xff\xd8") for datum in as_jpg)
    small = datums("small", encoded=True, size=(3, 3))
    assert [datum_image(datum).shape for datum in small] == [(3, 3, 3)] * 3
    np.testing.assert_array_equal(datum_image(small[0]), cv2.resize(images["a b.png"], (3, 3)).transpose(2, 0, 1))


def test_bad_imageset(tmp_path, images, caplog):
    arguments = f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "db"
    with pytest.raises(DataError, match=r"list.txt:2: sub/grey.png is \(3, 4, 7\) .* first image \(3, 6, 5\)"):
        convert_imageset(*arguments, check_size=True)
    with pytest.raises(DataError, match='OpenCV cannot write images of the kind "xyz"'):
        convert_imageset(*arguments, encode_type="xyz")
    (tmp_path / "c.jpeg").unlink()
    with pytest.raises(DataError, match="list.txt:4: .*c.jpeg: the image cannot be read: No such "
                                        "file.*skip_unreadable"):
        convert_imageset(*arguments)
    assert not (tmp_path / "db").exists()
    assert convert_imageset(*arguments, skip_unreadable=True) == 2
    assert "list.txt:4: left out: " in caplog.text
    with pytest.raises(DataError, match="none of its 3 images can be read"):
        convert_imageset("nowhere/", tmp_path / "list.txt", tmp_path / "other", skip_unreadable=True)
    with pytest.raises(DataError, match="set both or none"):
        command("convert_imageset", "--resize_width=3", *arguments)


@pytest.mark.parametrize(("text", "message"), [
    ("a.png 1\nb.png\n", 'list.txt:2: found "b.png", expected a path, a space and an integer label'),
    ("a.png one\n", "list.txt:1: "), ("7\n", "list.txt:1: "), ("\n\n", "list.txt: lists no image"),
])
def test_bad_list(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        convert_imageset("", tmp_path / "list.txt", tmp_path / "db")


# -- compute_image_mean -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["db_grey", "db_rgb", "db_float"])
def test_mean_equals_caffe(tmp_path, caplog, name):
    caplog.set_level("INFO")
    command("compute_image_mean", GOLDEN / name, tmp_path / "mean.binaryproto")
    recorded = json.loads((GOLDEN / "cases.json").read_text())["databases"][name]
    logged = [line for line in recorded["tool_messages"] if "channel" not in line]
    assert [line for line in caplog.messages if line in logged] == logged
    assert (tmp_path / "mean.binaryproto").read_bytes() == (GOLDEN / f"{name}.binaryproto").read_bytes()


def test_mean_prints_what_caffe_prints(tmp_path, capsys):
    recorded = json.loads((GOLDEN / "cases.json").read_text())["databases"]
    for name, database in recorded.items():
        command("compute_image_mean", GOLDEN / name)
        assert capsys.readouterr().out.splitlines() == [line for line in database["tool_messages"] if "channel" in line]


def test_mean_of_encoded_and_bad_databases(tmp_path):
    image = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", image)[1].tobytes()
    with create_database(tmp_path / "db") as writer:
        writer.put(b"0", make_datum(encoded, 0).SerializeToString())
        writer.put(b"1", make_datum(np.zeros((3, 6, 5), np.uint8), 0).SerializeToString())
    np.testing.assert_array_equal(compute_image_mean(tmp_path / "db"), image.transpose(2, 0, 1) / np.float32(2))
    with create_database(tmp_path / "other") as writer:
        writer.put(b"0", make_datum(np.zeros((3, 6, 5), np.uint8), 0).SerializeToString())
        writer.put(b"1", make_datum(np.zeros((1, 6, 5), np.uint8), 0).SerializeToString())
    with pytest.raises(DataError, match=r"other: record 1 is \(1, 6, 5\) .* before it are \(3, 6, 5\)"):
        compute_image_mean(tmp_path / "other", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    with pytest.raises(CaffeError, match="cannot be written"):
        compute_image_mean(tmp_path / "db", tmp_path / "nowhere" / "mean.binaryproto")
