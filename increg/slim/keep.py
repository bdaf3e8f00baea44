"""Which channels a pruned net needs: those that something reads which cannot do without them.

A channel can be taken away, with every row that writes it, if nobody reads it, or if it has one value everywhere that
its readers can take into their biases. Beyond the borders a padded convolution sees zeros instead of that value, so
there one such channel stays for all of them, a carrier: the others' weights are added to its own. What is kept is the
least set that is closed under: what a kept row reads is kept, and each group of a grouped convolution keeps as many rows
and as many inputs as the others, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..channels import Channels
from .matrices import Matrix

#: A carrier's value must not be smaller than this share of the largest that it carries, for the sake of precision.
CARRIER = 0.1


@dataclass
class Inputs:
    """What a matrix can do without: `removable` (group, inputs) bool if they have one value that goes into the biases;
    `carried` likewise if that needs a carrier; `values` (group, inputs), 0 for those that vary."""

    removable: np.ndarray
    carried: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, matrix: Matrix, bottoms: list[Tensor]) -> Inputs:
        """For the values (`constants`) of the layer's bottoms, NaN for what varies."""
        steady = ~bottoms[0].isnan()
        for other in bottoms[1:]:  # several bottoms go through the same weights and biases
            steady &= other == bottoms[0]
        steady, values = (each.numpy().repeat(matrix.reads.size // len(each)).reshape(matrix.reads.shape)
                          for each in (steady, bottoms[0].where(steady, 0)))
        zero = steady & (values == 0)
        foldable = steady & (not matrix.shared)
        if not matrix.padded:
            return cls(foldable | zero, np.zeros_like(zero), values)
        carried = foldable & ~zero & (len(matrix.reads) == 1 and matrix.layer.type == "Convolution")
        return cls(zero, carried, values)


def keep(channels: Channels, matrices: Mapping[str, Matrix], inputs: Mapping[str, Inputs]) -> np.ndarray:
    """(numbers,) bool: the channels that stay."""
    kept = channels.needed | channels.given
    seen: dict[str, np.ndarray] = {}
    while True:
        before = kept.sum()
        for name in reversed(matrices):
            matrix = matrices[name]
            rows = kept[matrix.writes]
            if name not in seen or not np.array_equal(seen[name], rows):
                seen[name] = rows
                read = matrix.read_by(rows)
                kept[matrix.reads[read & ~inputs[name].removable & ~inputs[name].carried]] = True
                _keep_carrier(kept, matrix, inputs[name], read)
            _balance(kept, matrix)
        for blobs in channels.tops.values():
            for ids in blobs:
                if len(ids) and not kept[ids].any():
                    kept[ids[0]] = True
        if kept.sum() == before:
            return kept


def _keep_carrier(kept: np.ndarray, matrix: Matrix, inputs: Inputs, read: np.ndarray) -> None:
    """Keeps an input to carry those of one value that are read across a border."""
    carried = (inputs.carried & read)[0]
    if carried.any() and carrier(kept, matrix, inputs, carried) is None:
        kept[matrix.reads[0, _largest(carried, inputs)]] = True


def carrier(kept: np.ndarray, matrix: Matrix, inputs: Inputs, carried: np.ndarray) -> int | None:
    """The kept input with the largest constant value, if that can stand for the `carried` ones."""
    candidates = inputs.carried[0] & kept[matrix.reads[0]]
    if not candidates.any():
        return None
    best = _largest(candidates, inputs)
    limit = CARRIER * abs(inputs.values[0, _largest(carried, inputs)])
    return best if abs(inputs.values[0, best]) >= limit else None


def _largest(among: np.ndarray, inputs: Inputs) -> int:
    return int(np.where(among, np.abs(inputs.values[0]), -1).argmax())


def _balance(kept: np.ndarray, matrix: Matrix) -> None:
    """Gives each group that keeps anything as many rows and inputs as the one that keeps most."""
    if len(matrix.writes) == 1:
        return
    alive = kept[matrix.writes].any(1) | kept[matrix.reads].any(1)
    for ids in (matrix.writes, matrix.reads):
        counts = kept[ids].sum(1)
        most = max(1, counts.max())
        for group in np.flatnonzero(alive & (counts < most)):
            missing = ids[group][~kept[ids[group]]]
            kept[missing[:most - counts[group]]] = True
