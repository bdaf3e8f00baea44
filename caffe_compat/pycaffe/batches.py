"""Whole data sets through a net, batch by batch: `forward_all` and `forward_backward_all` of pycaffe's Net."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from .net_spec import WrongValue

Arrays = dict[str, np.ndarray]


class Batches:
    """The part of Net that cuts arrays of any length into batches, the last one padded with zeros."""

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: np.ndarray) -> Arrays:
        """`forward` on all rows of `inputs`; returns for each blob that it returns the rows of all batches."""
        rows = _rows(inputs)
        found = defaultdict(list)
        for batch in self._batch(inputs):
            _collect(found, self.forward(blobs=blobs, **batch))
        return _joined(found, rows)

    def forward_backward_all(self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None,
                             **arrays: np.ndarray) -> tuple[Arrays, Arrays]:
        """`forward` and `backward` on all rows of `arrays`, which are given for inputs (data) and outputs (diffs).

        Where there are none for one of the two, it runs as without arguments. Returns what the two return, of all rows.
        """
        rows = _rows(arrays)
        unknown = set(arrays) - {*self.inputs, *self.outputs}
        if unknown:
            raise WrongValue(f"arrays are given for {', '.join(sorted(unknown))}, which is no input "
                             f"({', '.join(self.inputs)}) and no output ({', '.join(self.outputs)})")
        found, found_diffs = defaultdict(list), defaultdict(list)
        batches = [self._batch({name: arrays[name] for name in names if name in arrays})
                   for names in (self.inputs, self.outputs)]
        for given, given_diffs in zip_longest(*batches, fillvalue={}):
            _collect(found, self.forward(blobs=blobs, **given))
            _collect(found_diffs, self.backward(diffs=diffs, **given_diffs))
        return _joined(found, rows), _joined(found_diffs, rows)

    def _batch(self, arrays: Arrays) -> Iterator[Arrays]:
        """The arrays in pieces of the net's batch size."""
        if not arrays:
            return
        size = next(iter(self.blobs.values())).shape[0]
        for begin in range(0, _rows(arrays), size):
            piece = {name: np.asarray(array[begin:begin + size]) for name, array in arrays.items()}
            missing = size - len(next(iter(piece.values())))
            if missing:
                piece = {name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
                         for name, array in piece.items()}
            yield piece


def _rows(arrays: Arrays) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise WrongValue("the arrays must have as many rows as each other; found "
                         f"{', '.join(f'{name}: {rows}' for name, rows in lengths.items()) or 'no arrays'}")
    return next(iter(lengths.values()))


def _collect(found: dict[str, list[np.ndarray]], arrays: Arrays) -> None:
    for name, array in arrays.items():
        found[name].append(np.atleast_1d(array).copy())


def _joined(found: dict[str, list[np.ndarray]], rows: int) -> Arrays:
    return {name: np.concatenate(arrays)[:rows] for name, arrays in found.items()}
