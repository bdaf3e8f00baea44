"""`GroupTable`: the groups of all layers being pruned, one row a layer, so that one operation serves the whole net."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class GroupTable:
    """Tensors of shape (layers, width), width being the largest number of groups; `sizes` tells each layer's.

    Rows are aligned to the right: a shorter one begins with padding, which is `idle` and sinks to the front wherever
    groups are sorted, as the pruned ones do behind it. Position p of a sorted row is place p - padding.

    norms:  L1 norm of each group now                     score:  its mean rank so far (SolverState.history_score)
    punish: its punishment (SolverState.history_punish)   pruned: bool
    idle:   bool, padding and layers that take no part    frozen: pruned or idle
    growth: by position, what the punishment of the group there changes by, 0 in layers that take no part
    first:  (layers, 1), the first place of a row that has a growth
    stray:  scores that the reference writes to a wrong place (methods/reg_row_reference.py), None in other methods
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu", *, stray: bool = False) -> None:
        self.sizes = list(sizes)
        self.width = max(sizes)
        shape = len(self.sizes), self.width

        def zeros() -> Tensor:
            return torch.zeros(shape, device=device)

        self.norms, self.score, self.punish, self.growth = zeros(), zeros(), zeros(), zeros()
        self.scratch = zeros()
        self.stray = zeros() if stray else None
        padding = torch.tensor([[self.width - size] for size in self.sizes], device=device)
        place = torch.arange(self.width, device=device) - padding
        self.padding = place < 0
        self.place = place.to(torch.float32)
        self.first = torch.full((len(self.sizes), 1), float(self.width), device=device)
        self.pruned = torch.zeros(shape, dtype=torch.bool, device=device)
        self.idle = self.padding.clone()
        self.frozen = self.padding.clone()

    def row(self, tensor: Tensor, index: int) -> Tensor:
        """Layer `index`'s groups in one of the tensors, without the padding; a view."""
        return tensor[index, self.width - self.sizes[index]:]

    def set_growth(self, index: int, pruned: int, growth: np.ndarray | None) -> None:
        """Gives layer `index` its growth, one value for each place from `pruned` on; None if it takes no part."""
        row = self.row(self.growth, index).zero_()
        self.first[index] = self.width if growth is None else pruned
        if growth is not None:
            row[pruned:] = torch.from_numpy(growth).to(row.device, non_blocking=True)

    def set_idle(self, layers: Sequence[bool]) -> None:
        """Says which layers take no part, and brings `frozen` up to date."""
        resting = torch.tensor(layers, device=self.idle.device)
        self.idle = self.padding | resting[:, None]
        self.frozen = self.idle | self.pruned

    def ranks(self, order: Tensor, out: Tensor) -> Tensor:
        """The place of every group in a row sorted by `order`, written to `out`."""
        return out.scatter_(1, order, self.place)
