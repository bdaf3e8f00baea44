"""`AFP`: auto-balanced filter pruning (Ding et al., AAAI 2018), as the paper has it; the reference's release of it cannot run.

Groups to prune are punished, groups to keep are encouraged by a negative penalty, and the two are balanced in every
iteration so that they cancel out over the layer:

    lambda = 1 + ln(theta / M)  for M <= theta,    -1 - ln(M / theta)  for M > theta

M is a group's L1 norm when pruning begins, theta that of the group ranked ceil(prune_ratio n)-th from below. A group's
penalty is lambda alpha where lambda > 0, and lambda tau where it is negative, with tau = -alpha S+ / S-, the S being the
sums of lambda w^2 over the weights of either kind: S- is negative, so tau is positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..state import LayerState
from .base import METHODS, PruneMethod, least, units

if TYPE_CHECKING:
    from ..config import PruneConfig
    from ..pruner import Pruner

#: The least norm that a logarithm is taken of.
TINY = 1e-12


@METHODS.add("AFP")
class AFP(PruneMethod):
    """Settings: AFPParameter. After prune_iter iterations (half of max_iter) the groups of the least L1 norm are removed."""

    units = units("Row", "Col", "Channel", "Spatial")
    settings = "afp_param"

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        if self.param.alpha <= 0:
            self.fail(f"afp_param alpha, the unit of the penalties, is {self.param.alpha:g}, expected more than 0")

    def bind(self, pruner: Pruner) -> None:
        super().bind(pruner)
        self.factors: list[Tensor] = []

    def begin(self) -> None:
        """Fixes lambda, one vector for each layer."""
        self.factors = [lambdas(norms, self.pruner.count(layer)) for layer, norms in zip(self.pruner.pruned, self._norms())]

    def regularize(self, iteration: int) -> None:
        for layer, factor in zip(self.pruner.pruned, self.factors):
            weight, grad = layer.weight.tensor, layer.weight.grad
            if grad is not None:
                grad.addcmul_(weight, self.unit.spread(layer.layout, self._penalty(layer, factor), weight))

    def updated(self, iteration: int) -> None:
        if iteration + 1 < (self.param.prune_iter or self.config.max_iter // 2):
            return
        for layer, norms in zip(self.pruner.pruned, self._norms()):
            self.pruner.prune(layer, least(norms, self.pruner.count(layer)))
        self.pruner.finish()

    def _norms(self) -> list[Tensor]:
        norms = [self.unit.totals(layer.layout, layer.weight.tensor, torch.abs) for layer in self.pruner.pruned]
        return self.pruner.mean_over_ties(norms)

    def _penalty(self, layer: LayerState, factor: Tensor) -> Tensor:
        squares = self.unit.totals(layer.layout, layer.weight.tensor.detach(), torch.square)
        return balanced(factor, squares, self.param.alpha)

    def state(self) -> dict[str, Any]:
        return {f"lambda{i}": factor for i, factor in enumerate(self.factors)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.factors = [state[f"lambda{i}"].to(self.pruner.device) for i in range(len(state))]

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        norms = self.unit.totals(layer.layout, layer.weight.tensor.detach(), torch.abs)
        if not self.factors:
            return {"score": norms}
        return {"punish": self._penalty(layer, self.factors[layer.table_index]).detach(), "score": norms}


def lambdas(norms: Tensor, count: int) -> Tensor:
    """lambda of groups of these L1 norms, the `count` least of which are to be pruned."""
    logs = norms.clamp(min=TINY).log()
    chosen = least(norms, count)
    theta = logs[chosen].max()
    return torch.where(chosen, 1 + theta - logs, -1 - logs + theta)


def balanced(factor: Tensor, squares: Tensor, alpha: float) -> Tensor:
    """The penalties of groups of which `factor` is lambda and `squares` the sum of w^2."""
    sums = factor * squares
    tau = -alpha * sums.clamp(min=0).sum() / sums.clamp(max=0).sum().clamp(max=-TINY)
    return factor * torch.where(factor > 0, alpha, tau)
