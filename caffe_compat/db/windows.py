"""Windows of images, as R-CNN trains on: reading the list of them, and making batches of warped windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import DataError
from .batches import Batches
from .datum import convert_all, decode_image, read_file
from .transform import Transformer

F = np.float32


class Window(NamedTuple):
    """A window of image number `image`: its label (0 for background) and corners, in pixels, the last ones included."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass
class WindowList:
    """What a window file holds: the images' files, their number of channels, and the two kinds of windows."""

    paths: list[str]
    channels: int
    foreground: list[Window]
    background: list[Window]


def read_windows(path: str, root: str, foreground: float, background: float) -> WindowList:
    """Reads a window file, white-space separated: for every image

        # index  path  channels height width  count  then `count` times: class overlap x1 y1 x2 y2

    Windows with an overlap of at least `foreground` are of their class, those with less than `background` are
    background, the rest is not used. Raises `DataError` naming the file and image for what does not fit this.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            words = iter(file.read().split())
    except OSError as error:
        raise DataError(f"{path}: the window file cannot be read: {error.strerror or error}") from error
    windows = WindowList([], 0, [], [])
    for mark in words:
        image = len(windows.paths)
        try:
            _read_image_windows(mark, words, windows, root, foreground, background)
        except (ValueError, StopIteration) as error:
            raise DataError(f"{path}: image {image}: {str(error) or 'the file ends within it'}; expected `# {image} "
                            "path channels height width count` and `count` lines `class overlap x1 y1 x2 "
                            "y2`") from None
    for kind, found, limit in (("foreground", windows.foreground, f"at least {foreground:g}"),
                               ("background", windows.background, f"less than {background:g}")):
        if not found:
            raise DataError(f"{path}: has no {kind} window, one with an overlap of {limit}; both kinds are needed")
    return windows


def _read_image_windows(
    mark: str, words: Iterator[str], windows: WindowList, root: str, foreground: float, background: float,
) -> None:
    image = len(windows.paths)
    if mark != "#":
        raise ValueError(f'found "{mark}" in place of "#"')
    if (index := int(next(words))) != image:
        raise ValueError(f"found the index {index}; images are numbered from 0")
    windows.paths.append(root + next(words))
    windows.channels, _, _, count = (int(next(words)) for _ in range(4))
    for _ in range(count):
        label, overlap = int(next(words)), F(next(words))
        corners = [int(next(words)) for _ in range(4)]
        if overlap >= F(foreground):
            if label < 1:
                raise ValueError(f"a foreground window has the class {label}; classes start at 1")
            windows.foreground.append(Window(image, label, *corners))
        elif overlap < F(background):
            windows.background.append(Window(image, 0, *corners))


class WindowBatches(Batches):
    """Batches of random windows, background first, each warped to the crop size; with context around if asked for.

    `param` is the WindowDataParameter. Of the transformer its crop, mean and mirror are used; pixels outside of the
    image are 0 after subtracting the mean.
    """

    def __init__(self, windows: WindowList, param: Any, transformer: Transformer, seed: int, where: str) -> None:
        self._windows, self._param, self._transformer, self._where = windows, param, transformer, where
        self._seed, self._batch = seed, 0
        self._crop = transformer.crop
        self._context = F(self._crop) / F(self._crop - 2 * param.context_pad)
        self._mean = self._central_mean()
        self._content = {path: read_file(path) for path in windows.paths} if param.cache_images else {}
        self.shapes = [(param.batch_size, windows.channels, self._crop, self._crop), (param.batch_size,)]

    def _central_mean(self) -> np.ndarray | None:
        mean, crop = self._transformer.mean, self._crop
        if mean is None or not self._transformer.mean_file:
            return mean
        offset = (mean.shape[2] - crop) // 2
        mean = mean[:, offset : offset + crop, offset : offset + crop] if offset >= 0 else mean[:, :0]
        if mean.shape != (self._windows.channels, crop, crop):
            raise DataError(f"{self._where}: the mean in {self._transformer.mean_file} is too small or has other "
                            f"channels; expected {self._windows.channels} channels of at least {crop} x {crop}")
        return mean

    def read(self) -> list[Tensor]:
        rng = np.random.default_rng((self._seed, self._batch))
        size = self._param.batch_size
        positive = int(F(size) * F(self._param.fg_fraction))
        kinds = (self._windows.background, size - positive), (self._windows.foreground, positive)
        chosen = [kind[i] for kind, count in kinds for i in rng.integers(len(kind), size=count)]
        flips = rng.integers(2, size=size).astype(bool) if self._transformer.mirror else np.zeros(size, bool)
        tops = [self.empty(shape) for shape in self.shapes]
        batch = tops[0].zero_().numpy()

        def name(i: int) -> str:
            path = self._windows.paths[chosen[i].image]
            return f"{self._where}: window {chosen[i][2:]} of {path} ({self._param.source})"

        def fill(i: int) -> None:
            path = self._windows.paths[chosen[i].image]
            image = decode_image(self._content.get(path) or read_file(path), color=True)
            if len(image) != self._windows.channels:
                raise DataError(f"the image has {len(image)} channels, but the list says {self._windows.channels}")
            self._warp(image, chosen[i], bool(flips[i]), batch[i])

        convert_all(fill, range(size), name)
        tops[1].numpy()[:] = [window.label for window in chosen]
        self._batch += 1
        return tops

    def _warp(self, image: np.ndarray, window: Window, flip: bool, out: np.ndarray) -> None:
        """Writes the window, (channels, crop, crop) with its context, to `out`, which is 0."""
        import cv2

        x1, y1, x2, y2 = window[2:]
        top = left = 0
        width = height = self._crop
        if self._param.context_pad or self._param.crop_mode == "square":
            (x1, x2), (y1, y2) = self._widen(x1, y1, x2, y2)
            x1, x2, before, width, after = self._clip(x1, x2, image.shape[2])
            y1, y2, top, height, _ = self._clip(y1, y2, image.shape[1])
            left = after if flip else before
            width, height = min(width, self._crop - left), min(height, self._crop - top)
        if not (0 <= x1 <= x2 < image.shape[2] and 0 <= y1 <= y2 < image.shape[1] and width > 0 and height > 0):
            raise DataError(f"the window leaves the image, which is {image.shape[2]} x {image.shape[1]} (width x "
                            "height)")
        pixels = cv2.resize(image.transpose(1, 2, 0)[y1 : y2 + 1, x1 : x2 + 1], (width, height))
        pixels = (pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1).astype(F)
        place = slice(None), slice(top, top + height), slice(left, left + width)
        if self._mean is None:
            out[place] = pixels * F(self._param.scale)
        else:
            mean = self._mean[place] if self._transformer.mean_file else self._mean
            out[place] = (pixels - mean) * F(self._param.scale)

    def _widen(self, x1: int, y1: int, x2: int, y2: int) -> Iterator[tuple[int, int]]:
        """The window with its context, so that after warping `context_pad` pixels of it lie on each side."""
        halves = [F((x2 - x1 + 1) / 2), F((y2 - y1 + 1) / 2)]
        centres = [F(x1) + halves[0], F(y1) + halves[1]]
        if self._param.crop_mode == "square":
            halves = [max(halves)] * 2
        for centre, half in zip(centres, halves):
            yield _round(centre - half * self._context), _round(centre + half * self._context)

    def _clip(self, first: int, last: int, size: int) -> tuple[int, int, int, int, int]:
        """One axis of a widened window: the pixels inside of the image, and before, length and after once warped."""
        before, after = max(0, -first), max(0, last - size + 1)
        scale = F(self._crop) / F(last - first + 1)
        inside = last - after - (first + before) + 1
        return first + before, last - after, *(_round(F(length) * scale) for length in (before, inside, after))

    def state(self) -> dict[str, Any]:
        return {"batch": self._batch, "seed": self._seed}

    def load_state(self, state: dict[str, Any]) -> None:
        self._batch, self._seed = state["batch"], state["seed"]


def _round(value: np.floating) -> int:
    """C's round: halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
