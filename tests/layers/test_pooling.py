"""Pooling and SPP against a plain rendering of Caffe's rule, over windows that the recordings do not cover."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from nets import one_layer, run, values

from caffe_compat import proto
from caffe_compat.errors import NetError
from caffe_compat.layers.pooling import LOWEST


def pooling(settings: str, tops: str = 'top: "y"') -> str:
    return f'type: "Pooling" {tops} pooling_param {{ {settings} }}'


def windows(size: int, kernel: int, stride: int, pad: int, clip: bool, floor: bool) -> list[tuple[int, int, int]]:
    """(first, last + 1, divisor) of each window along one axis, as the specification words it."""
    steps = (size + 2 * pad - kernel) / stride
    count = int(np.floor(steps) if floor else np.ceil(steps)) + 1
    if clip and (count - 1) * stride >= size + pad:
        count -= 1
    starts = [i * stride - pad for i in range(count)]
    return [(max(s, 0), min(s + kernel, size), min(s + kernel, size + pad) - s) for s in starts]


def reference(x: np.ndarray, method: str, kernel, stride, pad, floor: bool = False) -> np.ndarray:
    clip = any(pad)
    rows, columns = (windows(x.shape[2 + i], kernel[i], stride[i], pad[i], clip, floor) for i in range(2))
    y = np.empty((*x.shape[:2], len(rows), len(columns)), np.float64)
    for (i, (top, bottom, height)), (j, (left, right, width)) in product(enumerate(rows), enumerate(columns)):
        window = x[:, :, top:max(top, bottom), left:max(left, right)].astype(np.float64)
        if method == "MAX":
            y[:, :, i, j] = window.max((2, 3), initial=LOWEST)
        else:
            with np.errstate(invalid="ignore"):
                y[:, :, i, j] = window.sum((2, 3)) / np.float64(height * width)
    return y


def geometries():
    for size, k, s, p in product(((5, 7), (6, 6), (2, 9)), ((1, 2), (3, 3), (4, 3)), ((1, 1), (2, 3), (4, 5)),
                                 ((0, 0), (1, 0), (2, 1))):
        if not any(p) or all(b < a for a, b in zip(k, p)):
            yield size, k, s, p


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("mode", ["CEIL", "FLOOR"])
def test_every_window(method, mode):
    """Output sizes and values, empty windows and padding beyond half the kernel included."""
    tried = 0
    for size, k, s, p in geometries():
        text = pooling(f"pool: {method} kernel_h: {k[0]} kernel_w: {k[1]} stride_h: {s[0]} stride_w: {s[1]} "
                       f"pad_h: {p[0]} pad_w: {p[1]} round_mode: {mode}")
        x = values(2, 3, *size) - 3  # all negative: padding must not win
        expected = reference(x, method, k, s, p, mode == "FLOOR")
        if 0 in expected.shape:
            with pytest.raises(NetError, match="does not fit"):
                one_layer(text, x.shape)
            continue
        tried += 1
        np.testing.assert_allclose(run(one_layer(text, x.shape), x), expected, rtol=1e-5, err_msg=text)
    assert tried > 40


@pytest.mark.parametrize("settings", ["kernel_size: 3 stride: 2", "kernel_size: 3 stride: 3 pad: 2",
                                      "kernel_size: 1 stride: 4"])
def test_mask(settings):
    """The index of the maximum in its plane, -1 for an empty window."""
    x = values(2, 3, 6, 6)
    net = one_layer(pooling(settings, 'top: "y" top: "mask"'), x.shape)
    y, mask = run(net, x), net.blobs["mask"].data
    flat, index = x.reshape(2, 3, -1), mask.reshape(2, 3, -1).astype(int)
    found = np.where(index < 0, LOWEST, np.take_along_axis(flat, np.maximum(index, 0), 2))
    np.testing.assert_array_equal(found, y.reshape(2, 3, -1))
    assert (index < 0).any() == ("kernel_size: 1" in settings)


def test_gradient_of_an_empty_window_goes_nowhere():
    x = values(1, 1, 6, 6)
    net = one_layer(pooling("kernel_size: 1 stride: 4"), x.shape)
    y = run(net, x)
    assert y.shape == (1, 1, 3, 3) and (y == LOWEST).sum() == 5
    net.blobs["y"].diff[...] = 1
    net.backward()
    expected = np.zeros((6, 6))
    expected[::4, ::4] = 1
    np.testing.assert_array_equal(net.blobs["b0"].diff[0, 0], expected)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("settings", ["kernel_size: 3 stride: 2", "kernel_size: 2 stride: 3 pad: 1",
                                      "global_pooling: true"])
def test_one_and_three_axes(method, settings):
    """One axis is an image of one column; three axes of which one has size and kernel 1 are an image."""
    settings = f"pool: {method} {settings}"
    x = values(2, 3, 7)
    line = run(one_layer(pooling(settings), x.shape), x)
    column = settings.replace("kernel_size: 3 stride: 2", "kernel_h: 3 kernel_w: 1 stride: 2").replace(
        "kernel_size: 2 stride: 3 pad: 1", "kernel_h: 2 kernel_w: 1 stride: 3 pad_h: 1 pad_w: 0")
    image = run(one_layer(pooling(column), (2, 3, 7, 1)), x[..., None])
    np.testing.assert_array_equal(line, image[..., 0])
    cube = values(2, 3, 5, 6, 7)
    assert run(one_layer(pooling(settings), cube.shape), cube).ndim == 5


def test_three_axes_by_three_passes():
    x = values(2, 3, 5, 6, 7)
    y = run(one_layer(pooling("kernel_size: 2 stride: 2"), x.shape), x)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1)), constant_values=-np.inf)
    expected = padded.reshape(2, 3, 3, 2, 3, 2, 4, 2).max((3, 5, 7))
    np.testing.assert_array_equal(y, expected)


def test_stochastic_draws_in_proportion():
    """Each value as often as its share of the sum; the gradient goes to the drawn one."""
    x = np.zeros((400, 1, 2, 3), np.float32)
    x[...] = [[1, 2, 0], [0, 5, 0]]
    net = one_layer(pooling("pool: STOCHASTIC kernel_h: 2 kernel_w: 3"), x.shape)
    y = run(net, x).ravel()
    for value in (1, 2, 5):
        p = value / 8
        assert abs((y == value).mean() - p) < 5 * np.sqrt(p * (1 - p) / 400)
    assert set(y) == {1, 2, 5}
    net.blobs["y"].diff[...] = 1
    net.backward()
    np.testing.assert_array_equal((x * net.blobs["b0"].diff).sum((1, 2, 3)), y)
    assert (net.blobs["b0"].diff.sum((1, 2, 3)) == 1).all()


def test_stochastic_in_the_test_phase():
    """The mean weighted by the values themselves, 0 for a window of zeros; windows are cut at the border."""
    x = np.array([[[[1, 2, 3], [0, 5, 0], [0, 0, 4]]]], np.float32)
    net = one_layer(pooling("pool: STOCHASTIC kernel_size: 2 stride: 2"), x.shape, phase="TEST")
    np.testing.assert_allclose(run(net, x)[0, 0], [[30 / 8, 3], [0, 4]], rtol=1e-6)
    net.blobs["y"].diff[...] = 1
    net.backward()
    assert np.isfinite(net.blobs["b0"].diff).all()


def test_stochastic_of_zeros_is_zero():
    x = np.zeros((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(run(one_layer(pooling("pool: STOCHASTIC kernel_size: 2"), x.shape), x), 0)


@pytest.mark.parametrize("settings, message", [
    ("", "kernel_size is missing"),
    ("kernel_size: 3 kernel_h: 3 kernel_w: 3", "both kernel_size and kernel_h"),
    ("kernel_h: 3", "kernel_h is given alone"),
    ("kernel_size: 3 pad_h: 1", "pad_h is given alone"),
    ("kernel_size: 3 pad: 1 pad_h: 1 pad_w: 1", "both pad and pad_h"),
    ("kernel_size: 3 stride_w: 1", "stride_w is given alone"),
    ("kernel_size: 3 stride: 0", "the stride is 0 x 0"),
    ("kernel_size: 0", "the kernel is 0 x 0"),
    ("kernel_size: 2 pad: 2", "padding 2 x 2 must be smaller than the kernel 2 x 2"),
    ("kernel_size: 20", "kernel 20 x 20 does not fit into the spatial size 8 x 8"),
    ("global_pooling: true kernel_size: 3", "kernel_size is given too"),
    ("global_pooling: true pad: 1", "no padding"),
    ("global_pooling: true stride: 2", "no stride other than 1"),
    ("pool: STOCHASTIC kernel_size: 3 pad: 1", "takes no padding"),
])
def test_pooling_that_cannot_be(settings, message):
    with pytest.raises(NetError, match=message):
        one_layer(pooling(settings), (1, 2, 8, 8))


def test_only_max_has_a_mask():
    with pytest.raises(NetError, match="AVE has none"):
        one_layer(pooling("pool: AVE kernel_size: 2", 'top: "y" top: "mask"'), (1, 2, 8, 8))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4, 4, 4)])
def test_number_of_axes(shape):
    with pytest.raises(NetError, match="one to three spatial axes"):
        one_layer(pooling("kernel_size: 2"), shape)


def test_global_pooling_follows_a_new_size():
    net = one_layer(pooling("pool: AVE global_pooling: true"), (1, 2, 8, 8))
    layer = net.layer_dict["layer"]
    assert layer.reshape([(1, 2, 5, 3)]) == [(1, 2, 1, 1)]


def test_a_dialect_without_round_mode():
    net = one_layer(pooling("kernel_size: 2 stride: 2"), (1, 1, 5, 5), dialect=proto.INCREG)
    assert net.blobs["y"].shape == (1, 1, 3, 3)


@pytest.mark.parametrize("text, shape, message", [
    ("pyramid_height: 3", (1, 2, 3, 3), "must be smaller than the kernel"),
    ("", (1, 2, 8, 8), "pyramid_height is 0"),
    ("pyramid_height: 2", (1, 2, 8), "four axes"),
    ("pyramid_height: 2 pool: STOCHASTIC", (1, 2, 7, 7), "takes no padding"),
])
def test_pyramids_that_cannot_be(text, shape, message):
    with pytest.raises(NetError, match=message):
        one_layer(f'type: "SPP" top: "y" spp_param {{ {text} }}', shape)


def test_stochastic_pyramid():
    x = abs(values(2, 3, 8, 8))
    text = 'type: "SPP" top: "y" spp_param { pyramid_height: 2 pool: STOCHASTIC }'
    y = run(one_layer(text, x.shape, phase="TEST"), x)
    np.testing.assert_allclose(y[:, :3], (x ** 2).sum((2, 3)) / x.sum((2, 3)), rtol=1e-5)
    assert y.shape == (2, 15)
