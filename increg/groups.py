"""Weight groups: rows, columns and kernel positions of a weight, as tensor operations that fit any memory format.

A weight is seen as a matrix of rows (the filters of a Convolution, the outputs of an InnerProduct) by columns (one
kernel position of one input channel, one input). A `Unit` says which of its groups a method prunes; `Masks` say what is
pruned in a layer: whole rows, and columns within each group of a grouped convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
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
    many: `num_rows`, and `num_columns`, in which a column of one group counts 1 / group, as in the reference."""

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
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
        return factors


class Unit:
    """Which groups of a weight a method prunes. A vector holds one value a group, in Caffe's order of the weights."""

    def size(self, layout: Layout) -> int:
        """The number of groups."""
        raise NotImplementedError

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        """Writes the L1 norm of each group to the vector `out`."""
        raise NotImplementedError

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        """A vector, shaped to broadcast against the weight `like`."""
        raise NotImplementedError

    def pruned(self, masks: Masks) -> Tensor:
        """Which groups are pruned, bool."""
        raise NotImplementedError

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        """Marks the groups of a bool vector as pruned, `count` of them new if that is known."""
        raise NotImplementedError

    def num_pruned(self, layout: Layout, rows: int, columns: float) -> int:
        """How many groups are pruned, by the counts of rows and columns; whole groups only."""
        raise NotImplementedError

    def slot(self, layout: Layout, matrix: Tensor) -> Tensor:
        """The part of a (rows, columns) matrix that stands for the groups in SolverState.history_score; a view."""
        raise NotImplementedError


class Row(Unit):
    """Rows: whole filters."""

    def size(self, layout: Layout) -> int:
        return layout.rows

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        out.copy_(sum_of_rows(layout.matrix(weight).abs().T.contiguous())[0])

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        return layout.along_rows(values)

    def pruned(self, masks: Masks) -> Tensor:
        return masks.rows

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        masks.add_rows(groups, count)

    def num_pruned(self, layout: Layout, rows: int, columns: float) -> int:
        return rows

    def slot(self, layout: Layout, matrix: Tensor) -> Tensor:
        return matrix[:, 0]


class Column(Unit):
    """Columns, over all rows; those of a grouped convolution over all its groups."""

    def size(self, layout: Layout) -> int:
        return layout.columns

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        if weight.dim() != 4 or weight.is_contiguous():
            out.copy_(sum_of_rows(layout.matrix(weight).abs())[0])
        else:  # channels last: the rows as they are stored
            norms = sum_of_rows(weight.abs().permute(0, 2, 3, 1).flatten(1))
            out.view(layout.channels, -1).copy_(norms.view(-1, layout.channels).T)

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        return layout.along_columns(values, like)

    def pruned(self, masks: Masks) -> Tensor:
        return masks.columns.all(0)

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        masks.add_columns(groups, count)

    def num_pruned(self, layout: Layout, rows: int, columns: float) -> int:
        return int(columns)

    def slot(self, layout: Layout, matrix: Tensor) -> Tensor:
        return matrix[0]


class Position(Unit):
    """Kernel positions, over all rows and input channels."""

    def size(self, layout: Layout) -> int:
        return layout.positions

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        out.copy_(sum_of_rows(weight.abs().reshape(-1, layout.positions))[0])

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(1, 1, *layout.shape[2:])

    def pruned(self, masks: Masks) -> Tensor:
        return masks.columns.reshape(-1, masks.layout.positions).all(0)

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        channels = masks.layout.channels
        masks.add_columns(groups.repeat(channels), None if count is None else count * channels)

    def num_pruned(self, layout: Layout, rows: int, columns: float) -> int:
        return int(columns / layout.channels)

    def slot(self, layout: Layout, matrix: Tensor) -> Tensor:
        return matrix[0, :layout.positions]


@cache
def _all_rows(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(count, device=device), torch.zeros(1, dtype=torch.long, device=device)


def sum_of_rows(matrix: Tensor) -> Tensor:
    """The sum of the rows of a contiguous matrix, as a matrix of one row.

    They are added one after the other, as the reference adds norms. `torch.sum` adds in another order, which changes the
    ranks of nearly equal groups; this operation does not, and is as fast.
    """
    return torch.embedding_bag(matrix, *_all_rows(len(matrix), matrix.device))[0]
