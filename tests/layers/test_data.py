"""Data, Input and DummyData against recorded Caffe; reading ahead, resuming, and what goes wrong."""

from __future__ import annotations

import gc
import json
import shutil
import threading

import numpy as np
import pytest
from source_layers import GOLDEN, make_layer, tops

from caffe_compat.db import create_database, make_datum
from caffe_compat.errors import CaffeError, DataError, NetError, UnknownType

FOLDER = GOLDEN / "data_layer"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
BATCHES = np.load(FOLDER / "batches.npz")
#: What our message must say where Caffe refuses.
REFUSED = {
    "refused_both_means": "both mean_file and mean_value",
    "refused_two_mean_values": "found 2 mean_value for the 3 channels",
    "refused_crop_too_large": "crop_size is 11, .* only 12 x 10",
    "refused_mean_file_of_other_size": "db_rgb.binaryproto is 3 x 11 x 13, but record .* is 1 x 12 x 10",
    "refused_mean_file_three_axes": "mean_three_axes.binaryproto holds a blob of 3 x 11 x 13",
}


def case(name: str) -> dict:
    return next(case for case in CASES if case["name"] == name)


@pytest.fixture
def in_golden(monkeypatch):
    monkeypatch.chdir(FOLDER)


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """A database "numbered" of ten 1 x 6 x 5 images; image i is filled with i and has label i."""
    monkeypatch.chdir(tmp_path)
    write_numbered("numbered", range(10))


def write_numbered(path: str, numbers, shape=(1, 6, 5)) -> None:
    with create_database(path) as writer:
        for i, number in enumerate(numbers):
            writer.put(b"%08d" % i, make_datum(np.full(shape, number, np.uint8), number).SerializeToString())


def data(settings: str = "batch_size: 4", transform: str = "", source: str = "numbered") -> str:
    return (f'layer {{ name: "src" type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
            f'data_param {{ source: "{source}" backend: LMDB {settings} }} }}')


@pytest.mark.parametrize("name", [case["name"] for case in CASES if "refused" not in case])
def test_data_reads_what_caffe_reads(in_golden, name):
    expected = case(name)
    layer = make_layer(expected["layer"], expected["phase"])
    assert layer.shapes == [tuple(shape) for shape in expected["setup_shape"].values()]
    for iteration in range(expected["iterations"]):
        for top, found in zip(layer.spec.top, tops(layer), strict=True):
            recorded = BATCHES[f"{name}/{top}/{iteration}"]
            assert found.dtype == np.float32 and found.shape == recorded.shape
            np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-6 * abs(recorded).max())


@pytest.mark.parametrize("name", [case["name"] for case in CASES if "refused" in case])
def test_data_refuses_what_caffe_refuses(in_golden, name):
    with pytest.raises(DataError, match=f"src.*{REFUSED[name]}"):
        make_layer(case(name)["layer"], case(name)["phase"])


def test_reading_changes_nothing_on_the_disk(in_golden):
    before = sorted(path.name for path in (FOLDER / "db_grey").iterdir())
    tops(make_layer(case("grey_plain")["layer"]))
    assert sorted(path.name for path in (FOLDER / "db_grey").iterdir()) == before


def test_two_layers_read_one_database(numbered):
    first, second = make_layer(data()), make_layer(data("batch_size: 3"))
    assert tops(first)[1].tolist() == [0, 1, 2, 3]
    assert tops(second)[1].tolist() == [0, 1, 2]
    assert tops(first)[1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("transform", ["", "mirror: true crop_size: 3"])
@pytest.mark.parametrize("consumed", [0, 1, 3, 7])
def test_resumed_layer_goes_on_exactly(tmp_path, monkeypatch, transform, consumed):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with create_database("noise") as writer:
        for i in range(10):
            writer.put(b"%d" % i, make_datum(rng.integers(0, 256, (3, 7, 8), dtype=np.uint8), i).SerializeToString())
    layer = make_layer(data(transform=transform, source="noise"))
    for _ in range(consumed):
        tops(layer)
    state = json.loads(json.dumps(layer.state()))
    expected = [tops(layer) for _ in range(4)]

    other = make_layer(data(transform=transform, source="noise"), seed=2)
    tops(other)
    other.load_state(state)
    for batch in expected:
        for found, wanted in zip(tops(other), batch, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert other.state() == layer.state()

    layer.rewind()
    again = tops(layer)
    layer.close()
    layer.rewind()
    for found, wanted in zip(tops(layer), again, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_closed_layer_goes_on_where_it_was(numbered):
    layer = make_layer(data())
    assert tops(layer)[1].tolist() == [0, 1, 2, 3]
    layer.close()
    assert tops(layer)[1].tolist() == [4, 5, 6, 7]


def test_seed_decides_random_crops(numbered, tmp_path):
    rng = np.random.default_rng(0)
    with create_database("noise") as writer:
        writer.put(b"0", make_datum(rng.integers(0, 256, (1, 9, 9), dtype=np.uint8), 0).SerializeToString())
    text = data("batch_size: 20", "crop_size: 4 mirror: true", "noise")
    one, same, other = (tops(make_layer(text, seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    whole = tops(make_layer(data("batch_size: 1", "", "noise")))[0][0, 0]
    image = np.lib.stride_tricks.sliding_window_view(whole, (4, 4))
    windows = {window.tobytes() for row in image for window in row}
    mirrored = {window[:, ::-1].tobytes() for row in image for window in row}
    found = [crop.tobytes() for crop in one[:, 0]]
    assert all(crop in windows | mirrored for crop in found)
    assert any(crop in windows for crop in found) and any(crop in mirrored for crop in found)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu(numbered):
    text = data("batch_size: 3", "scale: 0.5 mirror: true crop_size: 2")
    here, there = make_layer(text), make_layer(text, device="cuda")
    for _ in range(40):
        for expected, found in zip(here.forward(), there.forward(), strict=True):
            assert found.device.type == "cuda"
            np.testing.assert_array_equal(found.cpu(), expected)


def test_thread_ends_with_the_layer(numbered):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]

    gc.collect()
    before = len(readers())
    layer = make_layer(data())
    assert len(readers()) == before
    tops(layer)
    assert len(readers()) == before + 1
    del layer
    gc.collect()
    assert len(readers()) == before


def test_images_may_change_between_batches_but_not_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = [(1, 4, 5), (1, 6, 7)]
    with create_database("mixed") as writer:
        for i, shape in enumerate(shapes):
            writer.put(b"%d" % i, make_datum(np.full(shape, i, np.uint8), i).SerializeToString())
    single = make_layer(data("batch_size: 1", source="mixed"))
    assert single.dynamic
    assert [tops(single)[0].shape for _ in range(3)] == [(1, 1, 4, 5), (1, 1, 6, 7), (1, 1, 4, 5)]
    with pytest.raises(DataError, match="src .*record 1 of mixed is 1 x 6 x 7 .*batch has 1 x 4 x 5"):
        tops(make_layer(data("batch_size: 2", source="mixed")))
    cropped = tops(make_layer(data("batch_size: 2", "crop_size: 3", "mixed"), "TEST"))
    assert cropped[0].shape == (2, 1, 3, 3)


def test_float_images_and_mean_per_crop(tmp_path, monkeypatch):
    """A random crop subtracts its own part of the mean file: every value comes out 0 where image and mean are equal."""
    monkeypatch.chdir(tmp_path)
    source = FOLDER / "db_float"
    mean = np.load(FOLDER / "images.npz")["db_float/mean"].reshape(2, 6, 6)
    shutil.copy(f"{source}.binaryproto", "mean.binaryproto")
    with create_database("means") as writer:
        writer.put(b"0", make_datum(mean.astype(np.float32), 0).SerializeToString())
    layer = make_layer(data("batch_size: 8", 'crop_size: 2 mirror: true mean_file: "mean.binaryproto"', "means"))
    assert not tops(layer)[0].any()


def test_errors_while_reading_reach_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_numbered("numbered", [0])
    with create_database("broken") as writer:
        writer.put(b"0", make_datum(np.zeros((1, 2, 2), np.uint8), 0).SerializeToString())
        datum = make_datum(np.zeros((1, 2, 2), np.uint8), 0)
        datum.height = 3
        writer.put(b"1", datum.SerializeToString())
    layer = make_layer(data("batch_size: 1", source="broken"))
    tops(layer)
    for _ in range(2):  # and again, not a wait without end
        with pytest.raises(DataError, match=r"src .*record 1 of broken: the Datum says 1 x 3 x 2 .* 4 values"):
            tops(layer)


@pytest.mark.parametrize(("text", "message"), [
    (data("batch_size: 0"), "batch_size is 0"),
    (data(source="nowhere"), "src .*nowhere: there is no such LMDB database"),
    (data().replace("backend: LMDB", "backend: LEVELDB"), "numbered: is of the kind LMDB, but backend is LEVELDB"),
    (data(transform="force_color: true force_gray: true"), "force_color and force_gray"),
    (data(transform='mean_file: "nowhere.binaryproto"'), "nowhere.binaryproto"),
    (data().replace("transform_param {  }", 'bottom: "x"'), "takes 0 bottom"),
])
def test_data_settings_that_cannot_be(numbered, text, message):
    with pytest.raises(CaffeError, match=message):
        make_layer(text)


def test_state_of_another_layer_is_refused(numbered):
    with pytest.raises(NetError, match="stored position has draw"):
        make_layer(data()).load_state({"draw": 3})


# -- Input and DummyData ----------------------------------------------------------------------------------------------

SOURCES = json.loads((GOLDEN / "sources" / "cases.json").read_text())["cases"]
SOURCE_BATCHES = np.load(GOLDEN / "sources" / "batches.npz")
DUMMY = [case for case in SOURCES if case["name"].startswith("dummy_") and "iterations" in case]
DUMMY_REFUSED = {"dummy_wrong_filler_count": "found 2 data_filler for 3 tops", "dummy_shape_and_legacy": "both shape "
                                                                                                         "and num"}


@pytest.mark.parametrize("expected", [case for case in DUMMY if "refused" not in case], ids=lambda case: case["name"])
def test_dummy_data_equals_caffe(expected):
    layer = make_layer(expected["net"])
    assert layer.shapes == [tuple(shape) for shape in expected["setup_shape"].values()]
    for iteration in range(expected["iterations"]):
        for top, found in zip(expected["tops"], tops(layer), strict=True):
            recorded = SOURCE_BATCHES[f"{expected['name']}/{top}/{iteration}"]
            assert found.shape == recorded.shape
            np.testing.assert_array_equal(found, recorded)


@pytest.mark.parametrize("expected", [case for case in DUMMY if "refused" in case], ids=lambda case: case["name"])
def test_dummy_data_refuses_what_caffe_refuses(expected):
    with pytest.raises(NetError, match=DUMMY_REFUSED[expected["name"]]):
        make_layer(expected["net"])


def test_dummy_constants_are_filled_once():
    expected = next(case for case in SOURCES if case["name"] == "dummy_constant_filled_once")
    layer = make_layer(expected["net"])
    (top,) = tops(layer)
    top[1] = 99
    assert tops(layer)[0].tolist() == [5, 99, 5]


def test_dummy_random_values_are_drawn_anew_and_resume():
    text = ('layer { name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 50 } '
            'data_filler { type: "gaussian" std: 2 } data_filler { type: "uniform" min: 1 max: 2 } } }')
    layer, same = make_layer(text), make_layer(text)
    first, second = tops(layer), tops(layer)
    assert (first[0] != second[0]).all() and 1 <= second[1].min() <= second[1].max() <= 2
    np.testing.assert_array_equal(tops(same)[0], first[0])
    state = json.loads(json.dumps(layer.state()))
    third = tops(layer)
    other = make_layer(text, seed=5)
    other.load_state(state)
    np.testing.assert_array_equal(tops(other)[0], third[0])
    layer.rewind()
    np.testing.assert_array_equal(tops(layer)[1], first[1])


def test_dummy_data_unknown_filler():
    layer = make_layer('layer { name: "d" type: "DummyData" top: "a" dummy_data_param { shape { dim: 1 } '
                       'data_filler { type: "gausian" } } }')
    with pytest.raises(UnknownType, match='"gausian".*did you mean "gaussian"'):
        layer.forward()


def test_input_shapes():
    text = 'layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 } %s } }'
    assert make_layer(text % "").shapes == [(2, 3), (2, 3)]
    assert make_layer(text % "shape { }").shapes == [(2, 3), ()]
    with pytest.raises(NetError, match="found 3 shape for 2 tops"):
        make_layer(text % "shape { dim: 1 } shape { dim: 1 }")
