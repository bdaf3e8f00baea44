"""`Pruner`: what all methods share. Keeps what is pruned at zero, lets neighbours follow, counts, and calls the method.

What is pruned must stay zero, with as little work as that takes. Its diff is zeroed in every iteration; its weight and
momentum stay zero by themselves once both were zeroed after it was pruned, so those masks are applied only while a layer
is unsettled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import ceil

import torch
from torch import Tensor

from caffe_compat.layers.data import ReadingLayer
from caffe_compat.net import Net

from .budget import Budget, measure
from .config import PruneConfig
from .coupling import Coupling
from .ratios import Orders, foresee_rows, groups_to_prune, least_enough, target_of
from .state import LayerState
from .trainer import say
from .units import Row, Weight

log = logging.getLogger(__name__)


class Pruner:
    """Prunes `layers` as `config` says; `coupling` tells which rows follow which columns. `net` is None in tests that have
    none.

    pruned:   the layers with a ratio, in order
    ties:     layers (two and more) whose rows write the same channels and go together
    ceiling:  the punishment at which groups are pruned, in the methods that have one; set by `regularize`
    changed:  to be set when a layer's aim has changed or pruning begins or ends; masks set it by themselves
    """

    def __init__(self, layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling, device: torch.device,
                 net: Net | None = None, ties: Sequence[Sequence[LayerState]] = ()) -> None:
        self.layers = layers
        self.config = config
        self.coupling = coupling
        self.device = device
        self.net = net
        self.ties = ties
        self.unit = config.unit
        self.pruned = [layer for layer in layers if layer.prunes]
        self.ceiling = 0.0
        self.changed = True
        self._masked: list[LayerState] = []
        self._fresh: dict[int, LayerState] = {}
        self._unsettled: dict[int, LayerState] = {}
        self._recounted: dict[int, int] = {}
        self.method = config.method(config)
        self.method.bind(self)

    # -- before the forward pass ----------------------------------------------------------------------------------------

    def take_stock(self, pruning: bool, check: Callable[[LayerState], None]) -> bool:
        """If anything has changed: lets neighbours follow, updates ratios, calls `check` for every layer (which may find
        it finished), and lets the method plan the coming iterations; `pruning` says whether it prunes in them. Returns
        whether anything had changed."""
        if not self.changed:
            return False
        self.changed = False
        if self.config.update_row_col:
            self._follow_neighbours()
        for layer in self.layers:
            if layer.index in self._unsettled or layer.index in self._fresh:
                layer.update_ratios()
            unfinished = layer.finished is None
            check(layer)
            if unfinished and layer.finished is not None:
                self.method.layer_finished(layer)
        self._masked = [layer for layer in self.layers if layer.pruned_ratio > 0]
        self.method.plan(pruning)
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

    def regularize(self, iteration: int, ceiling: float, histories: Sequence[Sequence[Tensor]], pruning: bool = True) -> None:
        """Lets the method punish and prune if it is `pruning`, and zeroes the momentum of what is pruned: in the very
        iteration too, except for the first groups of a layer, whose ratio still is 0 in the reference's eyes. `iteration`
        is numbered from 0. To be called while torch records no gradients."""
        self.ceiling = ceiling
        if pruning:
            self.method.regularize(iteration)
        for layer in {**self._unsettled, **self._fresh}.values():
            if layer.pruned_ratio > 0:
                for history in histories[layer.learnable]:
                    layer.masks.apply(history)
        self._unsettled, self._fresh = self._fresh, {}

    # -- what methods do ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prune(self, layer: LayerState, groups: Tensor, count: int | None = None) -> None:
        """Prunes the groups of a bool vector for good: their weights are zero now, and stay it. `count` is how many of them
        are new, if that is known; otherwise this waits for the device."""
        self.unit.prune(layer.masks, groups, count)
        if count and self.method.recounts:
            layer.num_rows += count
            self._recounted[layer.index] = self._recounted.get(layer.index, 0) + count
        else:
            layer.take_counts()
        layer.masks.apply(layer.weight.tensor)
        self._fresh[layer.index] = layer
        self.changed = True

    @property
    def settled(self) -> bool:
        """Whether the method has pruned all that it is going to prune."""
        return all(layer.settled for layer in self.layers)

    def finish(self) -> None:
        """Says that the method has pruned all that it is going to prune; the schedule moves on."""
        for layer in self.layers:
            layer.settled = True
        self.changed = True

    def count(self, layer: LayerState) -> int:
        """How many of a layer's groups are to be pruned, so that some are left."""
        return groups_to_prune(layer, self.config)

    @torch.no_grad()
    def orders(self) -> Orders:
        """The groups of each of `pruned` in the order in which they are likely to go, by what the method can tell now."""
        return {} if isinstance(self.unit, Weight) else {
            layer.name: scores.argsort(stable=True)
            for layer, scores in zip(self.pruned, self.mean_over_ties(self.method.likely()))}

    def count_for_target(self, rows: Callable[[int], Mapping[str, Tensor]], most: int, share: float = 1.0) -> int:
        """The least count in 1..most with which `rows(count)`, bool vectors of more rows to prune by the names of layers, meet
        prune_target to the power of `share`."""
        name, value = target_of(self.config)

        def reached(count: int) -> float:
            return getattr(foresee_rows(self.layers, rows(count), self.config, self.coupling), name)

        count = least_enough(lambda count: reached(count) >= value ** share, most)
        if (found := reached(count)) < value ** share:
            log.warning("%s: %s: %.4g is as much as can be had of %.4g", self.config.name, name, found, value ** share)
        return count

    def iterations_per_epoch(self) -> int | None:
        """How many iterations read the training data once, None if no layer tells how much there is."""
        for layer in self.net.layers if self.net else ():
            if isinstance(layer, ReadingLayer) and layer.records:
                return max(1, ceil(layer.records / (layer.batch_size() * self.config.iter_size)))
        return None

    def say(self, line: str) -> None:
        """Prints a line as the schedule does."""
        say(f"[app] {line}")

    def mean_over_ties(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """One score vector for each of `pruned`, those of layers that go together replaced by their mean."""
        result = list(scores)
        for tie in self.ties:
            places = [layer.table_index for layer in tie]
            mean = torch.stack([scores[place] for place in places]).mean(0)
            for place in places:
                result[place] = mean
        return result

    def replace_columns(self, layer: LayerState, columns: Tensor) -> None:
        """Prunes other columns of a layer than so far: those of a bool vector, in all groups of a convolution."""
        layer.masks.set(layer.masks.rows, columns.expand(layer.layout.group, -1).clone())
        layer.take_counts()
        layer.update_ratios()
        self._unsettled[layer.index] = layer

    @torch.enable_grad()
    def gradients(self, batches: int, visit: Callable[[], None]) -> None:
        """Runs `batches` forward and backward passes of the training net without an update, and calls `visit` after each:
        `layer.weight.grad` then holds that batch's gradient. Reads on in the data. Not to be called between the passes of
        an iteration and its update."""
        for _ in range(batches):
            self.net.clear_param_diffs()
            self.net.forward_backward()
            visit()
        self.net.clear_param_diffs()

    # -- the schedule ---------------------------------------------------------------------------------------------------

    def clear_left_over(self, layer: LayerState, ceiling: float) -> list[float]:
        """See `PruneMethod.clear_left_over`."""
        return self.method.clear_left_over(layer, ceiling)

    def budget(self) -> Budget:
        """What the net costs, by the current ratios."""
        return measure(self.layers, speedup_counts_fc=self.config.speedup_counts_fc,
                       compression_counts_conv=self.config.compression_counts_conv)

    def start_over(self) -> None:
        """To be called when weights, masks or punishments have been replaced: nothing is taken for settled."""
        self._unsettled = {layer.index: layer for layer in self.layers}
        self._fresh.clear()
        self._recounted.clear()
        self.method.masks_replaced()
        self.changed = True
