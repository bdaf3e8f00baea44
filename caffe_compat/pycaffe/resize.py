"""Resizing of images with numpy, in the two ways that caffe.io knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .net_spec import WrongValue


def resize_image(im: np.ndarray, new_dims: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """An image (height, width, channels) in the size `new_dims` (height, width), float32.

    `interp_order` 0 takes the nearest pixel, 1 interpolates linearly, 3 by cubic convolution; nothing is smoothed
    before shrinking. As in Caffe there are two ways: with 1 or 3 channels pixels are areas and what lies around the
    image is its smallest value; with others the centres of the corner pixels stay in the corners.
    """
    if im.shape[-1] not in (1, 3):
        return _by_edges(im, new_dims, interp_order).astype(np.float32)
    low, high = im.min(), im.max()
    if high <= low:
        return np.full((*new_dims, im.shape[-1]), low, np.float32)
    scaled = _by_pixels((im - low) / (high - low), new_dims, interp_order)
    return (scaled * (high - low) + low).astype(np.float32)


def _by_pixels(im: np.ndarray, new_dims: Sequence[int], order: int) -> np.ndarray:
    """Pixels are areas: borders stay borders. Around the image are zeros, which mix into an enlarged image's edge."""
    for axis, size in enumerate(new_dims):
        places = (np.arange(size) + 0.5) * (im.shape[axis] / size) - 0.5
        im = _resample(im, axis, places, order, border="constant")
    return im


def _by_edges(im: np.ndarray, new_dims: Sequence[int], order: int) -> np.ndarray:
    """Pixels are points: the corner pixels stay in the corners."""
    for axis, size in enumerate(new_dims):
        places = np.linspace(0, im.shape[axis] - 1, size) if size > 1 else np.zeros(size)
        im = _resample(im, axis, places, order, border="edge")
    return im


def _resample(im: np.ndarray, axis: int, places: np.ndarray, order: int, border: str) -> np.ndarray:
    """The values of `im` at `places` of an axis, as a sum over the pixels around each place."""
    first, weights = _taps(places, order)
    low, high = max(0, -first.min()), max(0, first.max() + len(weights) - im.shape[axis])
    padding = [(0, 0)] * im.ndim
    padding[axis] = (int(low), int(high))
    padded = np.pad(im, padding, border) if low or high else im
    dtype = im.dtype if im.dtype.kind == "f" else np.float64
    along = [1] * im.ndim
    along[axis] = len(places)
    result: np.ndarray | None = None
    for k, weight in enumerate(weights):
        term = padded.take(first + (k + low), axis) * weight.astype(dtype).reshape(along)
        result = term if result is None else result + term
    return result


def _taps(places: np.ndarray, order: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """For each place the first pixel that counts, and what it and those after it count."""
    if order == 0:
        return np.floor(places + 0.5).astype(int), [np.ones(len(places))]
    floor = np.floor(places).astype(int)
    t = places - floor
    if order == 1:
        return floor, [1 - t, t]
    if order == 3:  # cubic convolution with a = -1/2
        return floor - 1, [((2 - t) * t - 1) * t / 2, (3 * t - 5) * t * t / 2 + 1, ((4 - 3 * t) * t + 1) * t / 2,
                           (t - 1) * t * t / 2]
    raise WrongValue(f"interp_order is {order}; 0 (nearest), 1 (linear) and 3 (cubic) are supported")
