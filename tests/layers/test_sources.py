"""HDF5Data, HDF5Output and MemoryData against recorded Caffe, and what goes wrong."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from source_layers import GOLDEN, make_layer, tops

from caffe_compat import proto
from caffe_compat.errors import CaffeError, DataError, NetError
from caffe_compat.layers import LAYERS, Context

FOLDER = GOLDEN / "sources"
CASES = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())["cases"]}
BATCHES = np.load(FOLDER / "batches.npz")
MEMORY = np.load(FOLDER / "memory_input.npz")


@pytest.fixture
def in_golden(monkeypatch):
    monkeypatch.chdir(FOLDER)


# -- HDF5Data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hdf5_three_files", "hdf5_dtypes", "hdf5_one_file_wraps",
                                  "hdf5_list_split_on_whitespace", "hdf5_train_phase"])
def test_hdf5_data_equals_caffe(in_golden, name):
    case = CASES[name]
    layer = make_layer(case["net"])
    assert layer.shapes == [tuple(shape) for shape in case["setup_shape"].values()]
    for iteration in range(case["iterations"]):
        for top, found in zip(case["tops"], tops(layer), strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, BATCHES[f"{name}/{top}/{iteration}"])


@pytest.mark.parametrize(("name", "message"), [
    ("hdf5_missing_dataset", 'h .*a.h5: found no data set "nothing".* the file has: bytes, data, label'),
    ("hdf5_empty_list", "h .*h5/empty.txt lists no HDF5 file"),
    ("hdf5_with_transform", "h .*transform_param is set"),
])
def test_hdf5_data_refuses_what_caffe_refuses(in_golden, name, message):
    with pytest.raises(CaffeError, match=message):
        make_layer(CASES[name]["net"])


def hdf5(folder, files: dict[str, dict[str, np.ndarray]], settings: str = "batch_size: 4", top: str = "label") -> str:
    for name, datasets in files.items():
        with h5py.File(folder / name, "w") as file:
            for key, values in datasets.items():
                file[key] = values
    (folder / "list.txt").write_text("\n".join(str(folder / name) for name in files))
    return (f'layer {{ name: "h" type: "HDF5Data" top: "data" top: "{top}" '
            f'hdf5_data_param {{ source: "{folder}/list.txt" {settings} }} }}')


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + count)
    return {"data": numbers[:, None] * [1, 10], "label": numbers}


def test_hdf5_shuffle_gives_every_row_once_a_pass_and_resumes(tmp_path):
    text = hdf5(tmp_path, {"a.h5": rows(0, 3), "b.h5": rows(3, 5), "c.h5": rows(8, 4)}, "batch_size: 6 shuffle: true")
    layer = make_layer(text)
    batches = [tops(layer) for _ in range(3)]
    state = json.loads(json.dumps(layer.state()))
    batches += [tops(layer) for _ in range(3)]
    passes = np.concatenate([label for _, label in batches]).reshape(3, 12)
    assert (np.sort(passes) == np.arange(12)).all()
    assert (passes[0] != passes[1]).any() and (passes[0] != np.arange(12)).any()
    for data, label in batches:
        np.testing.assert_array_equal(data, label[:, None] * [1, 10])
    other = make_layer(text, seed=9)
    other.load_state(state)
    for _, label in batches[3:]:
        np.testing.assert_array_equal(tops(other)[1], label)
    layer.rewind()
    np.testing.assert_array_equal(tops(layer)[1], batches[0][1])


@pytest.mark.parametrize(("files", "message"), [
    ({"a.h5": {"data": np.zeros((3, 2)), "label": np.zeros(2)}}, r'a.h5: data set "label" has 2 rows and "data" has 3'),
    ({"a.h5": {"data": np.zeros((0, 2)), "label": np.zeros(0)}}, "has 0 rows"),
    ({"a.h5": {"data": np.zeros(2), "label": np.array([b"a", b"b"])}}, r'"label" has 1 axes of type \|S1'),
    ({"a.h5": {"data": np.zeros(()), "label": np.zeros(1)}}, r'"data" has 0 axes'),
])
def test_hdf5_files_that_cannot_be_used(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        make_layer(hdf5(tmp_path, files))


def test_hdf5_files_that_cannot_be_read(tmp_path):
    text = hdf5(tmp_path, {"a.h5": rows(0, 3)})
    (tmp_path / "a.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match="a.h5: cannot be read as an HDF5 file"):
        make_layer(text)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(DataError, match="a.h5: cannot be read as an HDF5 file"):
        make_layer(text)
    (tmp_path / "list.txt").unlink()
    with pytest.raises(DataError, match="list.txt.* cannot be read"):
        make_layer(text)


def test_hdf5_files_that_differ_are_refused_when_reached(tmp_path):
    layer = make_layer(hdf5(tmp_path, {"a.h5": rows(0, 4), "b.h5": {"data": np.zeros((4, 3)), "label": np.zeros(4)}}))
    tops(layer)
    with pytest.raises(DataError, match=r'b.h5: the rows of data set "data" have the shape \(3,\), .* have \(2,\)'):
        tops(layer)


# -- HDF5Output -------------------------------------------------------------------------------------------------------


def make_output(path, shapes=((3, 2, 4), (3,))):
    text = ('layer { name: "out" type: "HDF5Output" bottom: "p" bottom: "q" '
            f'hdf5_output_param {{ file_name: "{path}" }} }}')
    spec = proto.parse_text(text, "NetParameter").message.layer[0]
    layer = LAYERS.get("HDF5Output")(spec, Context.make(True), "out (net.prototxt:1)")
    layer.setup(shapes)
    assert layer.reshape(shapes) == []
    return layer


def test_hdf5_output_equals_caffe(tmp_path):
    path = tmp_path / "out.h5"
    layer = make_output(path)
    p, q = (torch.from_numpy(BATCHES[f"hdf5_output/{name}"]) for name in "pq")
    assert layer.forward(p * p, q) == ()
    with h5py.File(path) as found, h5py.File(FOLDER / "h5" / "written_by_caffe.h5") as expected:
        assert sorted(found) == sorted(expected) == ["data", "label"]
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])
    with pytest.raises(DataError, match="has been written already"):
        layer.forward(p, q)
    assert [file.name for file in tmp_path.iterdir()] == ["out.h5"]


def test_hdf5_output_that_cannot_be(tmp_path):
    with pytest.raises(NetError, match="expected a file in a folder that exists"):
        make_output(tmp_path / "nowhere" / "out.h5")
    with pytest.raises(NetError, match="found 3 items in p and 2 in q"):
        make_output(tmp_path / "out.h5", ((3, 2), (2,)))
    with pytest.raises(NetError, match="has 5 axes"):
        make_output(tmp_path / "out.h5", ((3, 1, 1, 1, 1), (3,)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(CaffeError, match="folder: cannot be written"):
        make_output(tmp_path / "folder").forward(torch.zeros(3, 2), torch.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


# -- MemoryData -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory_cycles", "memory_transform_not_applied"])
def test_memory_data_equals_caffe(name):
    case = CASES[name]
    layer = make_layer(case["net"])
    assert layer.shapes == [tuple(shape) for shape in case["setup_shape"].values()]
    layer.set_input_arrays(MEMORY["x"], MEMORY["y"])
    for iteration in range(case["iterations"]):
        for top, found in zip(case["tops"], tops(layer), strict=True):
            assert found.shape == tuple(case["shape_after_forward"][top])
            np.testing.assert_array_equal(found, BATCHES[f"{name}/{top}/{iteration}"].reshape(found.shape))


def memory():
    return make_layer(CASES["memory_cycles"]["net"]), MEMORY["x"], MEMORY["y"]


def test_memory_data_refuses_what_caffe_refuses():
    layer, x, y = memory()
    with pytest.raises(DataError, match="no data to read"):
        layer.forward()
    with pytest.raises(DataError, match="must be a multiple of batch size; found 10 rows for batch size 4"):
        layer.set_input_arrays(x[:10], y[:10])
    with pytest.raises(DataError, match="data array must be float32; found float64"):
        layer.set_input_arrays(x.astype(np.float64), y)
    with pytest.raises(DataError, match="data array has wrong number of channels; found 1, expected 2"):
        layer.set_input_arrays(np.ascontiguousarray(x[:, :1]), y)
    with pytest.raises(DataError, match="data array has wrong width; found 1, expected 2"):
        layer.set_input_arrays(np.ascontiguousarray(x[..., :1]), y)
    with pytest.raises(DataError, match="data array must be C contiguous"):
        layer.set_input_arrays(x[::2], y[::2])
    with pytest.raises(DataError, match="data array must be 4-d; found 2 axes"):
        layer.set_input_arrays(x.reshape(len(x), -1), y)
    with pytest.raises(DataError, match="same first dimension; found 12 and 8"):
        layer.set_input_arrays(x, y[:8])
    with pytest.raises(NetError, match="batch_size is 0"):
        make_layer(CASES["memory_cycles"]["net"].replace("batch_size: 4", ""))


def test_memory_data_is_not_copied_and_resumes():
    layer, x, y = memory()
    layer.set_input_arrays(x, y)
    first = tops(layer)[0].copy()
    state = layer.state()
    second = tops(layer)[0].copy()
    layer.load_state(state)
    np.testing.assert_array_equal(tops(layer)[0], second)
    layer.rewind()
    np.testing.assert_array_equal(tops(layer)[0], first)
    x[4, 0, 0, 0] = 123
    assert tops(layer)[0][0, 0, 0, 0] == 123
