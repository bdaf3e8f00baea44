"""`SFP`, `ASFP`, `SRFP`, `ASRFP`: soft filter pruning (He et al., IJCAI 2018 and IEEE Trans. Cybernetics 2019; Cai et al.,
ICPR 2020, arXiv 2010.09498).

At the end of an epoch the groups of the least L2 norm in each layer are set to zero (SRFP: made smaller), but go on being
trained and may come back; those chosen at the last epoch's end are removed. Nothing happens in between. Only
Convolutions' and InnerProducts' weights are touched: neither biases, nor momentum, nor the BatchNorm behind them.

The authors' `rate` is the share kept, 1 - prune_ratio. SFP follows their code; of the others there is none, and their
papers rule.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from caffe_compat.proto import enum_name

from ..state import LayerState
from .base import METHODS, PruneMethod, least, units, written

if TYPE_CHECKING:
    from ..config import PruneConfig


class SoftPruning(PruneMethod):
    """What the four share; settings: SoftPruneParameter. `d` is the number of epochs done.

    share(d) of prune_ratio is chosen, and multiplied by factor(d).
    """

    units = units("Row", "Col", "Channel", "Spatial", "Weight")
    settings = "soft_prune_param"
    zeros_are_pruned = False

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        for name in ("epochs", "epoch_prune"):
            if getattr(self.param, name) < 1:
                self.fail(f"soft_prune_param {name} is 0, expected 1 or more")
        if not 0 < self.param.decay_begin <= 1:
            self.fail(f"soft_prune_param decay_begin is {self.param.decay_begin:g}, expected a factor above 0, 1 at most")

    @property
    def epoch(self) -> int:
        """Iterations of an epoch."""
        return self.param.epoch or self._once_through

    @cached_property
    def _once_through(self) -> int:
        """The iterations that read the training data once."""
        found = self.pruner.iterations_per_epoch()
        if found is None:
            self.fail("soft_prune_param needs epoch, the number of iterations of an epoch: the training net has no layer "
                      "that tells how much data there is")
        return found

    @classmethod
    def count(cls, groups: int, ratio: np.float32, param: Any = None) -> int:
        """int(n * (1 - (1 - prune_ratio))) in double precision, as the authors: 1 of 10 at 0.2; without `truncate` the floor
        of the exact product, 2."""
        pruned = written(ratio)
        if param is not None and not param.truncate:
            return math.floor(Fraction(str(pruned)) * groups)
        return int(groups * (1 - float(f"{1 - pruned:.7g}")))

    def share(self, done: int) -> float:
        """The share of the groups to prune that is chosen after `done` epochs, 0 to 1."""
        return 1.0

    def factor(self, done: int) -> float:
        """What they are multiplied by, 0 after the last epoch."""
        return 0.0

    # -- events -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.param.prune_first:
            self._soften(0)

    def updated(self, iteration: int) -> None:
        if (iteration + 1) % self.epoch:
            return
        done, last = (iteration + 1) // self.epoch, self.param.epochs
        if done >= last:
            for layer, norm in zip(self.pruner.pruned, self._norms()):
                self.pruner.prune(layer, least(norm, self.pruner.count(layer)))
            self.pruner.say(f"epoch {done}: the groups chosen last are removed")
            self.pruner.finish()
        elif (done - 1) % self.param.epoch_prune == 0:
            self._soften(done)

    def _soften(self, done: int) -> None:
        factor = self.factor(done)
        for layer, norm in zip(self.pruner.pruned, self._norms()):
            chosen = least(norm, self._count(layer, done))
            factors = torch.where(chosen, factor, 1.0).to(norm)
            layer.weight.tensor.mul_(self.unit.spread(layer.layout, factors, layer.weight.tensor))

    def _count(self, layer: LayerState, done: int) -> int:
        share = self.share(done)
        if share >= 1:
            return self.pruner.count(layer)
        return min(math.floor(written(layer.ratio) * share * self.unit.size(layer.layout)), self.pruner.count(layer))

    def _norms(self) -> list[Tensor]:
        sums = [self.unit.totals(layer.layout, layer.weight.tensor, torch.square) for layer in self.pruner.pruned]
        return self.pruner.mean_over_ties([total.sqrt() for total in sums])

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        """The L2 norm, after which groups are chosen."""
        return {"score": self.unit.totals(layer.layout, layer.weight.tensor.detach(), torch.square).sqrt()}


def asymptotic(progress: float) -> float:
    """b (1 - exp(-k t)) through (0, 0), (1/8, 3/4) and (1, 1): how the pruned share grows in ASFP, t being the share of the
    epochs done."""
    return (1 - EIGHTH ** (8 * progress)) / (1 - EIGHTH**8)


def _eighth() -> float:
    """x = exp(-k / 8), of (1 - x) / (1 - x^8) = 3/4, by Newton's method on 1 + x + ... + x^7 = 4/3."""
    x = 0.25
    for _ in range(20):
        x -= (sum(x**n for n in range(8)) - 4 / 3) / sum(n * x ** (n - 1) for n in range(1, 8))
    return x


EIGHTH = _eighth()
#: How the factor of SRFP falls, by SoftPruneParameter.decay: from 1 to 0 as the share of the epochs done grows to 1.
DECAYS = {
    "EXPONENTIAL": lambda t: 1 - asymptotic(t),
    "LINEAR": lambda t: 1 - t,
    "COSINE": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@METHODS.add("SFP")
class SFP(SoftPruning):
    """All groups to prune are set to zero from the first time on."""


class Asymptotic(SoftPruning):
    """The share of the groups to prune grows with the epochs from 0 to 1, see `asymptotic`."""

    def share(self, done: int) -> float:
        return asymptotic(done / self.param.epochs)


class Softer(SoftPruning):
    """Groups are multiplied by a factor that falls with the epochs from decay_begin to 0. (The paper asks for no more than
    that it falls; its constants are not public. Ours is the mirror image of ASFP's curve.)"""

    def factor(self, done: int) -> float:
        progress = min(done / self.param.epochs, 1)
        return self.param.decay_begin * max(0.0, DECAYS[enum_name(self.param, "decay")](progress))


@METHODS.add("ASFP")
class ASFP(Asymptotic):
    """SFP with a growing share."""


@METHODS.add("SRFP")
class SRFP(Softer):
    """SFP with a falling factor in place of zero."""


@METHODS.add("ASRFP")
class ASRFP(Asymptotic, Softer):
    """Both."""
