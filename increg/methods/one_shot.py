"""`L1`, `L2`, `Random`, `Largest`: groups pruned at once, by what they are before; retraining does the rest.

The baselines that keep every other method honest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sums import Function
from .base import METHODS, PruneMethod, least, seed_of, units


class OneShot(PruneMethod):
    """Prunes the groups of the least score before iteration `one_shot_param { iter }`.

    A layer loses ceil(prune_ratio n) of its n groups, one left at least (least_groups).
    """

    units = units("Row", "Col", "Channel", "Spatial", "Weight")
    settings = "one_shot_param"
    coupled = "TOGETHER"

    def scores(self) -> list[Tensor]:
        """One vector for each layer with a ratio, shape (groups,): the least go."""
        raise NotImplementedError

    def likely(self) -> list[Tensor]:
        return self.scores()

    def before_forward(self, iteration: int) -> None:
        if iteration < self.param.iter:
            return
        scores = self.pruner.mean_over_ties(self.scores())
        for layer, score in zip(self.pruner.pruned, scores):
            self.pruner.prune(layer, least(score, self.pruner.count(layer)))
        self.pruner.finish()

    def _totals(self, function: Function) -> list[Tensor]:
        return [self.unit.totals(layer.layout, layer.weight.tensor, function) for layer in self.pruner.pruned]


@METHODS.add("L1")
class L1(OneShot):
    """score = sum |w| of the group."""

    def scores(self) -> list[Tensor]:
        return self._totals(torch.abs)


@METHODS.add("L2")
class L2(OneShot):
    """score = sqrt(sum w^2) of the group."""

    def scores(self) -> list[Tensor]:
        return [total.sqrt() for total in self._totals(torch.square)]


@METHODS.add("Largest")
class Largest(OneShot):
    """The groups of the largest L1 norm go first: what is lost if magnitude means anything."""

    def scores(self) -> list[Tensor]:
        return [-total for total in self._totals(torch.abs)]


@METHODS.add("Random")
class Random(OneShot):
    """Any groups, by the seed of one_shot_param, or else of the solver; the same on every device."""

    def scores(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed_of(self.param.seed, self.config))
        return [torch.rand(self.unit.size(layer.layout), generator=generator).to(self.pruner.device)
                for layer in self.pruner.pruned]
