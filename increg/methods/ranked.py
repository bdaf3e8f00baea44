"""Filters pruned in rounds by an importance estimator, ranked over the whole net: what OrthoReg is compared with.

As in its authors' code (arXiv 2009.05014): each round estimates every filter left, protects some of each layer, and prunes
a share of all that are left; the shares of the rounds are such that prune_ratio (over all layers that have one, the mean
by filters) is gone after the last. With prune_target, which theirs does not have, the rounds prune until that is met.
Between rounds the net trains. In theirs the filters are cut out; here they and what reads them are zero, which is the same
to the estimators.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from caffe_compat.errors import SolverError

from .. import filters, ranking
from ..importance import ESTIMATORS
from ..state import LayerState
from ..statistics import STATISTICS, Head
from ..ties import is_depthwise, together
from .base import METHODS, PruneMethod, units, written

if TYPE_CHECKING:
    from ..config import PruneConfig
    from ..pruner import Pruner

log = logging.getLogger(__name__)


class Ranked(PruneMethod):
    """`estimator` is an entry of `importance.ESTIMATORS`. Layers whose rows go together count once, with the mean of their
    importances, those of depthwise convolutions left out (as in the authors' MobileNet)."""

    units = units("Row")
    settings = "rank_param"
    coupled = "TOGETHER"
    chooses_ratios = True
    zeros_are_pruned = False
    estimator: ClassVar[str]

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        self.rank: Any = self._rank_settings()
        self._estimator = ESTIMATORS.get(self._estimator_name())
        self.thresholds = [written(share) for share in self.rank.thresholds]
        if self.rank.rounds < 1:
            self.fail(f"rank_param: rounds is {self.rank.rounds}, expected 1 or more")
        if max(self.rank.rounds, len(self.thresholds)) > 1 and self.rank.interval < 1:
            self.fail("rank_param: several rounds need an interval, the iterations from one to the next; found 0")
        if any(not last < share < 1 for last, share in zip([0.0, *self.thresholds], self.thresholds)):
            self.fail(f"rank_param: thresholds are {', '.join(f'{share:g}' for share in self.thresholds)}, expected rising "
                      "shares of all filters, between 0 and 1")
        if self.thresholds and config.target is not None:
            self.fail("rank_param: thresholds and prune_target both say how many filters go; leave one of them out")
        if not 0 <= self.rank.protect_share < 1:
            self.fail(f"rank_param: protect_share is {self.rank.protect_share:g}, expected 0 <= protect_share < 1")
        if self.rank.temperature <= 0:
            self.fail(f"rank_param: temperature is {self.rank.temperature:g}, expected more than 0")
        self.ratios: list[float] = []
        self.done = self.steps = 0

    def _rank_settings(self) -> Any:
        return self.param

    def _estimator_name(self) -> str:
        return self.estimator

    def bind(self, pruner: Pruner) -> None:
        """Finds parameters, and refuses nets that the estimator cannot judge."""
        super().bind(pruner)
        self.places = filters.places(pruner.net, pruner.pruned)
        self.groups = together(pruner.pruned, pruner.ties)
        self._layers = {layer.name: layer for layer in pruner.pruned}
        #: What every filter was worth when it was last judged.
        self._scores = {layer.name: torch.zeros(layer.layout.rows, device=pruner.device) for layer in pruner.pruned}
        without = [layer for layer, place in zip(pruner.pruned, self.places) if place.scale is None]
        if self._estimator.needs_scale and without:
            raise SolverError(f"{without[0].where}: {self.config.name} judges filters by the Scale behind the layer's "
                              "BatchNorm, and this layer has none; set its prune_ratio to 0, or prune by another method")
        if self._estimator.statistic in ("curvature", "sensitivity"):
            Head(pruner.net)
        self.ratios = (ranking.threshold_ratios(self.thresholds) if self.thresholds
                       else ranking.round_ratios(self._total(), self.rank.rounds))

    def _total(self) -> float:
        """The share of all filters to prune: the mean of the ratios; one that all have to the last bit."""
        ratios = {written(group[0].ratio) for group in self.groups}
        if len(ratios) == 1:
            return ratios.pop()
        sizes = [group[0].layout.rows for group in self.groups]
        return sum(written(group[0].ratio) * size for group, size in zip(self.groups, sizes)) / sum(sizes)

    def next_round(self) -> int | None:
        """How many iterations after the first one the next round comes, None after the last."""
        return self.rank.iter + self.done * self.rank.interval if self.done < len(self.ratios) else None

    def before_forward(self, iteration: int) -> None:
        following = self.next_round()
        if following is not None and self.steps >= following:
            self._round()
            if self.done == len(self.ratios):
                self.pruner.finish()
        self.steps += 1

    def _round(self) -> None:
        importances = self.importances()
        left, ratio = sum(map(len, importances)), self.ratios[self.done]
        protected = [self._protect(values, group[0]) for values, group in zip(importances, self.groups)]
        keep = self.config.least_groups
        if self.rank.per_layer:
            chosen = [ranking.least([values], ranking.count_to_prune(ratio, len(values)), keep)[0] for values in protected]
        elif self.config.target is None:
            chosen = ranking.least(protected, ranking.count_to_prune(ratio, left), keep)
        else:
            count = self.pruner.count_for_target(lambda count: self._rows(ranking.least(protected, count, keep)), left,
                                                 (self.done + 1) / len(self.ratios))
            chosen = ranking.least(protected, count, keep)
        for name, rows in self._rows(chosen).items():
            self.pruner.prune(self._layers[name], rows)
        self.done += 1
        log.info("%s, round %d of %d: %d of %d filters pruned", self.config.name, self.done, len(self.ratios),
                 sum(int(part.sum()) for part in chosen), left)

    def _rows(self, chosen: Sequence[Tensor]) -> dict[str, Tensor]:
        """The rows (bool) of every layer that are among its group's `chosen` (bool, of the filters left)."""
        found = {}
        for group, part in zip(self.groups, chosen):
            rows = torch.zeros_like(group[0].masks.rows)
            rows[~group[0].masks.rows] = part
            found.update(dict.fromkeys((layer.name for layer in group), rows))
        return found

    def _protect(self, importance: Tensor, layer: LayerState) -> Tensor:
        if self.rank.protect == self.rank.NONE:
            return importance
        return ranking.protect(importance, layer.layout.rows, written(self.rank.protect_share),
                               self.rank.protect == self.rank.BY_NUMBER)

    def importances(self) -> list[Tensor]:
        """Of the filters left of each of `groups`."""
        net, statistic = self.pruner.net, None
        if self._estimator.statistic:
            statistic = STATISTICS.get(self._estimator.statistic)(net, self.rank.samples, self.rank.temperature)
        own = [learnable.blob.tensor.detach() for learnable in net.learnable]
        found = [self._estimator(filters.cut(layer, place, own),
                                 None if statistic is None else filters.cut(layer, place, statistic))
                 for layer, place in zip(self.pruner.pruned, self.places)]
        for layer, values in zip(self.pruner.pruned, found):
            self._scores[layer.name][~layer.masks.rows] = values
        judged = [[layer for layer in group if not is_depthwise(layer)] or group for group in self.groups]
        return [torch.stack([found[layer.table_index] for layer in group]).mean(0) for group in judged]

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "steps": self.steps} | {f"score/{name}": scores for name, scores in self._scores.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.done, self.steps = state["done"], state["steps"]
        for name, scores in self._scores.items():
            scores.copy_(state[f"score/{name}"])

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        return {"score": self._scores[layer.name]}


@METHODS.add("GlobalL1")
class GlobalL1(Ranked):
    """The filters' L1 norms, compared over the whole net."""

    estimator = "L1"


@METHODS.add("GlobalL2")
class GlobalL2(Ranked):
    """The filters' L2 norms, compared over the whole net."""

    estimator = "L2"


@METHODS.add("BNScale")
class BNScale(Ranked):
    """The scale behind batch normalization (Liu et al., ICCV 2017), by the filter's columns unless told not to."""

    estimator = "BNScale"

    def _estimator_name(self) -> str:
        return "BNScale" if self.rank.by_columns else "PlainBNScale"


@METHODS.add("Taylor")
class Taylor(Ranked):
    """What the loss changes by, to first order, without a channel (Molchanov et al., ICLR 2017)."""

    estimator = "Taylor"


@METHODS.add("Fisher")
class Fisher(Ranked):
    """The same from the filter's own parameters (after Theis et al., arXiv 1801.05787)."""

    estimator = "Fisher"


@METHODS.add("GraSP")
class GraSP(Ranked):
    """What the flow of gradients loses without a filter (Wang et al., ICLR 2020)."""

    estimator = "GraSP"


@METHODS.add("RD")
class RD(Ranked):
    """How far the output's distribution moves with a filter (Gao et al., ICML 2019)."""

    estimator = "RD"
