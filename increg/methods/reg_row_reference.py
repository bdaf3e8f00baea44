"""`Reg_Row` with the reference's defect, for comparing with it; `Reg` is the sound one.

The reference keeps scores in a blob of the weight's shape, and a row's at its first element. When it prunes row r it
writes the row's score to element r instead, and reads the punishment there. So a pruned row keeps its last mean rank:
it does not sink to the front, but is sorted by that number, among the norms as among the scores. Punishment goes to all
rows from place `pruned` on, pruned or not; a pruned row met there that is over the ceiling is pruned, and counted, once
more. Element r is the first of a row if r is a multiple of the number of columns; then it is that row which sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups import Layout
from ..table import GroupTable
from .reg import Reg, mean_ranks, pruned_score


class RegRowAsReference(Reg):
    """The reference's ranking of rows."""

    recounts = True

    def step(self, table: GroupTable, iteration: int, ceiling: float) -> Tensor:
        t = table
        order = t.order(torch.where(t.pruned, t.score, t.norms), t.idle)
        mean_ranks(t, t.ranks(order, out=t.scratch), t.frozen, iteration)
        order = t.order(t.score, t.idle)
        self._before = t.punish.clone()
        t.punish.add_(t.scratch.scatter_(0, order, t.growth)).clamp_(min=0)
        self._places = t.ranks(order, out=t.scratch)
        return (t.punish >= ceiling) & (self._places >= t.first)

    def record(self, table: GroupTable, index: int, layout: Layout, fresh: Tensor, iteration: int,
               ceiling: float) -> None:
        punish, before, places = (table.row(t, index) for t in (table.punish, self._before, self._places))
        rows = fresh.nonzero().squeeze(1)
        owners = rows // layout.columns  # the rows whose elements 'rows' are; updated by now if they come first
        seen = torch.where(places[owners] <= places[rows], punish[owners], before[owners])
        scores = pruned_score(seen, iteration, ceiling)
        table.row(table.stray, index)[rows] = scores
        first = rows % layout.columns == 0
        table.row(table.score, index)[owners[first]] = scores[first]
        table.row(table.pruned, index).logical_or_(fresh)
        table.row(table.frozen, index).logical_or_(fresh)
