"""`GReg1`, `GReg2`: growing regularization (Wang et al., ICLR 2021, arXiv 2012.09243), as the authors' code does it.

A layer's groups to prune get an L2 penalty of their own that grows until they are next to zero; then training goes on for
a while, and they are removed. GReg1 chooses the groups beforehand by magnitude. GReg2 first raises the penalty of all:
the weights separate by the curvature of the loss, and the small ones are chosen then.

A group's score is its mean |w|. Penalties are float32 running sums: 0.1 added ten times passes 1.0. All groups of a layer
that are treated alike have the same penalty, so two numbers a layer are enough, and only the ratio of kept to pruned
magnitude asks the device for anything, once in update_reg_interval iterations.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from caffe_compat.proto import enum_name

from ..state import LayerState
from .base import METHODS, PruneMethod, least, seed_of, units, written

if TYPE_CHECKING:
    from ..config import PruneConfig
    from ..pruner import Pruner

_f = np.float32
#: How much of the ratio of magnitudes is remembered at each update.
MEMORY = 0.9


class GReg(PruneMethod):
    """What both share; settings: GRegParameter.

    Of each layer in `pruner.pruned`:  `chosen` (groups,) bool, the groups to prune, None until they are picked;
    `pushed` the penalty of those (of all groups until then), `held` of the others; `ratio` the smoothed mean score of the
    kept by that of the chosen, None before there is one; `finished` whether its penalty grows no more.
    """

    units = units("Row", "Col", "Channel", "Spatial", "Weight")
    settings = "greg_param"
    coupled = "SKIP"
    fresh_momentum = True

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        for name in ("update_reg_interval", "reg_upper_limit", "reg_granularity_prune"):
            if getattr(self.param, name) <= 0:
                self.fail(f"greg_param {name} is {getattr(self.param, name):g}, expected more than 0")
        if self.param.lr_prune < 0:
            self.fail(f"greg_param lr_prune is {self.param.lr_prune:g}, expected a learning rate, or 0 to follow lr_policy")

    @property
    def rate(self) -> float | None:
        return self.param.lr_prune or None

    @classmethod
    def count(cls, groups: int, ratio: np.float32, param: Any = None) -> int:
        """min(ceil(ratio n), n - 1), the product in double precision."""
        return min(math.ceil(written(ratio) * groups), groups - 1)

    def bind(self, pruner: Pruner) -> None:
        super().bind(pruner)
        number = len(pruner.pruned)
        self.chosen: list[Tensor | None] = [None] * number
        self.pushed, self.held = [_f(0)] * number, [_f(0)] * number
        self.ratio: list[float | None] = [None] * number
        self.finished = [False] * number
        self.stabilize_from: int | None = None
        self._penalties: list[Tensor | None] = [None] * number

    # -- one iteration ------------------------------------------------------------------------------------------------

    def gradients_ready(self, iteration: int) -> None:
        if self.param.block_loss_grad:
            for layer in self.pruner.layers:
                if layer.weight.grad is not None:
                    layer.weight.grad.zero_()

    def regularize(self, iteration: int) -> None:
        """gradient += penalty * w, the penalty being this iteration's."""
        if self.stabilize_from is None and iteration % self.param.update_reg_interval == 0:
            self._update(iteration)
        for layer, place in zip(self.pruner.pruned, range(len(self.finished))):
            weight, grad = layer.weight.tensor, layer.weight.grad
            if grad is not None:
                if self._penalties[place] is None:
                    self._penalties[place] = self.unit.spread(layer.layout, self.penalty(layer), weight)
                grad.addcmul_(weight, self._penalties[place])

    def updated(self, iteration: int) -> None:
        if self.stabilize_from is None or iteration - self.stabilize_from < self.param.stabilize_reg_interval:
            return
        self.pruner.say(f"iter {iteration}: the groups that were pushed to zero are removed")
        for layer, chosen in zip(self.pruner.pruned, self.chosen):
            self.pruner.prune(layer, chosen)
        self.pruner.finish()

    def penalty(self, layer: LayerState) -> Tensor:
        """The penalty of each group in the gradient, (groups,)."""
        i, like = layer.table_index, layer.weight.tensor
        pushed = like.new_tensor(self.pushed[i])
        if self.chosen[i] is None:
            return pushed.expand(self.unit.size(layer.layout))
        return torch.where(self.chosen[i], pushed, like.new_tensor(self.held[i]))

    # -- an update of penalties ---------------------------------------------------------------------------------------

    def _update(self, iteration: int) -> None:
        going_on = [layer for layer in self.pruner.pruned if not self.finished[layer.table_index]]
        scores = self._scores()
        ratios = self._ratios(going_on, scores)
        for layer in going_on:
            i = layer.table_index
            if ratios is not None:
                fresh, before = ratios[i], self.ratio[i]
                self.ratio[i] = fresh if before is None else MEMORY * before + (1 - MEMORY) * fresh
            self._grow(layer, scores[i], iteration)
            self._penalties[i] = None
            if self._is_finished(layer):
                self.finished[i] = True
                self.pruner.say(f"iter {iteration}: {layer.name} is pushed, penalty {self.pushed[i]:g}"
                                + (f", kept/pruned magnitude {self.ratio[i]:.4g}" if self.ratio[i] is not None else ""))
        if all(self.finished):
            self.stabilize_from = iteration
            self.pruner.say(f"iter {iteration}: all layers are pushed, {self.param.stabilize_reg_interval} more iterations "
                            "before the groups are removed")

    def _scores(self) -> list[Tensor]:
        scores = [self.unit.totals(layer.layout, layer.weight.tensor, torch.abs) / self.unit.weights(layer.layout)
                  for layer in self.pruner.pruned]
        return self.pruner.mean_over_ties(scores)

    def _ratios(self, layers: list[LayerState], scores: list[Tensor]) -> dict[int, float] | None:
        """Mean score of the kept by that of the pruned, by layer; None for single weights, where it is no criterion."""
        if self.unit.plural == "weights" or not layers:
            return None
        means = []
        for layer in layers:
            i = layer.table_index
            score, count = scores[i], self.pruner.count(layer)
            chosen = self.chosen[i] if self.chosen[i] is not None else least(score, count)
            kept, pruned = score.masked_fill(chosen, 0).sum(), score.masked_fill(~chosen, 0).sum()
            means.append((kept / (len(score) - count)) / (pruned / count))
        return dict(zip((layer.table_index for layer in layers), torch.stack(means).tolist()))

    def _grow(self, layer: LayerState, score: Tensor, iteration: int) -> None:
        raise NotImplementedError

    def _is_finished(self, layer: LayerState) -> bool:
        raise NotImplementedError

    def _over_limit(self, i: int) -> bool:
        return bool(self.pushed[i] > _f(self.param.reg_upper_limit))

    # -- what is kept and shown ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        masks = {f"chosen{i}": chosen for i, chosen in enumerate(self.chosen) if chosen is not None}
        return {**masks, "pushed": [float(value) for value in self.pushed], "held": [float(value) for value in self.held],
                "ratio": self.ratio, "finished": self.finished, "stabilize_from": self.stabilize_from}

    def load_state(self, state: dict[str, Any]) -> None:
        number = len(self.finished)
        self.chosen = [state[f"chosen{i}"].to(self.pruner.device) if f"chosen{i}" in state else None for i in range(number)]
        self.pushed, self.held = ([_f(value) for value in state[name]] for name in ("pushed", "held"))
        self.ratio, self.finished, self.stabilize_from = state["ratio"], state["finished"], state["stabilize_from"]
        self._penalties = [None] * number

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        totals = self.unit.totals(layer.layout, layer.weight.tensor.detach(), torch.abs)
        return {"punish": self.penalty(layer), "score": totals / self.unit.weights(layer.layout)}


@METHODS.add("GReg1")
class GReg1(GReg):
    """The groups are chosen once, at the start: those of the least scores (pick_pruned: or the largest, or any). A layer's
    ratio ends its growth only when all layers' are there together; with the default limit it is reg_upper_limit that
    does."""

    def begin(self) -> None:
        generator = torch.Generator().manual_seed(seed_of(self.param.seed, self.config))
        pick = enum_name(self.param, "pick_pruned")
        scores = self._scores()
        if pick == "RAND":
            scores = self.pruner.mean_over_ties([torch.rand(len(score), generator=generator).to(score) for score in scores])
        for layer, score in zip(self.pruner.pruned, scores):
            self.chosen[layer.table_index] = least(-score if pick == "MAX" else score, self.pruner.count(layer))

    def _grow(self, layer: LayerState, score: Tensor, iteration: int) -> None:
        self.pushed[layer.table_index] += _f(self.param.reg_granularity_prune)

    def _is_finished(self, layer: LayerState) -> bool:
        ratios = [ratio for ratio in self.ratio if ratio is not None]  # of layers still to come: the last update's
        reached = bool(ratios) and all(ratio >= self.param.mag_ratio_limit for ratio in ratios)
        return reached or self._over_limit(layer.table_index)


@METHODS.add("GReg2")
class GReg2(GReg):
    """The penalty of all groups of all layers grows to reg_upper_limit_pick; then those of the least scores are chosen and
    pushed on from there, and the others get reg_granularity_recover, a negative penalty, for good. A layer whose ratio is
    there in the very update that picks is finished at once: then its kept groups keep the penalty of the first phase."""

    def _grow(self, layer: LayerState, score: Tensor, iteration: int) -> None:
        i = layer.table_index
        if self.chosen[i] is not None:
            self.pushed[i] += _f(self.param.reg_granularity_prune)
            self.held[i] = _f(self.param.reg_granularity_recover)
            return
        self.pushed[i] += _f(self.param.reg_granularity_pick)
        if self.pushed[i] >= _f(self.param.reg_upper_limit_pick):
            self.chosen[i] = least(score, self.pruner.count(layer))
            self.held[i] = self.pushed[i]
            self.pruner.say(f"iter {iteration}: {layer.name} has picked the {self.pruner.count(layer)} groups to prune")

    def _is_finished(self, layer: LayerState) -> bool:
        i = layer.table_index
        if self.chosen[i] is None:
            return False
        return (self.ratio[i] is not None and self.ratio[i] >= self.param.mag_ratio_limit) or self._over_limit(i)
