"""Weight groups: rows, columns, channels, kernel positions and single weights, as tensor operations that fit any memory
format.

A weight is seen as a matrix of rows (the filters of a Convolution, the outputs of an InnerProduct) by columns (one
kernel position of one input channel, one input). A `Unit` says which of its groups a method prunes (`units.py` has
them); `Masks` say what is pruned in a layer: whole rows, columns within each group of a grouped convolution, and single
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a weight of `shape` is a matrix. `group` is ConvolutionParameter's; a `transposed` InnerProduct has its
    outputs along axis 1.

    Row r of a convolution reads the input channels of group r // (rows / group); a column is as many different weights
    as there are rows, and `group` different input channels.
    """

    shape: tuple[int, ...]
    group: int = 1
    transposed: bool = False

    @cached_property
    def rows(self) -> int:
        """Filters or outputs."""
        return self.shape[1 if self.transposed else 0]

    @cached_property
    def columns(self) -> int:
        """Weights in a row."""
        return prod(self.shape) // self.rows

    @cached_property
    def positions(self) -> int:
        """Kernel positions of a channel: 1 for an InnerProduct."""
        return prod(self.shape[2:])

    @cached_property
    def channels(self) -> int:
        """Input channels of one group."""
        return self.columns // self.positions

    def along_rows(self, values: Tensor) -> Tensor:
        """One value a row, shaped to broadcast against the weight."""
        return values.reshape(1, -1) if self.transposed else values.reshape(-1, *(1 for _ in self.shape[1:]))

    def along_columns(self, values: Tensor, like: Tensor) -> Tensor:
        """One value a column, shaped to broadcast against the weight `like`, and in its memory format, which is faster."""
        if self.transposed:
            return values.reshape(-1, 1)
        spread = values.reshape(1, *self.shape[1:])
        return spread if like.is_contiguous() else torch.empty_like(like[:1], requires_grad=False).copy_(spread)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (rows, columns); a copy where its memory format asks for one."""
        return (weight.T if self.transposed else weight).reshape(self.rows, -1)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        return matrix.T.contiguous() if self.transposed else matrix.reshape(self.shape)


class Masks:
    """What is pruned in one layer: `rows` (rows,) and `columns` (group, columns), bool tensors, True for pruned, and how
    many: `num_rows`, and `num_columns`, in which a column of one group counts 1 / group, as in the reference. `weights`
    is None, or of the weight's shape where single weights are pruned, `num_weights` of them."""

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.weights: Tensor | None = None
        self.num_weights = 0
        self.set(torch.zeros(layout.rows, dtype=torch.bool, device=device),
                 torch.zeros(layout.group, layout.columns, dtype=torch.bool, device=device), (0, 0.0))

    def set(self, rows: Tensor, columns: Tensor, counts: tuple[int, float] | None = None) -> None:
        """Replaces the masks. Without `counts` waits for the device to count."""
        if counts is None:
            num_rows, num_columns = torch.stack([rows.sum(), columns.sum()]).tolist()
            counts = num_rows, num_columns / self.layout.group
        self.rows, self.columns = rows, columns
        self.num_rows, self.num_columns = counts
        self._factors: list[Tensor] | None = None

    def set_from_zeros(self, weight: Tensor) -> None:
        """Takes rows and columns of nothing but zeros for pruned, as the reference does when weights are loaded."""
        zeros = self.layout.matrix(weight) == 0
        self.set(zeros.all(1), zeros.unflatten(0, (self.layout.group, -1)).all(1))

    def add_rows(self, rows: Tensor, count: int | None = None) -> None:
        """Marks more rows as pruned, `count` of them new if that is known."""
        counts = None if count is None else (self.num_rows + count, self.num_columns)
        self.set(self.rows | rows, self.columns, counts)

    def add_columns(self, columns: Tensor, count: int | None = None) -> None:
        """Marks more columns as pruned, (columns,) for those of all groups, `count` of them new if that is known."""
        counts = None if count is None or self.layout.group > 1 else (self.num_rows, self.num_columns + count)
        self.set(self.rows, self.columns | columns, counts)

    def add_weights(self, weights: Tensor, count: int | None = None) -> None:
        """Marks more single weights, bool of the weight's shape, as pruned, `count` of them new if that is known."""
        self.weights = weights if self.weights is None else self.weights | weights
        self.num_weights = int(self.weights.sum()) if count is None else self.num_weights + count
        self._factors = None

    def apply(self, tensor: Tensor) -> None:
        """Zeroes what is pruned in `tensor`, which is shaped as the weight, in place."""
        if self._factors is None:
            self._factors = self._make_factors(tensor)
        for factor in self._factors:
            if factor.dim() > tensor.dim():
                tensor.unflatten(0, (self.layout.group, -1)).mul_(factor)
            else:
                tensor.mul_(factor)

    def _make_factors(self, like: Tensor) -> list[Tensor]:
        layout, factors = self.layout, []
        if self.num_columns:
            kept = (~self.columns).to(like.dtype)
            factors.append(kept.reshape(layout.group, 1, *layout.shape[1:]) if layout.group > 1
                           else layout.along_columns(kept, like))
        if self.num_rows:
            factors.append(layout.along_rows((~self.rows).to(like.dtype)))
        if self.weights is not None:
            factors.append((~self.weights).to(like.dtype))
        return factors

    def zeros(self) -> Tensor:
        """bool of the weight's shape: all weights that are pruned, by whatever mask."""
        layout = self.layout
        columns = self.columns.repeat_interleave(layout.rows // layout.group, 0)
        pruned = layout.weight(columns | self.rows[:, None])
        return pruned if self.weights is None else pruned | self.weights
