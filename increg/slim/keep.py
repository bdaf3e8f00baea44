"""Which channels a pruned net needs: those that something reads which cannot do without them.

A channel can be taken away, with every row that writes it, if nobody reads it, or if it has one value everywhere that
its readers can take into their biases. Beyond the borders a padded convolution sees zeros instead of that value, so
there one such channel stays for all of them, a carrier: the others' weights are added to its own. What is kept is the
least set that is closed under: what a kept row reads is kept, each group of a grouped convolution keeps as many rows
and as many inputs as the others, or nothing at all, and rows come in multiples, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def keep(channels: Channels, matrices: Mapping[str, Matrix], inputs: Mapping[str, Inputs], round_to: int = 1) -> np.ndarray:
    """(numbers,) bool: the channels that stay; of each matrix (of each group) a multiple of `round_to` rows, or all."""
    return _Keeping(channels, matrices, inputs, round_to).kept


class _Keeping:
    """Grows `kept` by one rule after the other, the later ones only where the earlier have no more to add."""

    def __init__(self, channels: Channels, matrices: Mapping[str, Matrix], inputs: Mapping[str, Inputs],
                 round_to: int) -> None:
        self.matrices, self.inputs, self.round_to = matrices, inputs, round_to
        self.kept = channels.needed | channels.given
        self._blobs = [ids for tops in channels.tops.values() for ids in tops if len(ids)]
        #: By layer, the kept rows that `_reads` has seen, and the inputs that they read.
        self._rows: dict[str, np.ndarray] = {}
        self._read: dict[str, np.ndarray] = {}
        while any(map(self._grows, (self._reads, self._carriers, self._groups, self._multiples, self._some))):
            pass

    def _grows(self, rule: Callable[[], None]) -> bool:
        before = self.kept.sum()
        rule()
        return bool(self.kept.sum() > before)

    def _reads(self) -> None:
        """What a kept row reads is kept, unless its biases can stand for it."""
        for name, matrix in reversed(self.matrices.items()):
            rows = self.kept[matrix.writes]
            if name not in self._rows or not np.array_equal(self._rows[name], rows):
                self._rows[name], read = rows, matrix.read_by(rows)
                self._read[name] = self.inputs[name].carried & read
                self.kept[matrix.reads[read & ~self.inputs[name].removable & ~self.inputs[name].carried]] = True

    def _carriers(self) -> None:
        """Keeps an input to carry those of one value that are read across a border."""
        for name, matrix in self.matrices.items():
            carried = self._read[name]
            if carried.any() and carrier(self.kept, matrix, self.inputs[name], carried[0]) is None:
                self.kept[matrix.reads[0, _largest(carried[0], self.inputs[name])]] = True

    def _groups(self) -> None:
        """Gives each group that keeps anything as many rows and inputs as the one that keeps most."""
        for matrix in self.matrices.values():
            if len(matrix.writes) > 1:
                alive = self.kept[matrix.writes].any(1) | self.kept[matrix.reads].any(1)
                for ids in (matrix.writes, matrix.reads):
                    self._even(ids, alive)

    def _even(self, ids: np.ndarray, alive: np.ndarray) -> None:
        counts = self.kept[ids].sum(1)
        most = max(1, counts.max())
        for group in np.flatnonzero(alive & (counts < most)):
            missing = ids[group][~self.kept[ids[group]]]
            self.kept[missing[:most - counts[group]]] = True

    def _multiples(self) -> None:
        """Fills up the rows of each group that keeps any to a multiple of `round_to`."""
        for matrix in self.matrices.values():
            for ids in matrix.writes:
                count = self.kept[ids].sum()
                if count:
                    self.kept[ids[~self.kept[ids]][:-count % self.round_to]] = True

    def _some(self) -> None:
        """No blob may be left without a channel: keeps one of the first that would."""
        for ids in self._blobs:
            if not self.kept[ids].any():
                self.kept[ids[0]] = True
                return


def carrier(kept: np.ndarray, matrix: Matrix, inputs: Inputs, carried: np.ndarray) -> int | None:
    """The kept input that is to stand for the `carried` ones, None if no value is large enough: one of them if it can be,
    or the net of these inputs could be slimmed again."""
    constant = inputs.carried[0] & kept[matrix.reads[0]]
    limit = CARRIER * abs(inputs.values[0, _largest(carried, inputs)])
    for candidates in (constant & matrix.used[0].any(0).numpy(), constant):
        best = _largest(candidates, inputs)
        if candidates[best] and abs(inputs.values[0, best]) >= limit:
            return best
    return None


def _largest(among: np.ndarray, inputs: Inputs) -> int:
    return int(np.where(among, np.abs(inputs.values[0]), -1).argmax())
