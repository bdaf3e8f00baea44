"""Caffe's DataTransformer (TransformationParameter) for whole batches: crop, mirror, subtract the mean, scale."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import proto
from ..errors import DataError

log = logging.getLogger(__name__)

ImageShape = tuple[int, int, int]


class Transformer:
    """Makes float32 batches of images: (pixel - mean) * scale of a crop, maybe mirrored.

    Crops are random while training and central (offset floor((size - crop) / 2)) while testing; mirroring is random in
    both phases. `color` is what force_color and force_gray ask of encoded images: True, False, or None for neither.
    `where` is the layer that errors name. Raises `DataError` for settings that contradict each other.
    """

    def __init__(self, param: Any, training: bool, where: str) -> None:
        self.where = where
        self.training = training
        self.scale = np.float32(param.scale)
        self.crop: int = param.crop_size
        self.mirror: bool = param.mirror
        if param.force_color and param.force_gray:
            raise DataError(f"{where}: force_color and force_gray are both set; set one of them")
        self.color = True if param.force_color else False if param.force_gray else None
        if param.HasField("mean_file") and len(param.mean_value):
            raise DataError(f"{where}: both mean_file and mean_value are set; set one of them")
        self.mean_file: str = param.mean_file
        self.mean: np.ndarray | None = None  # (channels, height, width), or (values, 1, 1)
        if param.HasField("mean_file"):
            self.mean = read_mean(param.mean_file, where)
        elif len(param.mean_value):
            self.mean = np.array(param.mean_value, np.float32).reshape(-1, 1, 1)

    @property
    def is_random(self) -> bool:
        """Whether batches depend on random numbers."""
        return self.mirror or (self.training and self.crop > 0)

    def output_shape(self, image: ImageShape, name: str) -> ImageShape:
        """The shape (channels, height, width) that an image is given; `DataError` if it does not fit the settings."""
        channels, height, width = image
        if self.crop > min(height, width):
            raise DataError(f"{self.where}: crop_size is {self.crop}, but {name} is only {height} x {width} (height x "
                            "width); make crop_size smaller or the images larger")
        if self.mean_file and self.mean.shape != image:
            raise DataError(f"{self.where}: the mean in {self.mean_file} is {_format(self.mean.shape)}, but {name} is "
                            f"{_format(image)} (channels x height x width); the mean must have the size of the whole "
                            "image")
        if self.mean is not None and not self.mean_file and len(self.mean) not in (1, channels):
            raise DataError(f"{self.where}: found {len(self.mean)} mean_value for the {channels} channels of {name}; "
                            "give one, or one a channel")
        return (channels, self.crop, self.crop) if self.crop else image

    def __call__(
        self, images: Sequence[np.ndarray], name: Callable[[int], str], rng: np.random.Generator | None,
        out: np.ndarray,
    ) -> None:
        """Writes the transformed `images`, each (channels, height, width), to `out`, float32 (N, channels, h, w).

        `name(i)` is what errors call image i; `rng` is asked only if `is_random`.
        """
        windows = self._windows(images, name, rng, out.shape[1:])
        if self.mean_file and any(window is not windows[0] for window in windows):
            for image, window, place in zip(images, windows, out):
                np.subtract(image[window], self.mean[window], out=place, dtype=np.float32)
        else:
            pixels = np.stack([image[window] for image, window in zip(images, windows)])
            if self.mean is None:
                np.multiply(pixels, self.scale, out=out, dtype=np.float32)
                return
            mean = self.mean[windows[0]] if self.mean_file else self.mean
            np.subtract(pixels, mean, out=out, dtype=np.float32)
        if self.scale != 1:
            out *= self.scale

    def _windows(
        self, images: Sequence[np.ndarray], name: Callable[[int], str], rng: np.random.Generator | None,
        expected: ImageShape,
    ) -> list[tuple[slice, ...]]:
        """What to take of each image, as slices: its crop, mirrored where the columns run backwards."""
        shapes = [image.shape for image in images]
        alike = shapes.count(shapes[0]) == len(shapes)
        for i, shape in enumerate(shapes[:1] if alike else shapes):
            found = self.output_shape(shape, name(i))
            if found != expected:
                raise DataError(f"{self.where}: {name(i)} is {_format(found)} (channels x height x width), but the "
                                f"batch has {_format(expected)} from its first image; all images of a batch must have "
                                "one shape")
        if not self.is_random and alike:
            return [self._window(*self._centre(shapes[0]), False, shapes[0])] * len(shapes)
        if self.training and self.crop:
            spare = np.array([(height - self.crop + 1, width - self.crop + 1) for _, height, width in shapes])
            corners = rng.integers(spare).tolist()
        else:
            corners = [self._centre(shape) for shape in shapes]
        flips = rng.integers(2, size=len(shapes)).tolist() if self.mirror else [0] * len(shapes)
        return [self._window(*corner, flip, shape) for corner, flip, shape in zip(corners, flips, shapes)]

    def _centre(self, shape: ImageShape) -> tuple[int, int]:
        return ((shape[1] - self.crop) // 2, (shape[2] - self.crop) // 2) if self.crop else (0, 0)

    def _window(self, top: int, left: int, flip: bool, shape: ImageShape) -> tuple[slice, ...]:
        height, width = (self.crop, self.crop) if self.crop else shape[1:]
        columns = slice(left, left + width)
        if flip:
            columns = slice(left + width - 1, left - 1 if left else None, -1)
        return slice(None), slice(top, top + height), columns


def read_mean(path: str, where: str) -> np.ndarray:
    """The mean image in a `.binaryproto`, float32 (channels, height, width); the blob must be 1 x these three."""
    log.info("Loading mean file from: %s", path)
    mean = proto.read_binary(path, "BlobProto").arrays.get(())
    if mean is None or mean.ndim != 4 or len(mean) != 1:
        found = "no values" if mean is None else _format(mean.shape)
        raise DataError(f"{where}: the mean file {path} holds a blob of {found}; expected 1 x channels x height x "
                        "width")
    return mean[0].astype(np.float32)


def _format(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
