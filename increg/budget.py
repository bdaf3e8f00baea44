"""What a net costs before and after pruning: multiply-adds, parameters, and the two ratios that pruning aims at.

The only place where costs are counted. A layer's cost is that of its weights: biases are never pruned and not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .state import LayerState


@dataclass(frozen=True)
class Budget:
    """Multiply-adds for one image and weights, `*_left` after pruning, of the layers counted.

    `speedup` and `compression` are the reference's `speedup` and `compRatio`; 1 where no layer is counted.
    """

    operations: int
    operations_left: float
    weights: int
    weights_left: float

    @property
    def speedup(self) -> float:
        """Multiply-adds before by multiply-adds after; infinite when nothing is left."""
        return _ratio(self.operations, self.operations_left)

    @property
    def compression(self) -> float:
        """Weights before by weights after; infinite when nothing is left."""
        return _ratio(self.weights, self.weights_left)


def measure(layers: Iterable[LayerState], *, speedup_counts_fc: bool = False, compression_counts_conv: bool = False) -> Budget:
    """The budget of `layers`: operations of Convolutions (of all with `speedup_counts_fc`), weights of InnerProducts
    (of all with `compression_counts_conv`): IF_speedup_count_fc, IF_compr_count_conv.

    A layer keeps 1 - pruned_ratio of its weights, each used once for every pixel of its top.
    """
    operations, operations_left, weights, weights_left = 0, 0.0, 0, 0.0
    for layer in layers:
        count = layer.layout.rows * layer.layout.columns
        kept = 1 - float(layer.pruned_ratio)
        if layer.is_conv or speedup_counts_fc:
            operations += count * layer.outputs
            operations_left += count * layer.outputs * kept
        if not layer.is_conv or compression_counts_conv:
            weights += count
            weights_left += count * kept
    return Budget(operations, operations_left, weights, weights_left)


def _ratio(before: float, after: float) -> float:
    if after > 0:
        return before / after
    return float("inf") if before else 1.0
