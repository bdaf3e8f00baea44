"""caffe.io against its recordings: messages to the last bit, images to the recorded tolerances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from caffe_compat import io, proto
from caffe_compat.errors import CaffeError, DataError

FOLDER = Path(__file__).parents[1] / "golden" / "pycaffe"


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text())["cases"]


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    return {key: values for name in ("resize", "transformer", "oversample", "protos")
            for key, values in np.load(FOLDER / f"{name}.npz").items()}


def tolerance(values: np.ndarray) -> float:
    """The recorded one: 1e-4 for values up to 255, 1e-6 in the unit range."""
    return 1e-4 if np.abs(values).max() > 2 else 1e-6


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in cases("resize") if case["interp_order"] < 3],
                         ids=lambda case: case["key"])
def test_resize(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> None:
    key = case["key"]
    expected = recorded.get(f"{key}/out_no_antialias", recorded[f"{key}/out"])
    found = io.resize_image(recorded[f"{key}/in"], case["new_dims"], case["interp_order"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(expected))


@pytest.mark.parametrize("channels", [2, 3])
def test_cubic_resizing_keeps_a_parabola(channels: int) -> None:
    # Cubic convolution reproduces polynomials of degree 2, away from the border.
    x = np.linspace(0, 1, 20)
    image = np.repeat((x * x)[:, None, None], 6, 1).repeat(channels, 2)
    found = io.resize_image(image, (39, 6), 3)
    places = np.linspace(0, 1, 39) if channels == 2 else (np.arange(39) + 0.5) * 20 / 39 / 19 - 0.5 / 19
    np.testing.assert_allclose(found[6:-6, 3, 0], places[6:-6] ** 2, atol=1e-6)


def test_unknown_interpolation() -> None:
    with pytest.raises(CaffeError, match="interp_order is 2"):
        io.resize_image(np.arange(12.0).reshape(2, 2, 3), (4, 4), 2)


@pytest.mark.parametrize("case", cases("oversample"), ids=lambda case: case["key"])
def test_oversample(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> None:
    key = case["key"]
    found = io.oversample(recorded[f"{key}/in"], np.array(case["crop_dims"]))
    np.testing.assert_array_equal(found, recorded[f"{key}/out"])
    assert found.dtype == np.float32
    with pytest.raises(CaffeError, match="cannot cut crops of 99 x 4"):
        io.oversample(recorded[f"{key}/in"], (99, 4))


def transformer_of(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> io.Transformer:
    transformer = io.Transformer({"data": tuple(case["input_shape"])})
    for method, value in case["steps"]:
        getattr(transformer, method)("data", recorded[value["array"]] if isinstance(value, dict) else value)
    return transformer


@pytest.mark.parametrize("case", cases("transformer"), ids=lambda case: case["key"])
def test_transformer(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> None:
    key, transformer = case["key"], transformer_of(case, recorded)
    given = recorded[f"{key}/in"].copy()
    found = transformer.preprocess("data", given)
    expected = recorded[f"{key}/preprocessed_no_antialias"]
    assert str(found.dtype) == case["preprocessed_dtype"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(expected))
    if case["caller_array_changed_by_preprocess"]:
        np.testing.assert_allclose(given, recorded[f"{key}/caller_array_after"], rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(given, recorded[f"{key}/in"])
    if f"{key}/stored_mean_no_antialias" in recorded:
        mean = recorded[f"{key}/stored_mean_no_antialias"]
        np.testing.assert_allclose(transformer.mean["data"], mean, rtol=0, atol=tolerance(mean))
        assert transformer.mean["data"].dtype == mean.dtype
    if "deprocess_error" in case:
        with pytest.raises(ValueError, match='cannot undo what is set for "data"') as caught:
            transformer.deprocess("data", found)
        assert isinstance(caught.value, CaffeError)
    elif f"{key}/deprocessed_no_antialias" in recorded:
        back = recorded[f"{key}/deprocessed_no_antialias"]
        # On the way back the values are as large as those of `found`, which is what they are rounded to.
        np.testing.assert_allclose(transformer.deprocess("data", found), back, rtol=0, atol=tolerance(expected))


@pytest.mark.parametrize("method, value, message", [
    ("set_transpose", (0, 1), "one number for each axis"),
    ("set_channel_swap", (0, 1), "each of the 3 channels"),
    ("set_mean", np.zeros(2), "Mean channels incompatible"),
    ("set_mean", np.zeros((1, 1, 1, 1)), "Mean shape invalid"),
])
def test_transformer_refuses(method: str, value: Any, message: str) -> None:
    transformer = io.Transformer({"data": (1, 3, 4, 5)})
    with pytest.raises(CaffeError, match=message):
        getattr(transformer, method)("data", value)
    with pytest.raises(CaffeError, match=r'"dta" is not one of the net inputs: data \(did you mean "data"'):
        getattr(transformer, method)("dta", value)


def test_a_constant_mean_of_another_size_stays_constant() -> None:
    transformer = io.Transformer({"data": (1, 3, 4, 5)})
    transformer.set_mean("data", np.full((3, 9, 9), 7.0))
    np.testing.assert_array_equal(transformer.mean["data"], np.full((3, 4, 5), 7.0))


@pytest.mark.parametrize("dtype, scale", [(np.uint8, 255), (np.uint16, 65535)])
def test_load_image(dtype: type, scale: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, scale, (5, 4, 3)).astype(dtype)
    alpha = np.concatenate([rgb[..., ::-1], np.full((5, 4, 1), scale, dtype)], 2)
    cv2.imwrite(str(tmp_path / "color.png"), rgb[..., ::-1])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    cv2.imwrite(str(tmp_path / "grey.png"), rgb[..., 0])
    for name in ("color.png", "alpha.png"):
        found = io.load_image(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, rgb / scale, atol=1e-7)
        grey = io.load_image(tmp_path / name, color=False)
        np.testing.assert_allclose(grey[..., 0], rgb @ np.array([0.2125, 0.7154, 0.0721]) / scale, atol=1e-6)
    np.testing.assert_allclose(io.load_image(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, 2) / scale, atol=1e-7)
    np.testing.assert_allclose(io.load_image(tmp_path / "grey.png", color=False), rgb[..., :1] / scale, atol=1e-7)


def test_image_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text.png: this is no image file"):
        io.load_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"gone.png: there is no such image file"):
        io.load_image(tmp_path / "gone.png")


# -- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in cases("protos") if case["kind"].startswith("array_to_blobproto")],
                         ids=lambda case: case["key"])
def test_blobs(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> None:
    key = case["key"]
    diff = recorded[f"{key}/diff"] if case["with_diff"] else None
    blob = io.array_to_blobproto(recorded[f"{key}/array"], diff)
    assert blob.SerializeToString() == recorded[f"{key}/serialized"].tobytes()
    back = io.blobproto_to_array(blob)
    np.testing.assert_array_equal(back, recorded[f"{key}/back"])
    assert back.dtype == recorded[f"{key}/back"].dtype
    if case["with_diff"]:
        np.testing.assert_array_equal(io.blobproto_to_array(blob, return_diff=True), recorded[f"{key}/back_diff"])


@pytest.mark.parametrize("key", ["blob_legacy", "blob_legacy_and_shape"])
def test_old_blobs(key: str, recorded: dict[str, np.ndarray]) -> None:
    blob = proto.caffe_pb2.BlobProto.FromString(recorded[f"{key}/serialized"].tobytes())
    np.testing.assert_array_equal(io.blobproto_to_array(blob), recorded[f"{key}/back"])


def test_blobs_that_do_not_fit(recorded: dict[str, np.ndarray]) -> None:
    blob = proto.caffe_pb2.BlobProto.FromString(recorded["blob_double/serialized"].tobytes())
    with pytest.raises(ValueError, match=r"shape is \(2, 2\), but it holds 0 values \(and 4 as doubles") as caught:
        io.blobproto_to_array(blob)
    assert isinstance(caught.value, CaffeError)
    with pytest.raises(ValueError, match=r"shape is \(\), but it holds 2 values"):
        io.blobproto_to_array(proto.caffe_pb2.BlobProto(data=[1, 2]))
    with pytest.raises(CaffeError, match=r"the diff's shape is \(3,\), the array's \(2,\)"):
        io.array_to_blobproto(np.zeros(2), np.zeros(3))


def test_blob_vectors(recorded: dict[str, np.ndarray]) -> None:
    text = io.arraylist_to_blobprotovector_str([recorded["blob00/array"], np.array([0, 1, 2])])
    assert text == recorded["vector/serialized"].tobytes()
    for k, array in enumerate(io.blobprotovector_str_to_arraylist(text)):
        np.testing.assert_array_equal(array, recorded[f"vector/back{k}"])


@pytest.mark.parametrize("case", [case for case in cases("protos") if (case["key"] or "").startswith("datum")],
                         ids=lambda case: case["key"])
def test_datums(case: dict[str, Any], recorded: dict[str, np.ndarray]) -> None:
    key = case["key"]
    datum = io.array_to_datum(recorded[f"{key}/array"], case["label"])
    assert datum.SerializeToString() == recorded[f"{key}/serialized"].tobytes()
    back = io.datum_to_array(datum)
    np.testing.assert_array_equal(back, recorded[f"{key}/back"])
    assert str(back.dtype) == case["back_dtype"] and back.flags.writeable


def test_datums_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="Incorrect array shape") as caught:
        io.array_to_datum(np.zeros((2, 3)))
    assert isinstance(caught.value, CaffeError)
    with pytest.raises(CaffeError, match="encoded image file"):
        io.datum_to_array(proto.caffe_pb2.Datum(encoded=True, data=b"x"))
    with pytest.raises(CaffeError, match=r"holds 1 values, but its shape is \(1, 2, 2\)"):
        io.datum_to_array(proto.caffe_pb2.Datum(channels=1, height=2, width=2, data=b"x"))
