"""`DSA`, differentiable sparsity allocation (Ning et al., ECCV 2020, arXiv 2004.02164): how many filters each layer keeps
is learned together with the weights, within a budget of multiply-adds.

Layers whose rows go together have one keep ratio and one mask, drawn in every iteration from probabilities with that mean
that rise with the filters' importance (`dsa_solve`). The loss's gradient by the mask goes straight through the draw to the
probabilities, and from there to the ratio; `dsa_budget` holds the ratios to the budget: the speedup of prune_target, or
that of the layers' prune_ratios. beta2 rises, so that probabilities harden. At the end each group keeps its most
important filters, as many as the budget allows.

Probabilities, their gradient, importance, the mask's place and the first ratio are those of the authors' code; what is
published neither trains nor keeps a budget. Ours: steps on the ratios themselves, by Adam, not on their logits (which
hardly move at the ends); linearized ADMM and its projection; a budget that falls during the search; the schedule of
beta2; one draw an iteration; that the most probable filter of a group is never masked; and how ratios become whole
numbers within the budget.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffe_compat.errors import SolverError

from .. import filters
from ..state import LayerState
from ..ties import together
from . import dsa_budget, dsa_solve
from .base import METHODS, PruneMethod, least, seed_of, units, written
from .dsa_mask import ActivationMasks, FilterMasks

if TYPE_CHECKING:
    from ..config import PruneConfig
    from ..pruner import Pruner

log = logging.getLogger(__name__)
#: Adam's decay rates and its small number.
ADAM = (0.9, 0.999, 1e-8)
#: How far the loss alone can move a keep ratio in a search, by the default keep_lr.
PATH = 1


@METHODS.add("DSA")
class DSA(PruneMethod):
    """Tables have a row for each group, filters aligned to the left; flat vectors the filters of all layers in order."""

    units = units("Row")
    settings = "dsa_param"
    coupled = "TOGETHER"
    chooses_ratios = True
    zeros_are_pruned = False

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        param = self.param
        for name in ("rho", "beta2_first", "beta2_last", "project_every"):
            if getattr(param, name) <= 0:
                self.fail(f"dsa_param: {name} is {getattr(param, name):g}, expected more than 0")
        if param.keep_lr < 0:
            self.fail(f"dsa_param: keep_lr is {param.keep_lr:g}, expected 0, for one by the number of iterations, or more")
        if not param.least_ratio < param.first_ratio <= 1:
            self.fail(f"dsa_param: first_ratio is {param.first_ratio:g}, expected more than least_ratio, "
                      f"{param.least_ratio:g}, and at most 1")
        if not dsa_solve.FLOOR < param.least_ratio < 1:
            self.fail(f"dsa_param: least_ratio is {param.least_ratio:g}, expected a share above {dsa_solve.FLOOR:g}, the least "
                      "probability there is, and below 1")
        self.iterations = param.iterations or config.max_iter // 2
        if self.iterations < 1:
            self.fail("dsa_param: iterations is 0, and so is half of max_iter; give the length of the search")
        if config.target is not None and not config.target.HasField("speedup"):
            self.fail("prune_target asks for compression; DSA's budget is of multiply-adds: give a speedup instead")
        self.keep_lr = param.keep_lr or PATH / self.iterations
        self.steps = 0

    def bind(self, pruner: Pruner) -> None:
        """Lays out groups and the budget."""
        super().bind(pruner)
        device = pruner.device
        self.groups = together(pruner.pruned, pruner.ties)
        self._layers = [layer for group in self.groups for layer in group]
        places = filters.places(pruner.net, self._layers)
        self._masks = (ActivationMasks if self.param.straight_through else FilterMasks)(pruner.net, self._layers, places)
        self._scales = self._find_scales(dict(zip((layer.index for layer in self._layers), places)))
        self.sizes = [group[0].layout.rows for group in self.groups]
        width, owner = max(self.sizes), [g for g, group in enumerate(self.groups) for _ in group]
        self.real = torch.arange(width, device=device) < torch.tensor(self.sizes, device=device)[:, None]
        self._index = torch.cat([owner[i] * width + torch.arange(layer.layout.rows) for i, layer in
                                 enumerate(self._layers)]).to(device)
        self._leaders = torch.cat([g * width + torch.arange(size) for g, size in enumerate(self.sizes)]).to(device)
        form = dsa_budget.cost(pruner.layers, pruner.coupling, self.groups, counts_fc=self.config.speedup_counts_fc)
        self.form = form.relative().to(device)
        ratios = torch.tensor([1 - written(group[0].ratio) for group in self.groups], device=device)
        target = self.config.target
        self.budget = 1 / target.speedup if target is not None else float(self.form(ratios))
        self._least = torch.tensor([max(written(self.param.least_ratio), self.config.least_groups / size)
                                    for size in self.sizes], device=device)
        self._check_budget()
        self.keep = torch.full((len(self.groups),), written(self.param.first_ratio), device=device)
        self._moments = torch.zeros(2, len(self.groups), device=device)
        self._first_cost = max(self.budget, float(self.form(self.keep)))
        self.copy = self.keep.clone()
        self.multiplier = torch.zeros_like(self.keep)
        self.probability = torch.zeros(self.real.shape, device=device)
        self._generator = torch.Generator().manual_seed(seed_of(self.param.seed, self.config))

    def _find_scales(self, places: dict[int, filters.Places]) -> list[int]:
        """The learnable blobs of the groups' scales, if importance goes by them."""
        if self.param.importance != self.param.BN:
            return []
        found = [places[group[0].index].scale for group in self.groups]
        for group, place in zip(self.groups, found):
            if place is None:
                raise SolverError(f"{group[0].where}: dsa_param asks for the importance BN, and this layer has no BatchNorm "
                                  "with a Scale behind it; set importance: CONV, or the layer's prune_ratio to 0")
        return found

    def _check_budget(self) -> None:
        lowest = float(self.form(self._least))
        if lowest > self.budget:
            asks = "prune_target asks" if self.config.target is not None else "the prune_ratios ask"
            self.fail(f"{asks} for a speedup of {1 / self.budget:g}, and {self.config.name} can reach {1 / lowest:.4g} with "
                      f"least_ratio {self.param.least_ratio:g} and least_groups {self.config.least_groups}; set these lower, "
                      "or give more layers a prune_ratio")

    # -- the search -----------------------------------------------------------------------------------------------------

    @property
    def beta2(self) -> float:
        """How hard probabilities are in this iteration."""
        first, last = self.param.beta2_first, self.param.beta2_last
        progress = min(1.0, self.steps / max(1, self.iterations - 1))
        if self.param.beta2_schedule == self.param.LINEAR:
            return first + (last - first) * progress
        return first * (last / first) ** progress

    @property
    def budget_now(self) -> float:
        """The budget of this iteration: it falls from the first ratios' cost to its end."""
        progress = min(1.0, self.steps / max(1.0, self.param.budget_falls * self.iterations))
        return self._first_cost * (self.budget / self._first_cost) ** progress

    def importances(self) -> Tensor:
        """Of each group's first layer (groups, width), 0 for padding."""
        if self._scales:
            parts = [self.pruner.net.learnable[index].blob.tensor.detach().abs() for index in self._scales]
        else:
            parts = [self.unit.totals(group[0].layout, group[0].weight.tensor.detach(), torch.abs) for group in self.groups]
        table = torch.zeros(self.real.numel(), device=self.real.device)
        return table.index_copy_(0, self._leaders, torch.cat(parts)).view(self.real.shape)

    def before_forward(self, iteration: int) -> None:
        if self.steps >= self.iterations:
            self._harden()
            return
        importance = self.importances()
        self._log_beta1 = dsa_solve.solve(importance, self.keep, self.beta2, self.real)
        self.probability = dsa_solve.probabilities((importance + dsa_solve.EPSILON).log(), self._log_beta1[:, None],
                                                   self.beta2).mul_(self.real)
        self._importance = importance
        drawn = torch.rand(self.real.shape, generator=self._generator).to(self.real.device, non_blocking=True)
        mask = (drawn < self.probability).to(importance.dtype)
        mask.scatter_(1, self.probability.argmax(1, keepdim=True), 1)
        self._masks.put(mask.view(-1)[self._index])

    def gradients_ready(self, iteration: int) -> None:
        if self.steps >= self.iterations:
            return
        by_filter = self._masks.take()
        table = torch.zeros(self.real.numel(), device=self.real.device)
        by_mask = table.index_add_(0, self._index, by_filter).view(self.real.shape)
        slopes = dsa_solve.slopes(self._importance, self._log_beta1, self.beta2, self.real)
        self.steps += 1
        step = self._step((by_mask * slopes).sum(1))
        self.keep = dsa_budget.move(self.keep, step, self.copy, self.multiplier, self.param.rho, self._least)
        if self.steps % self.param.project_every == 0:
            self.copy = dsa_budget.project(self.keep + self.multiplier, self.form, self.budget_now, self._least)
            self.multiplier = self.multiplier + self.keep - self.copy

    def _step(self, grad: Tensor) -> Tensor:
        """Adam's: about keep_lr where the gradient by the keep ratio is steady."""
        first, second, small = ADAM
        mean, square = self._moments
        mean.lerp_(grad, 1 - first)
        square.lerp_(grad.square(), 1 - second)
        scale = (square / (1 - second ** self.steps)).sqrt_().add_(small)
        return (mean / scale).mul_(self.keep_lr / (1 - first ** self.steps))

    def _harden(self) -> None:
        """Prunes all but the most important filters of each group."""
        kept = dsa_budget.whole_filters(self.copy, self.sizes, self.form, self.budget, self.config.least_groups)
        for group, importance, size, keep in zip(self.groups, self.importances(), self.sizes, kept):
            rows = least(importance[:size], size - keep)
            for layer in group:
                self.pruner.prune(layer, rows)
            log.info("DSA keeps %d of %d rows of %s", keep, size, ", ".join(layer.name for layer in group))
        self.pruner.finish()

    # -- what is kept and shown -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "keep": self.keep, "moments": self._moments, "copy": self.copy,
                "multiplier": self.multiplier, "probability": self.probability, "generator": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        device = self.real.device
        self.steps = state["steps"]
        self.keep, self._moments, self.copy, self.multiplier, self.probability = (
            state[name].to(device) for name in ("keep", "moments", "copy", "multiplier", "probability"))
        self._generator.set_state(state["generator"])

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        """score: the filters' probabilities of being kept."""
        row = next(g for g, group in enumerate(self.groups) if layer in group)
        return {"score": self.probability[row, :self.sizes[row]]}
