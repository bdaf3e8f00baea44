"""Classifier and Detector: which pixels reach the net, and what becomes of its answers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe_compat as caffe
from caffe_compat.errors import CaffeError, DataError

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3
  weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
MEAN = np.array([104.0, 117.0, 123.0])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A net's definition and weights."""
    (tmp_path / "net.prototxt").write_text(NET)
    caffe.Net(tmp_path / "net.prototxt", caffe.TEST, seed=2).save(tmp_path / "net.caffemodel")
    return str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def probabilities(net: caffe.Net, crops: np.ndarray) -> np.ndarray:
    """What the net says to RGB crops in 0..1, by numpy alone."""
    data = crops[..., ::-1].transpose(0, 3, 1, 2) * 255 - MEAN[:, None, None]
    weights, biases = (blob.data for blob in net.params["fc"])
    scores = np.exp(data.reshape(len(data), -1) @ weights.T + biases)
    return scores / scores.sum(1, keepdims=True)


def test_one_crop_or_ten(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, image_dims=(10, 13), mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    images = [photo(10, 13, seed) for seed in range(3)]
    found = net.predict(images, oversample=False)
    np.testing.assert_allclose(found, probabilities(net, np.stack(images)[:, 1:9, 2:10]), rtol=1e-4)
    crops = [image[y:y + 8, x:x + 8] for image in images for y, x in ((0, 0), (0, 5), (2, 0), (2, 5), (1, 2))]
    plain, mirrored = (probabilities(net, np.stack(each)) for each in (crops, [crop[:, ::-1] for crop in crops]))
    means = (plain + mirrored).reshape(3, 5, 3).mean(1) / 2
    np.testing.assert_allclose(net.predict(images), means, rtol=1e-4)


def test_images_are_resized(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    images = [photo(20, 16), photo(8, 8)]
    resized = np.stack([caffe.io.resize_image(image, (8, 8)) for image in images])
    np.testing.assert_allclose(net.predict(images, oversample=False), probabilities(net, resized), rtol=1e-4)
    np.testing.assert_array_equal(images[1], photo(8, 8))  # not written into
    small = caffe.Classifier(*files, image_dims=(6, 6))
    for oversample in (True, False):
        with pytest.raises(CaffeError, match="cannot cut"):
            small.predict(images, oversample)


def test_windows(files: tuple[str, str], tmp_path: Path) -> None:
    net = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0))
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    name = str(tmp_path / "image.png")
    cv2.imwrite(name, image[..., ::-1])
    windows = np.array([[2, 3, 10, 11], [0, 0, 20, 30], [5, 20, 13, 28], [2, 3, 10, 11], [12, 4, 20, 12]])
    found = net.detect_windows([(name, windows), (name, windows[:1])])
    assert [item["filename"] for item in found] == [name] * 6
    assert [tuple(item["window"]) for item in found] == [tuple(window) for window in [*windows, windows[0]]]
    crops = [caffe.io.resize_image(image[top:bottom, left:right] / np.float32(255), (8, 8))
             for top, left, bottom, right in [*windows, windows[0]]]
    expected = probabilities(net, np.stack(crops))
    np.testing.assert_allclose([item["prediction"] for item in found], expected, rtol=1e-4)
    assert net.detect_windows([]) == net.detect_windows([(name, [])]) == []
    for window in ([-1, 0, 5, 5], [5, 5, 5, 9], [30, 0, 40, 5]):
        with pytest.raises(DataError, match="lies not in an image"):
            net.detect_windows([(name, [window])])
    with pytest.raises(DataError, match="gone.png"):
        net.detect_windows([("gone.png", windows)])


def test_context(files: tuple[str, str]) -> None:
    net = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0), context_pad=2)
    ramp = np.broadcast_to((np.arange(40, dtype=np.float32) / 40)[:, None, None], (40, 40, 3))
    inside = net.crop(ramp, [16, 16, 24, 24])
    # The 9 pixels from 16 to 24 fill 4 of the input's 8; so 18 fill it all, from 20.5 - 9 on.
    assert inside.shape == (8, 8, 3)
    np.testing.assert_allclose(inside[3:5, 4, 0].mean(), 20 / 40, atol=0.03)
    np.testing.assert_allclose(np.diff(inside[1:7, 4, 0]), 18 / 8 / 40, rtol=0.1)
    corner = net.crop(ramp, [0, 0, 8, 8])
    outside = round(5 * 8 / 20)  # the box begins at -4.5, rounded to even
    np.testing.assert_allclose(corner[:outside], np.tile(MEAN[::-1] / 255, (outside, 8, 1)), rtol=1e-6)
    assert np.diff(corner[outside:, 4, 0]).min() > 0
    plain = caffe.Detector(*files, context_pad=2).crop(ramp, [0, 0, 8, 8])
    assert not plain[:2].any()


def test_selective_search_is_not_part_of_it(files: tuple[str, str]) -> None:
    with pytest.raises(CaffeError, match="detect_windows instead"):
        caffe.Detector(*files).detect_selective_search(["a.png"])
