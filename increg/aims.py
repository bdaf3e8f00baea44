"""What a stage aims at: the ceiling of punishments and the ratio to prune, by the increase that accuracy allows.

All in float32, as in the reference; `incre_pr` in its lines is the increase.
"""

from __future__ import annotations

import math

import numpy as np

from .config import PruneConfig
from .state import LayerState

_f = np.float32
#: Mean increase of the pruned ratio that the first stage is for, and the sparsity for which prune_ratio_step is given.
FIRST_INCREASE, STANDARD_SPARSITY = _f(0.2), _f(0.5)
#: The least and the largest increase; what one unit of accuracy to spare is worth in it.
LEAST_INCREASE, LARGEST_INCREASE, INCREASE_PER_ACCURACY = _f(0.01), _f(0.2), _f(10)
#: The increase at which the ceiling is target_reg itself, its multiplier at LEAST_INCREASE, and its limit.
STANDARD_INCREASE, LEAST_MULTIPLIER, HIGHEST_CEILING = _f(0.05), _f(0.25), _f(10)


def ceiling(target_reg: float, increase: np.float32) -> np.float32:
    """The punishment at which groups are pruned, in a stage that increases the pruned ratio by `increase`: target_reg by
    1 + 3 (sigmoid(k (increase - 0.05)) - 1/2), with k such that it is 0.25 at an increase of 0.01; at most 10."""
    low = _f(float((LEAST_MULTIPLIER - _f(1)) / _f(3)) + 0.5)
    slope = _f(math.log(_f(1) / low - _f(1))) / (STANDARD_INCREASE - LEAST_INCREASE)
    sigmoid = _f(1) / (_f(1) + _f(math.exp(-slope * (increase - STANDARD_INCREASE))))
    return min(_f(target_reg) * _f(3 * (float(sigmoid) - 0.5) + 1), HIGHEST_CEILING)


def first_ratio(config: PruneConfig, layer: LayerState) -> np.float32:
    """What the first stage aims at: prune_ratio, or only so far if stages follow."""
    if not config.staged:
        return layer.ratio
    return min(layer.ratio_step * FIRST_INCREASE / STANDARD_SPARSITY, layer.ratio)


def next_ratio(layer: LayerState, increase: np.float32) -> np.float32:
    """What the next stage aims at, from what the last good one reached, which may be more."""
    return min(layer.last_feasible + increase / STANDARD_SPARSITY * layer.ratio_step, layer.ratio)


def increase_for(spare: np.float32) -> np.float32:
    """The increase that an accuracy of `spare` above the borderline allows."""
    return min(max(LEAST_INCREASE, spare * INCREASE_PER_ACCURACY), LARGEST_INCREASE)
