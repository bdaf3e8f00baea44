"""HDF5Data reads batches from HDF5 files; HDF5Output writes one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from .. import proto
from ..db.batches import Batches
from ..errors import DataError
from ..trust import check_readable, check_writable
from .base import Layer, Shape, layer
from .data import ReadingLayer, draw_seed

log = logging.getLogger(__name__)


class HDF5Batches(Batches):
    """Batches of the rows of HDF5 files, one file after the other: of each, the data sets called `names`.

    With `shuffle` every pass over the files has its own order of files, and every file its own order of rows then.
    """

    def __init__(
        self, files: list[str], names: list[str], batch_size: int, shuffle: bool, seed: int, where: str,
    ) -> None:
        self._files, self._names, self._where = files, names, where
        self._batch_size, self._shuffle = batch_size, shuffle
        self._state = {"pass": 0, "file": 0, "row": 0, "seed": seed}
        self._loaded: tuple[str | None, list[np.ndarray]] = (None, [])
        self.shapes = [(batch_size, *values.shape[1:]) for values in self._rows()]

    def read(self) -> list[Tensor]:
        tops = [self.empty(shape) for shape in self.shapes]
        arrays, state, filled = [top.numpy() for top in tops], self._state, 0
        while filled < self._batch_size:
            rows = self._rows()
            start = state["row"]
            stop = min(len(rows[0]), start + self._batch_size - filled)
            chosen = slice(start, stop)
            if self._shuffle:
                chosen = self._permutation(len(rows[0]), state["file"] + 1)[chosen]
            for array, values in zip(arrays, rows):
                array[filled : filled + stop - start] = values[chosen]
            filled += stop - start
            state["row"] = stop
            if stop == len(rows[0]):
                self._next_file()
        return tops

    def _next_file(self) -> None:
        state = self._state
        state["row"], state["file"] = 0, state["file"] + 1
        if state["file"] == len(self._files):
            state["file"], state["pass"] = 0, state["pass"] + 1

    def _permutation(self, count: int, what: int) -> np.ndarray:
        """The order of the files (`what` 0) or of the rows of the pass's file number `what` - 1."""
        return np.random.default_rng((self._state["seed"], self._state["pass"], what)).permutation(count)

    def _rows(self) -> list[np.ndarray]:
        """The data sets of the current file, which stays in memory until another one is needed."""
        number = self._state["file"]
        path = self._files[self._permutation(len(self._files), 0)[number] if self._shuffle else number]
        if self._loaded[0] != path:
            self._loaded = (None, [])  # lets go of the last file's memory first
            self._loaded = (path, self._load(path))
        return self._loaded[1]

    def _load(self, path: str) -> list[np.ndarray]:
        try:
            with h5py.File(path, "r") as file:
                rows = [self._dataset(file, name, path) for name in self._names]
        except OSError as error:
            raise DataError(f"{self._where}: {path}: cannot be read as an HDF5 file: {error}") from error
        for name, values in zip(self._names, rows):
            if len(values) != len(rows[0]) or not len(values):
                raise DataError(f'{self._where}: {path}: data set "{name}" has {len(values)} rows and '
                                f'"{self._names[0]}" has '
                                f"{len(rows[0])}; all must have the same number, at least 1")
        for shape, name, values in zip(getattr(self, "shapes", []), self._names, rows):
            if values.shape[1:] != shape[1:]:
                raise DataError(f'{self._where}: {path}: the rows of data set "{name}" have the shape '
                                f'{values.shape[1:]}, but '
                                f"those of the files before it have {shape[1:]}; all files must be alike")
        return rows

    def _dataset(self, file: h5py.File, name: str, path: str) -> np.ndarray:
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            known = ", ".join(key for key, value in file.items() if isinstance(value, h5py.Dataset))
            raise DataError(f'{self._where}: {path}: found no data set "{name}" for the top of this name; the file '
                            'has: '
                            f"{known or 'none'}")
        if dataset.dtype.kind not in "fiu" or not dataset.ndim:
            raise DataError(f'{self._where}: {path}: data set "{name}" has {dataset.ndim} axes of type '
                            f'{dataset.dtype}; '
                            "expected at least 1 axis of floats or integers")
        return dataset.astype(np.float32)[()]

    def state(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state(self, state: dict[str, Any]) -> None:
        self._state = dict(state)


@layer("HDF5Data", bottoms=0, tops=(1, None), param="hdf5_data_param", source=True)
class HDF5Data(ReadingLayer):
    """Rows of HDF5 files (HDF5DataParameter): each top is the data set of its name, as float32.

    `source` lists the files, separated by white space, relative to the working folder. Batches run over the ends of
    files and, after the last, go on with the first.
    """

    dynamic = False

    def open(self) -> Batches:
        if self.spec.HasField("transform_param"):
            raise self.error("transform_param is set, but HDF5Data does not transform; store the data as the net "
                             "wants it")
        source = self.param.source
        try:
            files = Path(source).read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.where}: the list of HDF5 files, {source!r}, cannot be read: {error}") from error
        if not files:
            raise DataError(f"{self.where}: {source} lists no HDF5 file; write one or more paths into it")
        for path in files:
            check_readable(path, self.where)
        log.info("Number of HDF5 files: %d", len(files))
        seed = draw_seed(self) if self.param.shuffle else 0
        return HDF5Batches(files, list(self.spec.top), self.batch_size(), self.param.shuffle, seed, self.where)


@layer("HDF5Output", bottoms=2, tops=0, param="hdf5_output_param", undifferentiable=(0, 1))
class HDF5Output(Layer):
    """Writes its bottoms to `file_name` (HDF5OutputParameter) as the data sets "data" and "label", float32, four axes.

    The file is written whole or not at all, by the first forward pass; a second one is an error, as in Caffe, which
    cannot make the data sets twice.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._written = False
        folder = os.path.dirname(self.param.file_name) or "."
        if not self.param.file_name or not os.path.isdir(folder):
            raise self.error(f"file_name is {self.param.file_name!r}; expected a file in a folder that exists")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        for name, shape in zip(self.spec.bottom, shapes):
            if len(shape) > 4:
                raise self.error(f"has {len(shape)} axes: {shape}; HDF5Output writes at most 4", name)
        first, second = (shape[0] if shape else 1 for shape in shapes)
        if first != second:
            raise self.error(f"found {first} items in {self.spec.bottom[0]} and {second} in {self.spec.bottom[1]}; "
                             "they must be equal", self.spec.bottom[1])
        return []

    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        path = self.param.file_name
        if self._written:
            raise DataError(f"{self.where}: {path} has been written already by this layer; HDF5Output writes one "
                            "forward pass")
        check_writable(path, self.where)
        log.info("Saving HDF5 file %s", path)
        with proto.replacing(path) as temporary, h5py.File(temporary, "w") as file:
            for name, bottom in (("data", data), ("label", label)):
                values = bottom.detach().cpu().numpy()
                file.create_dataset(name, data=values.reshape(values.shape + (1,) * (4 - values.ndim)))
        self._written = True
        log.info("Successfully saved %d rows", len(data) if data.dim() else 1)
        return ()
