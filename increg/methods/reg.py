"""`Reg`: incremental regularization (Wang et al., arXiv 1804.09461), by columns and by rows.

Groups are ranked by L1 norm, ranks averaged over all iterations so far, and each group's punishment (the factor of its
own L2 penalty) grows or shrinks with its place in that order. Whoever reaches the ceiling is pruned for good.

All of it is float32 arithmetic, as in the reference: doubles drift away from it within 100 iterations. Logarithms and
exponentials are rounded from double precision, which is what a C library's float functions return.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import state
from ..groups import Layout
from ..table import GroupTable
from ..units import Row
from .base import METHODS, PruneMethod, units

if TYPE_CHECKING:
    from caffe_compat.net_builder import Learnable
    from caffe_compat.proto import Document

    from ..config import PruneConfig
    from ..pruner import Pruner
    from ..state import LayerState

log = logging.getLogger(__name__)
_f = np.float32
#: u in the paper: the growth at the middle of scheme 1, as a share of its maximum.
MIDDLE = _f(0.25)
#: A pruned group's score is the iteration it was pruned at, less this.
PRUNED_SCORE = 1000000


@dataclass(frozen=True)
class Goal:
    """What one layer is to reach in this stage.

    to_prune:  groups still to prune, at least 1
    pruned:    groups pruned
    unpruned:  groups not pruned
    progress:  how much of this stage's increase of the pruned ratio is reached, 0 to 1
    """

    to_prune: int
    pruned: int
    unpruned: int
    progress: float = 0.0


def _log(value: np.float32) -> np.float32:
    return _f(math.log(value))


def _exp(values: np.ndarray) -> np.ndarray:
    return np.exp(values.astype(np.float64)).astype(np.float32)


@np.errstate(over="ignore")  # far behind the groups to prune, punishments fall by more than float32 holds: to 0
def symmetric_growth(unit: np.float32, goal: Goal) -> np.ndarray:
    """Scheme 1 (the paper's punishment function): falls from A at place 0, exponentially to u A at place N1, and from
    there as it fell before, mirrored in that point; it is 0 at place to_prune.

    alpha = ln(2/u) / to_prune, N1 = -ln(u) / alpha;  A exp(-alpha j) for j < N1, 2 u A - A exp(-alpha (2 N1 - j)) after.
    """
    j = np.arange(goal.unpruned, dtype=np.float32)
    alpha = _log(_f(2) / MIDDLE) / _f(goal.to_prune)
    turn = -_log(MIDDLE) / alpha
    falling = unit * _exp(-alpha * j)
    rising = _f(2) * MIDDLE * unit - unit * _exp(-alpha * (_f(2) * turn - j))
    return np.where(j < turn, falling, rising)


@np.errstate(over="ignore")
def broken_growth(unit: np.float32, goal: Goal) -> np.ndarray:
    """Scheme 2: positive for the groups to prune, negative for the others, with a jump between; it flattens (u2 grows
    from 0.05 to 0.75) as the stage progresses.

    A exp(-a1 j) for j < to_prune, -A exp(-a2 (m - 1 - j)) after, m groups being unpruned.
    """
    j = np.arange(goal.unpruned, dtype=np.float32)
    last = goal.unpruned - 1
    steepness = _log(_f(1) / max(_f(goal.progress) * _f(0.75), _f(0.05)))
    down = _f(0) if goal.to_prune == 1 else steepness / _f(goal.to_prune - 1)
    up = _f(0) if goal.to_prune == last else steepness / _f(last - goal.to_prune)
    return np.where(j < goal.to_prune, unit * _exp(-down * j), -unit * _exp(-up * (_f(last) - j)))


@METHODS.add("Reg")
class Reg(PruneMethod):
    """Punishes the groups of all layers in one `GroupTable`. Scores and punishments go into the fork's SolverState fields.

    SolverParameter: AA, target_reg, IF_scheme1_when_Reg_rank; rows know scheme 1 only, as in the reference.
    """

    units = units("Col", "Row")
    staged = True
    holds_rate = True
    leaves_some = False
    #: Whether the groups kept by a finished layer are replaced by the nearest rectangle of kernel positions.
    rectangle: ClassVar[bool] = False

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        if config.unit_punishment <= 0:
            self.fail(f"AA, the unit of punishment, is {config.unit_punishment:g}, expected more than 0: nothing would ever be "
                      "pruned")
        if config.target_reg <= 0:
            self.fail(f"target_reg, the punishment at which a group is pruned, is {config.target_reg:g}, expected more than 0: "
                      "everything would be pruned at once")
        self.unit_punishment = _f(config.unit_punishment)
        self.scheme = 1 if isinstance(self.unit, Row) else config.scheme

    def bind(self, pruner: Pruner) -> None:
        """Makes the table; a layer's row in it is its `table_index`."""
        super().bind(pruner)
        sizes = [self.unit.size(layer.layout) for layer in pruner.pruned]
        self.table = GroupTable(sizes, pruner.device, stray=self.recounts)
        self._goals: list[Goal | None] = [None] * len(sizes)
        self._idle: list[bool] = []
        self._active: list[LayerState] = []

    @classmethod
    def count(cls, groups: int, ratio: np.float32, param: Any = None) -> int:
        """As the reference counts, in float32: 25 * 0.6f is 15.000001, so 16."""
        return int(np.ceil(_f(groups) * ratio))

    @classmethod
    def reached(cls, layer: LayerState, by_rows: bool) -> bool:
        return bool(layer.compared_ratio(by_rows) >= layer.ratio_now)

    # -- one iteration, in the table ----------------------------------------------------------------------------------

    def growth(self, goal: Goal) -> np.ndarray:
        """float32: what punishments change by, for the unpruned groups of a layer in the order of their scores."""
        return (symmetric_growth if self.scheme == 1 else broken_growth)(self.unit_punishment, goal)

    def step(self, table: GroupTable, iteration: int, ceiling: float) -> Tensor:
        """One iteration (numbered from 1): new scores and punishments in `table`, from `table.norms`.

        Returns the groups that are pruned now, a bool vector; their weights are not yet zero. Waits for no
        device.
        """
        t = table
        mean_ranks(t, t.ranks(t.order(t.norms, t.frozen), out=t.scratch), t.frozen, iteration)
        order = t.order(t.score, t.frozen)
        t.punish.add_(t.scratch.scatter_(0, order, t.growth)).clamp_(min=0)
        return (t.punish >= ceiling).gt(t.frozen)

    def record(self, table: GroupTable, index: int, layout: Layout, fresh: Tensor, iteration: int,
               ceiling: float) -> None:
        """Writes down in `table` that the groups `fresh` (bool) of layer `index`, whose weight has
        `layout`, are pruned since `iteration`."""
        score, punish = table.row(table.score, index), table.row(table.punish, index)
        score.copy_(torch.where(fresh, pruned_score(punish, iteration, ceiling), score))
        table.row(table.pruned, index).logical_or_(fresh)
        table.row(table.frozen, index).logical_or_(fresh)

    # -- one iteration, in the net ------------------------------------------------------------------------------------

    def regularize(self, iteration: int) -> None:
        """Punishes and prunes; asks the device for one small tensor, the number of groups pruned in each layer."""
        if not self._active:
            return
        table, unit, ceiling = self.table, self.unit, self.pruner.ceiling
        for layer in self._active:
            norms = unit.totals(layer.layout, layer.weight.tensor, torch.abs, in_order=self.config.as_reference)
            table.row(table.norms, layer.table_index).copy_(norms)
        for tie in self.pruner.ties:  # the same norms from the start make the same ranks, punishments and ends
            rows = [table.row(table.norms, layer.table_index) for layer in tie]
            mean = torch.stack(rows).mean(0)
            for row in rows:
                row.copy_(mean)
        fresh = self.step(table, iteration + 1, ceiling)
        counts = table.count(fresh)
        for layer in self._active:
            if count := counts[layer.table_index]:
                groups = table.row(fresh, layer.table_index)
                self.record(table, layer.table_index, layer.layout, groups, iteration + 1, ceiling)
                self.pruner.prune(layer, groups, count)
        for layer in self._active:
            weight, grad = layer.weight.tensor, layer.weight.grad
            if grad is not None:
                grad.addcmul_(weight, unit.spread(layer.layout, table.row(table.punish, layer.table_index), weight))

    def plan(self, pruning: bool) -> None:
        """Which layers are punished, and how: what depends on the number of pruned groups, and changes only with it."""
        self._active = []
        for layer in self.pruner.pruned:
            i = layer.table_index
            goal = self._goal(layer) if pruning and layer.finished is None else None
            if goal:
                self._active.append(layer)
            if goal != self._goals[i]:
                self._goals[i] = goal
                self.table.set_growth(i, goal.pruned if goal else 0, self.growth(goal) if goal else None)
        idle = [goal is None for goal in self._goals]
        if idle != self._idle:
            self._idle = idle
            self.table.set_idle(idle)

    def _goal(self, layer: LayerState) -> Goal | None:
        """What is left to prune of a layer in this stage; None if it is not punished."""
        if self.config.as_reference and not layer.decays:
            return None  # the reference's punishment stands inside "if there is weight decay"
        size = self.unit.size(layer.layout)
        done = self.unit.num_pruned(layer.layout, layer.num_rows, layer.num_columns)
        to_prune = self.count(size, layer.ratio_now) - done
        if to_prune <= 0:
            log.warning("%s: %d of %d groups are pruned, which is all that this stage asks for", layer.name, done, size)
            return None
        pruned = done if self.recounts or layer.layout.group == 1 else int(self.unit.pruned(layer.masks).sum())
        aim = layer.ratio_now - layer.last_feasible
        progress = (layer.compared_ratio(self.config.by_rows) - layer.last_feasible) / aim if aim > 0 else _f(0)
        return Goal(to_prune, pruned, size - pruned, float(progress) if self.scheme == 2 else 0.0)

    def masks_replaced(self) -> None:
        self.take_groups(self.pruner.pruned)

    def take_groups(self, layers: list[LayerState]) -> None:
        """Enters in the table what the masks of some layers say."""
        for layer in layers:
            self.table.row(self.table.pruned, layer.table_index).copy_(self.unit.pruned(layer.masks))
        self._idle = []

    def write_fields(self, document: Document, learnable: Sequence[Learnable]) -> None:
        state.write(document, self.pruner.layers, learnable, self.table, self.unit)

    def read_fields(self, document: Document, parameters: int) -> dict[str, Tensor]:
        return state.read(document, self.pruner.layers, parameters, self.table, self.unit)

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        """Punishment, and mean rank so far."""
        table = self.table
        return {"punish": table.row(table.punish, layer.table_index), "rank": table.row(table.score, layer.table_index)}

    # -- between stages -----------------------------------------------------------------------------------------------

    def clear_left_over(self, layer: LayerState, ceiling: float) -> list[float]:
        """Sets the punishments of unpruned groups to 0 that lie between 0 and the ceiling, and returns them.

        The reference looks at the punishments of row 0 alone, also where groups are rows.
        """
        punish = self.table.row(self.table.punish, layer.table_index)
        left = (punish > 0) & (punish < ceiling)
        if self.recounts:
            left = left[:1] & ~layer.masks.columns[:1, 0]
            values = punish[:1][left].tolist() * int(layer.masks.columns.shape[1] - layer.masks.columns[0].sum())
            punish.mul_((~left).to(punish.dtype))
            return values
        left &= ~self.unit.pruned(layer.masks)
        values = punish[left].tolist()
        punish.masked_fill_(left, 0)
        return values


def mean_ranks(table: GroupTable, ranks: Tensor, frozen: Tensor, iteration: int) -> None:
    """score = ((n - 1) score + rank) / n, except where `frozen`."""
    mean = table.score.mul(iteration - 1).add_(ranks).div_(iteration)
    torch.where(frozen, table.score, mean, out=table.score)


def pruned_score(punish: Tensor, iteration: int, ceiling: float) -> Tensor:
    """What the reference keeps as the score of a group once pruned: very negative, the earlier the lower."""
    return iteration - PRUNED_SCORE - (punish - ceiling)
