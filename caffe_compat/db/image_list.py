"""Lists of image files with labels, a line each: `path label`. ImageData and convert_imageset read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..trust import check_readable
from .batches import Items
from .datum import convert_all, read_image


class ListedImage(NamedTuple):
    """A line of a list: the file (relative to a root folder), its label, the line's number from 1."""

    name: str
    label: int
    line: int


def read_image_list(path: str | os.PathLike[str]) -> list[ListedImage]:
    """The images in a list file; what follows the last space of a line is the label. Blank lines do not count.

    Raises `DataError` naming the file and line for a line that has no integer label, and for a list without images.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise DataError(f"{path}: the list of images cannot be read: {error.strerror or error}") from error
    images = []
    for number, line in enumerate(lines, 1):
        if not (line := line.rstrip()):
            continue
        name, _, label = line.rpartition(" ")
        try:
            images.append(ListedImage(name.rstrip(" "), int(label), number))
        except ValueError:
            name = ""
        if not name:
            raise DataError(f'{path}:{number}: found "{line}", expected a path, a space and an integer label')
    if not images:
        raise DataError(f"{path}: lists no image; write a line `path label` for each")
    return images


class ListItems(Items):
    """The images of a list, in its order or, with `shuffle`, in another order in every pass over it.

    The first pass starts at a random one of the first `rand_skip` images. `root` comes before every name (Caffe adds no
    slash), `size` is (height, width) or None, `seed` decides what is random, `where` is the layer that errors name.
    """

    def __init__(
        self, source: str, root: str, color: bool, size: tuple[int, int] | None, shuffle: bool, rand_skip: int,
        seed: int, where: str,
    ) -> None:
        self._images = read_image_list(source)
        for image in self._images:
            check_readable(root + image.name, where)
        self._source, self._root, self._where = source, root, where
        self._read = partial(read_image, color=color, size=size)
        self._shuffle, self._seed = shuffle, seed
        self._skip = int(np.random.default_rng(seed).integers(min(rand_skip, len(self._images)))) if rand_skip else 0
        self.position = None

    @property
    def position(self) -> list[int]:
        """The pass over the list, the place in it, and the seed that its order follows from."""
        return [self._pass, self._next, self._seed]

    @position.setter
    def position(self, position: list[int] | None) -> None:
        self._pass, self._next, self._seed = position or (0, self._skip, self._seed)
        self._arrange()

    def _arrange(self) -> None:
        rng = np.random.default_rng((self._seed, self._pass))
        self._order = [self._images[i] for i in rng.permutation(len(self._images))] if self._shuffle else self._images

    def take(self, count: int) -> tuple[list[np.ndarray], list[int], Callable[[int], str]]:
        taken: list[ListedImage] = []
        while len(taken) < count:
            part = self._order[self._next : self._next + count - len(taken)]
            taken += part
            self._next += len(part)
            if self._next == len(self._order):
                self._next, self._pass = 0, self._pass + 1
                self._arrange()

        def name(i: int) -> str:
            return f"image {taken[i].name} ({self._source}:{taken[i].line})"

        images = convert_all(self._read, [self._root + image.name for image in taken], lambda i: f"{self._where}: "
                                                                                                 f"{name(i)}")
        return images, [image.label for image in taken], name
