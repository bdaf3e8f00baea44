"""`Pruner`: carries out a method on the layers of a net: ranks, punishes and prunes groups, and keeps masks applied.

What is pruned must stay zero, with as little work as that takes. Its diff is zeroed in every iteration; its weight and
momentum stay zero by themselves once both were zeroed after it was pruned, so those masks are applied only while a layer
is unsettled. In an iteration that prunes nothing, the device is asked for one small tensor, the number of groups pruned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .budget import Budget, measure
from .config import PruneConfig
from .coupling import Coupling
from .groups import Row
from .methods import Goal, nearest_rectangle
from .state import LayerState
from .table import GroupTable

log = logging.getLogger(__name__)
_f = np.float32


class Pruner:
    """Prunes `layers` as `config` says; `coupling` tells which rows follow which columns.

    `changed` is to be set when a layer's aim has changed or pruning begins or ends; masks set it by themselves.
    """

    def __init__(self, layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling,
                 device: torch.device) -> None:
        self.layers = layers
        self.config = config
        self.coupling = coupling
        self.method = config.method(config.unit_punishment, config.scheme)
        self.unit = self.method.unit
        self.pruned = [layer for layer in layers if layer.prunes]
        self.table = GroupTable([self.unit.size(layer.layout) for layer in self.pruned], device, stray=self.method.recounts)
        self.changed = True
        self._goals: list[Goal | None] = [None] * len(self.pruned)
        self._idle: list[bool] = []
        self._active: list[LayerState] = []
        self._masked: list[LayerState] = []
        self._unsettled: dict[int, LayerState] = {}
        self._recounted: dict[int, int] = {}

    # -- before the forward pass ----------------------------------------------------------------------------------------

    def take_stock(self, pruning: bool, check: Callable[[LayerState], None]) -> bool:
        """If anything has changed: lets neighbours follow, updates ratios, calls `check` for every layer (which may find
        it finished), and plans the coming iterations; `pruning` says whether groups are punished in them. Returns
        whether anything had changed."""
        if not self.changed:
            return False
        self.changed = False
        if self.config.update_row_col:
            self._follow_neighbours()
        for layer in self.layers:
            if layer.index in self._unsettled:
                layer.update_ratios()
            unfinished = layer.finished is None
            check(layer)
            if unfinished and layer.finished is not None and layer.prunes and self.method.rectangle:
                self._keep_rectangle(layer)
        self._masked = [layer for layer in self.layers if layer.pruned_ratio > 0]
        self._plan(pruning)
        return True

    def _follow_neighbours(self) -> None:
        by_rows = isinstance(self.unit, Row)
        idle = (self.coupling.idle_columns if by_rows else self.coupling.idle_rows)(self.layers)
        for index, groups in idle.items():
            layer = self.layers[index]
            if not layer.update:
                continue
            (layer.masks.add_columns if by_rows else layer.masks.add_rows)(groups)
            if self.method.recounts:  # the reference counts a channel as often as it has counted its row
                layer.num_columns += self._recounted.pop(index - 1, 0) * layer.layout.positions / layer.layout.group
            else:
                layer.take_counts()
            self._unsettled[index] = layer

    def _keep_rectangle(self, layer: LayerState) -> None:
        """Replaces the kernel positions that a finished layer keeps by a rectangle. Those that come back start anew."""
        shape, table = layer.layout.shape[2:], self.table
        before = self.unit.pruned(layer.masks)
        after = ~nearest_rectangle(~before.reshape(shape)).flatten()
        layer.masks.set(layer.masks.rows, after.repeat(layer.layout.channels).expand(layer.layout.group, -1).clone())
        layer.take_counts()
        layer.update_ratios()
        back = before & ~after
        for tensor in (table.score, table.punish):
            table.row(tensor, layer.table_index).masked_fill_(back, 0)
        self._unsettled[layer.index] = layer
        self._take_groups([layer])

    def _take_groups(self, layers: Sequence[LayerState]) -> None:
        """Enters in the table what the masks of some layers say."""
        for layer in layers:
            self.table.row(self.table.pruned, layer.table_index).copy_(self.unit.pruned(layer.masks))
        self._idle = []

    def _plan(self, pruning: bool) -> None:
        """Which layers are punished, and how: what depends on the number of pruned groups, and changes only with it."""
        self._active = []
        for layer in self.pruned:
            i = layer.table_index
            goal = self._goal(layer) if pruning and layer.finished is None else None
            if goal:
                self._active.append(layer)
            if goal != self._goals[i]:
                self._goals[i] = goal
                self.table.set_growth(i, goal.pruned if goal else 0, self.method.growth(goal) if goal else None)
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
        to_prune = int(np.ceil(_f(size) * layer.ratio_now)) - done
        if to_prune <= 0:
            log.warning("%s: %d of %d groups are pruned, which is all that this stage asks for", layer.name, done, size)
            return None
        pruned = done if self.method.recounts or layer.layout.group == 1 else int(self.unit.pruned(layer.masks).sum())
        aim = layer.ratio_now - layer.last_feasible
        progress = (layer.compared_ratio(self.config.by_rows) - layer.last_feasible) / aim if aim > 0 else _f(0)
        return Goal(to_prune, pruned, size - pruned, float(progress) if self.method.scheme == 2 else 0.0)

    def mask_weights(self) -> None:
        """Zeroes the weights of what is pruned, where they may not be zero yet."""
        if self._unsettled:
            with torch.no_grad():
                for layer in self._unsettled.values():
                    layer.masks.apply(layer.weight.tensor)

    # -- after the backward passes --------------------------------------------------------------------------------------

    def mask_diffs(self) -> None:
        """Zeroes the diffs of what is pruned."""
        for layer in self._masked:
            if layer.weight.grad is not None:
                layer.masks.apply(layer.weight.grad)

    def regularize(self, iteration: int, ceiling: float, histories: Sequence[Sequence[Tensor]]) -> None:
        """Punishes and prunes, and zeroes the momentum of what is pruned: in the very iteration too, except for the first
        groups of a layer, whose ratio still is 0 in the reference's eyes. `iteration` is numbered from 1. To be called while
        torch records no gradients."""
        fresh = self._punish(iteration, ceiling) if self._active else {}
        for layer in {**self._unsettled, **fresh}.values():
            if layer.pruned_ratio > 0:
                for history in histories[layer.learnable]:
                    layer.masks.apply(history)
        self._unsettled = fresh

    def _punish(self, iteration: int, ceiling: float) -> dict[int, LayerState]:
        table, unit = self.table, self.unit
        for layer in self._active:
            unit.norms(layer.layout, layer.weight.tensor, out=table.row(table.norms, layer.table_index))
        fresh = self.method.step(table, iteration, ceiling)
        counts = fresh.sum(1).tolist()
        pruned = {layer.index: layer for layer in self._active if counts[layer.table_index]}
        for layer in pruned.values():
            self._prune(layer, table.row(fresh, layer.table_index), counts[layer.table_index], iteration, ceiling)
        for layer in self._active:
            weight, grad = layer.weight.tensor, layer.weight.grad
            if grad is not None:
                grad.addcmul_(weight, unit.spread(layer.layout, table.row(table.punish, layer.table_index), weight))
        return pruned

    def _prune(self, layer: LayerState, groups: Tensor, count: int, iteration: int, ceiling: float) -> None:
        self.method.record(self.table, layer.table_index, layer.layout, groups, iteration, ceiling)
        self.unit.prune(layer.masks, groups, count)
        if self.method.recounts:
            layer.num_rows += count
            self._recounted[layer.index] = self._recounted.get(layer.index, 0) + count
        else:
            layer.take_counts()
        layer.masks.apply(layer.weight.tensor)
        self.changed = True

    # -- between stages -------------------------------------------------------------------------------------------------

    def clear_left_over(self, layer: LayerState, ceiling: float) -> list[float]:
        """Sets the punishments of unpruned groups to 0 that lie between 0 and the ceiling, and returns them.

        The reference looks at the punishments of row 0 alone, also where groups are rows.
        """
        punish = self.table.row(self.table.punish, layer.table_index)
        left = (punish > 0) & (punish < ceiling)
        if self.method.recounts:
            left = left[:1] & ~layer.masks.columns[:1, 0]
            values = punish[:1][left].tolist() * int(layer.masks.columns.shape[1] - layer.masks.columns[0].sum())
            punish.mul_((~left).to(punish.dtype))
            return values
        left &= ~self.unit.pruned(layer.masks)
        values = punish[left].tolist()
        punish.masked_fill_(left, 0)
        return values

    def budget(self) -> Budget:
        """What the net costs, by the current ratios."""
        return measure(self.layers, speedup_counts_fc=self.config.speedup_counts_fc,
                       compression_counts_conv=self.config.compression_counts_conv)

    def start_over(self) -> None:
        """To be called when weights, masks or punishments have been replaced: nothing is taken for settled."""
        self._unsettled = {layer.index: layer for layer in self.layers}
        self._recounted.clear()
        self._take_groups(self.pruned)
        self.changed = True
