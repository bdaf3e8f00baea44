"""Ranking filters over a whole net, and pruning in rounds, as OrthoReg's authors do (arXiv 2009.05014).

Rounds are uneven: 50 % in two rounds takes 1/3 of the filters, then 1/4 of those left. Ratios are doubles, computed in
the form of the authors' code, for int(ratio * filters) changes with their last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: What protected filters count, in the authors' code.
PROTECTED = 1e7


def round_ratios(total: float, rounds: int) -> list[float]:
    """The share of the filters left that each of `rounds` rounds prunes, for `total` of them in all:
    total / (k total + rounds (1 - total)), k = 1..rounds."""
    return [total / (k * total + rounds * (1 - total)) for k in range(1, rounds + 1)]


def threshold_ratios(thresholds: Sequence[float]) -> list[float]:
    """The same for given shares of the original filters pruned after each round, rising."""
    before = (0.0, *thresholds)
    return [(now - last) / (1 - last) for last, now in zip(before, thresholds)]


def count_to_prune(ratio: float, filters: int) -> int:
    """How many of `filters` filters a round of `ratio` prunes."""
    return int(ratio * 100 / 100 * filters)  # through percent and back, as in the authors' code


def protect(importance: Tensor, originals: int, share: float = 0.05, by_number: bool = True) -> Tensor:
    """The importance (filters left,) of one layer with int(share * originals) + 1 filters made safe; a copy.

    By number the last ones are, however unimportant, as in the authors' code; else the most important ones.
    """
    count = min(int(share * originals) + 1, len(importance))
    safe = torch.arange(len(importance) - count, len(importance)) if by_number else importance.topk(count).indices
    return importance.index_fill(0, safe.to(importance.device), PROTECTED)


def least(importances: Sequence[Tensor], count: int, keep: int = 1) -> list[Tensor]:
    """For each layer, which filters (bool) are among the `count` least important of all layers'; of equals the first.

    Every layer keeps `keep` filters, or all if it has no more: its most important ones come back where too few would stay.
    """
    sizes = [len(values) for values in importances]
    everything = torch.cat(list(importances))
    chosen = torch.zeros_like(everything, dtype=torch.bool)
    chosen[everything.argsort(stable=True)[:count]] = True
    parts = list(chosen.split(sizes))
    for part, values in zip(parts, importances):
        best = values.argsort(descending=True, stable=True)[:keep]
        part[best] &= (~part).sum() >= min(keep, len(part))
    return parts
