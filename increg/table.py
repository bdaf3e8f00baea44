"""`GroupTable`: the groups of all layers being pruned, one layer after the other: one operation serves the whole net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from caffe_compat.errors import NetError

#: How far apart the sorting keys of two layers are: more than there are float32 values.
APART = 1 << 33


class GroupTable:
    """Vectors of one value a group; `sizes` tells the number of groups of each layer.

    Sorted, a layer's groups stay where the layer is: a position stands for a place in the order of that layer.

    norms:  L1 norm of each group now                     score:  its mean rank so far (SolverState.history_score)
    punish: its punishment (SolverState.history_punish)   pruned: bool
    idle:   bool, all groups of layers that take no part  frozen: pruned or idle
    growth: by position, what the punishment of the group there changes by, 0 in layers that take no part
    first:  by group, the first place in its layer's order that has a growth
    stray:  scores that the reference writes to a wrong place (methods/reg_row_reference.py), None in other methods
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu", *, stray: bool = False) -> None:
        self.sizes = list(sizes)
        self._starts = [0, *accumulate(sizes)]

        def zeros(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self._starts[-1], dtype=dtype, device=device)

        self.norms, self.score, self.punish, self.growth, self.scratch = (zeros() for _ in range(5))
        self.first = torch.full_like(self.norms, float("inf"))
        self.pruned, self.idle, self.frozen = (zeros(torch.bool) for _ in range(3))
        self.stray = zeros() if stray else None
        counts = torch.tensor(self.sizes, device=device)
        self.layer = torch.arange(len(self.sizes), device=device).repeat_interleave(counts)
        starts = torch.tensor(self._starts[:-1], device=device).repeat_interleave(counts)
        self.place = (torch.arange(self._starts[-1], device=device) - starts).to(torch.float32)
        self._number = torch.arange(self._starts[-1], device=device)
        self._keys = self.layer * APART
        self._lowest = self._keys - (1 << 31) - 1
        self._shift = self._starts[-1].bit_length()
        if self._shift + (len(self.sizes) * APART).bit_length() > 63:
            raise NetError(f"{self._starts[-1]} groups in {len(self.sizes)} layers are more than can be ranked together; "
                           "prune fewer layers at a time")

    def row(self, tensor: Tensor, index: int) -> Tensor:
        """Layer `index`'s groups in one of the vectors; a view."""
        return tensor[self._starts[index]:self._starts[index + 1]]

    def set_growth(self, index: int, pruned: int, growth: np.ndarray | None) -> None:
        """Gives layer `index` its growth, one value for each place from `pruned` on; None if it takes no part."""
        row = self.row(self.growth, index).zero_()
        self.row(self.first, index).fill_(float("inf") if growth is None else pruned)
        if growth is not None:
            row[pruned:] = torch.from_numpy(growth).to(row.device, non_blocking=True)

    def set_idle(self, layers: Sequence[bool]) -> None:
        """Says which layers take no part, and brings `frozen` up to date."""
        self.idle = torch.tensor(layers, device=self.idle.device)[self.layer]
        self.frozen = self.idle | self.pruned

    def order(self, values: Tensor, lowest: Tensor) -> Tensor:
        """The groups, sorted in each layer by `values` (float32), equal ones as they are; those of the bool vector `lowest`
        come first.

        One sort of integers serves all layers: read as integers, floats of one sign are in their order. A group's number
        stands behind its key, so that equal ones stay in order whatever sorts them, and nothing but keys is moved.
        """
        bits = values.view(torch.int32)
        keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + self._keys
        keys = torch.where(lowest, self._lowest, keys).bitwise_left_shift_(self._shift).add_(self._number)
        return _sorted(keys).bitwise_and_((1 << self._shift) - 1)

    def ranks(self, order: Tensor, out: Tensor) -> Tensor:
        """The place of every group in the order of its layer, written to `out`."""
        return out.scatter_(0, order, self.place)

    def count(self, groups: Tensor) -> list[int]:
        """How many groups of a bool vector each layer has. Waits for the device."""
        return self.layer.new_zeros(len(self.sizes)).index_add_(0, self.layer, groups.to(self.layer.dtype)).tolist()


def _sorted(keys: Tensor) -> Tensor:
    """Sorts integers. On a CPU by NumPy, which is several times as fast as torch."""
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values
