"""Endless sequences of batches, for the layers that make their own data.

What is random in batch n is drawn from a generator seeded with (seed, n), so a position and two numbers are all it
takes to go on exactly where a run stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .database import Cursor
from .datum import convert_all, datum_image, parse_datum
from .transform import Transformer

Shape = tuple[int, ...]


class Batches(ABC):
    """Batches one after the other, each a list of float32 CPU tensors, the layer's tops.

    `shapes` are those of the first batch. `state` is JSON-able, and after `load_state` of it the next `read` gives what
    it would have given when the state was taken. With a GPU as `device` they are in page-locked memory, from which it
    copies in the background.
    """

    shapes: list[Shape]
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def read(self) -> list[Tensor]:
        """The next batch."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Where the next `read` starts."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken."""

    def empty(self, shape: Shape) -> Tensor:
        """Memory for a top."""
        if self.device.type != "cuda":
            return torch.empty(shape)
        with torch.cuda.device(self.device):  # a new thread would open a context on the first GPU
            return torch.empty(shape, pin_memory=True)


class Items(ABC):
    """Images with labels in a fixed order, again from the start after the last.

    `position` is JSON-able, None at the start; setting it moves there.
    """

    position: Any

    @abstractmethod
    def take(self, count: int) -> tuple[list[np.ndarray], list[int], Callable[[int], str]]:
        """The next `count` images (channels, height, width), their labels, and what errors call image i of them."""


class DatumItems(Items):
    """The Datum records of a database, in key order. `color` as for `datum_image`, `where` is the layer errors name."""

    def __init__(self, cursor: Cursor, color: bool | None, where: str) -> None:
        self._cursor, self._color, self._where = cursor, color, where

    @property
    def position(self) -> str | None:
        """The key of the record taken last, in hexadecimal."""
        after = self._cursor.after
        return None if after is None else after.hex()

    @position.setter
    def position(self, position: str | None) -> None:
        self._cursor.seek(None if position is None else bytes.fromhex(position))

    def take(self, count: int) -> tuple[list[np.ndarray], list[int], Callable[[int], str]]:
        records = self._cursor.take(count)

        def name(i: int) -> str:
            return f"record {records[i][0].decode(errors='backslashreplace')} of {self._cursor.database.path}"

        def place(i: int) -> str:
            return f"{self._where}: {name(i)}"

        datums = convert_all(parse_datum, [value for _, value in records], place, parallel=False)
        encoded = any(datum.encoded for datum in datums)
        images = convert_all(partial(datum_image, color=self._color), datums, place, parallel=encoded)
        return images, [datum.label for datum in datums], name


class ImageBatches(Batches):
    """Batches of `batch_size` transformed items: (images,) or, with `labels`, (images, labels)."""

    def __init__(
        self, items: Items, transformer: Transformer, batch_size: int, labels: bool, seed: int,
    ) -> None:
        self._items, self._transformer, self._batch_size, self._labels = items, transformer, batch_size, labels
        self._seed, self._batch = seed, 0
        start = items.position
        (image, *_), _, name = items.take(1)
        items.position = start
        self.shapes = self._shapes(transformer.output_shape(image.shape, name(0)))

    def _shapes(self, image: Sequence[int]) -> list[Shape]:
        return [(self._batch_size, *image)] + [(self._batch_size,)] * self._labels

    def read(self) -> list[Tensor]:
        images, labels, name = self._items.take(self._batch_size)
        # As in Caffe, every batch is shaped like its first image, so that images may differ from batch to batch.
        tops = [self.empty(shape) for shape in self._shapes(self._transformer.output_shape(images[0].shape, name(0)))]
        rng = np.random.default_rng((self._seed, self._batch)) if self._transformer.is_random else None
        self._transformer(images, name, rng, tops[0].numpy())
        if self._labels:
            tops[1].numpy()[:] = labels
        self._batch += 1
        return tops

    def state(self) -> dict[str, Any]:
        return {"position": self._items.position, "batch": self._batch, "seed": self._seed}

    def load_state(self, state: dict[str, Any]) -> None:
        self._items.position = state["position"]
        self._batch, self._seed = state["batch"], state["seed"]
