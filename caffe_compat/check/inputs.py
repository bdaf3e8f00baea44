"""The inputs to compare models with: random numbers, an array file, or an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

import numpy as np

from ..errors import CaffeError, DataError
from .runner import Arrays, OpenShape

#: More values than this in one input are a mistake in the file rather than an input.
_MAX_VALUES = 1 << 30


def make_inputs(word: str, wanted: Sequence[dict[str, OpenShape]], seed: int = 0) -> Arrays:
    """The inputs that `word` ("random", or a .npy, .npz or image file) stands for.

    `wanted` are the inputs of the models that get them; an axis of any size in one takes the other's, or is 1.
    """
    shapes = _merged(wanted)
    if word == "random":
        random = np.random.RandomState(seed)  # the same numbers in every version of numpy
        return {name: random.standard_normal(_closed(name, shape)).astype(np.float32) for name, shape in shapes.items()}
    if not os.path.isfile(word):
        raise DataError(f'{word}: no such file; expected "random", or a .npy, .npz or image file')
    if word.endswith(".npz"):
        with _load(word) as arrays:
            return _matched({name: _numbers(arrays, name, word) for name in arrays.files}, shapes, word)
    if len(shapes) != 1:
        raise DataError(f"{word}: the models have the inputs {', '.join(shapes)}; give an .npz with an array for each")
    (name, shape), = shapes.items()
    return {name: _numbers({name: _load(word)}, name, word) if word.endswith(".npy") else _image(word, shape)}


def _merged(wanted: Sequence[dict[str, OpenShape]]) -> dict[str, OpenShape]:
    shapes: dict[str, OpenShape] = {}
    for inputs in wanted:
        for name, shape in inputs.items():
            known = shapes.get(name, shape)
            if len(known) == len(shape):
                shape = tuple(a if a is not None else b for a, b in zip(known, shape))
            shapes[name] = shape
    return shapes


def _closed(name: str, shape: OpenShape) -> tuple[int, ...]:
    closed = tuple(1 if dim is None else dim for dim in shape)
    if prod(closed) > _MAX_VALUES or min(closed, default=1) < 0:
        raise DataError(f"the input {name} has the shape {' '.join(map(str, closed))}, which is no shape to fill; "
                        "give the input as a file")
    return closed


def _load(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: not a readable array file: {error}") from None


def _numbers(arrays: dict[str, np.ndarray], name: str, path: str) -> np.ndarray:
    values = np.asarray(arrays[name])
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} has values of type {values.dtype}, expected numbers")
    return values.astype(np.float32)


def _matched(arrays: Arrays, shapes: dict[str, OpenShape], path: str) -> Arrays:
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise DataError(f"{path}: has no array for {', '.join(missing)}; it has {', '.join(arrays) or 'none'}")
    return {name: arrays[name] for name in shapes}


def _image(path: str, shape: OpenShape) -> np.ndarray:
    """The image as Caffe's Python tools read one, without mean or scale: BGR from 0 to 255, resized to the input."""
    import cv2

    if len(shape) != 4 or shape[1] not in (1, 3, None):
        raise CaffeError(f"{path}: an image is for an input of shape (batch, 1 or 3, height, width), the model's is "
                         f"{' '.join('any' if dim is None else str(dim) for dim in shape)}")
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if shape[1] == 1 else cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: not an image that can be read; expected an image, .npy or .npz file")
    height, width = shape[2] or image.shape[0], shape[3] or image.shape[1]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return np.repeat(planes[None].astype(np.float32), shape[0] or 1, axis=0)
