"""Incremental regularization (Wang et al., arXiv 1804.09461): `Reg_Col` and `Reg_Row`.

Groups are ranked by L1 norm, ranks averaged over all iterations so far, and each group's punishment (the factor of its
own L2 penalty) grows or shrinks with its place in that order. Whoever reaches the ceiling is pruned for good.

All of it is float32 arithmetic, as in the reference: doubles drift away from it within 100 iterations. Logarithms and
exponentials are rounded from double precision, which is what a C library's float functions return.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..groups import Column, Layout, Row
from ..table import GroupTable
from .base import METHODS, Goal, PruneMethod

_f = np.float32
#: u in the paper: the growth at the middle of scheme 1, as a share of its maximum.
MIDDLE = _f(0.25)
#: A pruned group's score is the iteration it was pruned at, less this.
PRUNED_SCORE = 1000000


def _log(value: np.float32) -> np.float32:
    return _f(math.log(value))


def _exp(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(values.astype(np.float64)).astype(np.float32)


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


class Reg(PruneMethod):
    """What Reg_Col, Reg_Row and RegSpa_Col share: all but the unit."""

    def growth(self, goal: Goal) -> np.ndarray:
        return (symmetric_growth if self.scheme == 1 else broken_growth)(self.unit_punishment, goal)

    def step(self, table: GroupTable, iteration: int, ceiling: float) -> Tensor:
        t = table
        order = t.norms.masked_fill_(t.frozen, -1).argsort(dim=1, stable=True)
        mean_ranks(t, t.ranks(order, out=t.scratch), t.frozen, iteration)
        order = t.score.masked_fill(t.frozen, -1).argsort(dim=1, stable=True)
        t.punish.add_(t.scratch.scatter_(1, order, t.growth)).clamp_(min=0)
        return (t.punish >= ceiling).gt(t.frozen)

    def record(self, table: GroupTable, index: int, layout: Layout, fresh: Tensor, iteration: int,
               ceiling: float) -> None:
        score, punish = table.row(table.score, index), table.row(table.punish, index)
        score.copy_(torch.where(fresh, pruned_score(punish, iteration, ceiling), score))
        table.row(table.pruned, index).logical_or_(fresh)
        table.row(table.frozen, index).logical_or_(fresh)


def mean_ranks(table: GroupTable, ranks: Tensor, frozen: Tensor, iteration: int) -> None:
    """score = ((n - 1) score + rank) / n, except where `frozen`."""
    mean = table.score.mul(iteration - 1).add_(ranks).div_(iteration)
    torch.where(frozen, table.score, mean, out=table.score)


def pruned_score(punish: Tensor, iteration: int, ceiling: float) -> Tensor:
    """What the reference keeps as the score of a group once pruned: very negative, the earlier the lower."""
    return iteration - PRUNED_SCORE - (punish - ceiling)


@METHODS.add("Reg_Col")
class RegCol(Reg):
    """Prunes columns: the same kernel position of the same input channel in every filter."""

    name = "Reg_Col"
    unit = Column()


@METHODS.add("Reg_Row")
class RegRow(Reg):
    """Prunes rows: whole filters. Scheme 1 only, as in the reference."""

    name = "Reg_Row"
    unit = Row()

    def __init__(self, unit_punishment: float, scheme: int = 1) -> None:
        super().__init__(unit_punishment, 1)
