"""Datum: what is in it, and transforming batches of images, against plain loops over Caffe's formulas."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.db import datum_image, decode_image, make_datum, parse_datum
from caffe_compat.db.transform import Transformer
from caffe_compat.errors import DataError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (3, 6, 5), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return cv2.imencode(kind, image)[1].tobytes()


@pytest.mark.parametrize("image", [IMAGE, RNG.standard_normal((2, 3, 4)).astype(np.float32)])
def test_raw_images_come_back(image):
    datum = parse_datum(make_datum(image, -7).SerializeToString())
    found = datum_image(datum)
    assert datum.label == -7 and not datum.encoded and found.dtype == image.dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_encoded_images_are_decoded_in_bgr(kind):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 200
    for color in (None, True):
        found = datum_image(make_datum(encoded(red, kind), 0), color)
        assert found.shape == (3, 16, 16)
        np.testing.assert_allclose(found.mean((1, 2)), [0, 0, 200], atol=3)
    assert datum_image(make_datum(encoded(red, kind), 0), False).shape == (1, 16, 16)


def test_encoded_images_keep_or_change_their_channels():
    grey = datum_image(make_datum(encoded(GREY), 0))
    np.testing.assert_array_equal(grey, GREY[None])
    np.testing.assert_array_equal(datum_image(make_datum(encoded(GREY), 0), True), np.stack([GREY] * 3))
    alpha = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(alpha)), alpha.transpose(2, 0, 1))
    np.testing.assert_array_equal(decode_image(encoded(IMAGE.transpose(1, 2, 0)), size=(3, 4)).transpose(1, 2, 0),
                                  cv2.resize(IMAGE.transpose(1, 2, 0), (4, 3)))


@pytest.mark.parametrize(("datum", "message"), [
    (dict(channels=3, height=2, width=2, data=bytes(11)), "says 3 x 2 x 2 .* holds 11 values"),
    (dict(channels=1, height=2, width=2, float_data=[1, 2, 3]), "says 1 x 2 x 2 .* holds 3 values"),
    (dict(channels=-1, height=2, width=2, data=bytes(4)), "says -1 x 2 x 2 .* holds 4 values"),
    (dict(), "says 0 x 0 x 0 .* holds 0 values"),
    (dict(encoded=True, data=b""), "cannot decode the 0 bytes"),
    (dict(encoded=True, data=b"GIF or what?"), "cannot decode the 12 bytes"),
    (dict(encoded=True, data=encoded(GREY.astype(np.uint16))), "has uint16 pixels"),
])
def test_bad_datums(datum, message):
    with pytest.raises(DataError, match=message):
        datum_image(proto.BVLC.message("Datum")(**datum))


def test_records_of_other_programs():
    with pytest.raises(DataError, match="the record is not a Datum"):
        parse_datum(b"\xff\xff\xff\xff no protobuf")


# -- transforming -----------------------------------------------------------------------------------------------------


def transformer(settings: str = "", training: bool = True) -> Transformer:
    text = f'layer {{ name: "d" type: "Data" transform_param {{ {settings} }} }}'
    return Transformer(proto.parse_text(text, "NetParameter").message.layer[0].transform_param, training, "d")


def transform(settings: str, images, training: bool = True, seed: int = 0) -> np.ndarray:
    made = transformer(settings, training)
    out = np.full((len(images), *made.output_shape(images[0].shape, "image 0")), np.nan, np.float32)
    made(images, lambda i: f"image {i}", np.random.default_rng(seed), out)
    return out


def write_mean(path, mean) -> str:
    blob = proto.BVLC.message("BlobProto")(data=mean.ravel().tolist())
    blob.shape.dim.extend((1, *mean.shape))
    path.write_bytes(blob.SerializeToString())
    return f'mean_file: "{path}"'


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_order_of_arithmetic(kind):
    images = [RNG.integers(0, 256, (3, 6, 5)).astype(kind) for _ in range(4)]
    found = transform("scale: 0.017 mean_value: 10.3 mean_value: 20 mean_value: 30", images)
    mean = np.array([10.3, 20, 30], np.float32)[:, None, None]
    expected = (np.stack(images).astype(np.float32) - mean) * np.float32(0.017)
    np.testing.assert_array_equal(found, expected)


def test_random_crops_and_mirrors_take_the_mean_with_them(tmp_path):
    """Each image is its own mean plus a number; whatever the crop and mirror, that number remains."""
    mean = RNG.integers(0, 200, (3, 7, 6)).astype(np.float32)
    images = [(mean + i).astype(np.uint8) for i in range(8)]
    for settings in ("crop_size: 4 mirror: true", "mirror: true", "crop_size: 4", ""):
        for training in (True, False):
            found = transform(f"{settings} {write_mean(tmp_path / 'mean', mean)}", images, training)
            np.testing.assert_array_equal(found, np.broadcast_to(np.arange(8.0).reshape(-1, 1, 1, 1), found.shape))


def test_crops_reach_every_place_and_mirrors_happen_half_of_the_time():
    columns = np.tile(np.arange(6, dtype=np.uint8), (1, 5, 1))
    rows = np.tile(np.arange(5, dtype=np.uint8)[:, None], (1, 1, 6))
    found = transform("crop_size: 3 mirror: true", [columns] * 600)
    lefts, mirrored = found[:, 0, 0].min(1), found[:, 0, 0, 0] > found[:, 0, 0, 2]
    assert np.bincount(lefts.astype(int)).min() > 100 and set(lefts) == {0, 1, 2, 3}
    assert 250 < mirrored.sum() < 350
    tops = transform("crop_size: 3 mirror: true", [rows] * 600)[:, 0, 0, 0]
    assert np.bincount(tops.astype(int)).min() > 150 and set(tops) == {0, 1, 2}


def test_central_crop_of_images_that_differ():
    images = [np.arange(h * w, dtype=np.uint8).reshape(1, h, w) for h, w in ((6, 5), (9, 7), (3, 3))]
    found = transform("crop_size: 3", images, training=False)
    for crop, image in zip(found, images, strict=True):
        top, left = (image.shape[1] - 3) // 2, (image.shape[2] - 3) // 2
        np.testing.assert_array_equal(crop, image[:, top : top + 3, left : left + 3])


def test_colour_settings():
    assert [transformer(text).color for text in ("", "force_color: true", "force_gray: true")] == [None, True, False]


def test_channels_that_differ_within_a_batch():
    with pytest.raises(DataError, match="d: image 1 is 1 x 2 x 2 .* batch has 3 x 2 x 2"):
        transform("crop_size: 2", [np.zeros((3, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)])
