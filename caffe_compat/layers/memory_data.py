"""MemoryData: batches of arrays that the program hands over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .base import Layer, Shape, layer

log = logging.getLogger(__name__)


@layer("MemoryData", bottoms=0, tops=2, param="memory_data_param", source=True)
class MemoryData(Layer):
    """Batches of the arrays given to `set_input_arrays`, again from the start after the last (MemoryDataParameter).

    As in Caffe the labels' shape is (N) before the first forward pass and (N, 1, 1, 1) after it, and transform_param
    does nothing to arrays.
    """

    dynamic = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param
        self.batch_size: int = param.batch_size
        self._image = param.channels, param.height, param.width
        if min(self.batch_size, *self._image) < 1:
            raise self.error(f"batch_size is {self.batch_size} and channels, height, width are {self._image}; all must "
                             "be set, to 1 or more")
        self._arrays: tuple[Tensor, Tensor] | None = None
        self._position = 0

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.batch_size, *self._image), (self.batch_size,)]

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Reads from these arrays from now on, starting at their first row; they are not copied.

        `data` is float32 (rows, channels, height, width), `labels` float32 (rows) or (rows, 1, 1, 1), both
        C-contiguous, rows a multiple of the batch size. Raises `DataError` otherwise.
        """
        self._check("data", data, self._image)
        labels = labels[:, None, None, None] if labels.ndim == 1 else labels
        self._check("labels", labels, (1, 1, 1))
        if len(data) != len(labels):
            raise DataError(f"{self.where}: data and labels must have the same first dimension; found {len(data)} and "
                            f"{len(labels)}")
        if not len(data) or len(data) % self.batch_size:
            raise DataError(f"{self.where}: first dimensions of input arrays must be a multiple of batch size; found "
                            f"{len(data)} rows for batch size {self.batch_size}")
        if self.spec.HasField("transform_param"):
            log.warning("%s: MemoryData does not transform arrays; transform_param is not used", self.where)
        self._arrays = torch.from_numpy(data), torch.from_numpy(labels)
        self._position = 0

    def _check(self, what: str, array: np.ndarray, image: tuple[int, int, int]) -> None:
        if not array.flags.c_contiguous:
            raise DataError(f"{self.where}: {what} array must be C contiguous; pass it through numpy.ascontiguousarray")
        if array.ndim != 4:
            raise DataError(f"{self.where}: {what} array must be 4-d; found {array.ndim} axes: {array.shape}")
        if array.dtype != np.float32:
            raise DataError(f"{self.where}: {what} array must be float32; found {array.dtype}")
        for name, found, expected in zip(("channels", "height", "width"), array.shape[1:], image):
            if found != expected:
                wrong = f"number of {name}" if name == "channels" else name
                raise DataError(f"{self.where}: {what} array has wrong {wrong}; found {found}, expected {expected}")

    def forward(self) -> tuple[Tensor, Tensor]:
        if self._arrays is None:
            raise DataError(f"{self.where}: there is no data to read; hand arrays over with set_input_arrays first")
        start, stop = self._position, self._position + self.batch_size
        self._position = stop % len(self._arrays[0])
        data, labels = (array[start:stop].to(self.context.device) for array in self._arrays)
        return data, labels

    def state(self) -> dict[str, Any]:
        """The row of the next batch; the arrays themselves are the program's own."""
        return {"row": self._position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to a row that `state` gave, if the arrays have it."""
        self._position = state["row"] if self._arrays is not None and state["row"] < len(self._arrays[0]) else 0

    def rewind(self) -> None:
        """Goes back to the first row."""
        self._position = 0
