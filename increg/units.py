"""Units: which groups of a weight a method prunes. The words for them in prune_method are the keys of `UNITS`.

Row: whole filters. Col: the same kernel position of the same input channel in every filter. Channel: an input channel in
every filter. Spatial: a kernel position in every filter and channel. Weight: each weight by itself.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .groups import Layout, Masks
from .sums import Function, in_rows, in_rows_in_order, over_rows


class Unit:
    """Which groups of a weight a method prunes. A vector holds one value a group, in Caffe's order of the weights.

    `plural` is what its groups are called.
    """

    plural: ClassVar[str]

    def size(self, layout: Layout) -> int:
        """The number of groups."""
        raise NotImplementedError

    def weights(self, layout: Layout) -> int:
        """The number of weights in a group."""
        return layout.rows * layout.columns // self.size(layout)

    def refusal(self, layout: Layout) -> str | None:
        """Why a layer with such a weight has no groups of this kind, None if it has."""
        return None

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        """Writes the L1 norm of each group to the vector `out`, added up in the reference's order."""
        out.copy_(self.totals(layout, weight, torch.abs))

    def totals(self, layout: Layout, weight: Tensor, function: Function) -> Tensor:
        """The sum of |w| (function torch.abs) or w^2 (torch.square) over each group, (groups,)."""
        return self.sums(layout, function(weight))

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        """The sums over each group of `values`, which is shaped as the weight; in any order."""
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

    # For the methods of the reference, whose units are rows, columns and kernel positions:

    def num_pruned(self, layout: Layout, rows: int, columns: float) -> int:
        """How many groups are pruned, by the counts of rows and columns; whole groups only."""
        raise NotImplementedError

    def slot(self, layout: Layout, matrix: Tensor) -> Tensor:
        """The part of a (rows, columns) matrix that stands for the groups in SolverState.history_score; a view."""
        raise NotImplementedError


class Row(Unit):
    """Rows: whole filters."""

    plural = "rows"

    def size(self, layout: Layout) -> int:
        return layout.rows

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        out.copy_(in_rows_in_order(layout.matrix(weight), torch.abs))

    def totals(self, layout: Layout, weight: Tensor, function: Function) -> Tensor:
        if weight.dim() == 4 and not weight.is_contiguous():  # channels last: the rows as they are stored
            return in_rows(weight.permute(0, 2, 3, 1).flatten(1), function)
        return in_rows(layout.matrix(weight), function)

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        axis = 1 if layout.transposed else 0
        return values.sum([i for i in range(values.dim()) if i != axis])

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

    plural = "columns"

    def size(self, layout: Layout) -> int:
        return layout.columns

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        out.copy_(self.totals(layout, weight, torch.abs))

    def totals(self, layout: Layout, weight: Tensor, function: Function) -> Tensor:
        if weight.dim() != 4 or weight.is_contiguous():
            return over_rows(layout.matrix(weight), function)
        stored = over_rows(weight.permute(0, 2, 3, 1).flatten(1), function)  # channels last: the rows as they are stored
        return stored.view(-1, layout.channels).T.reshape(-1)

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        return values.sum(1 if layout.transposed else 0).reshape(-1)

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

    plural = "positions"

    def size(self, layout: Layout) -> int:
        return layout.positions

    def norms(self, layout: Layout, weight: Tensor, out: Tensor) -> None:
        out.copy_(self.totals(layout, weight, torch.abs))

    def totals(self, layout: Layout, weight: Tensor, function: Function) -> Tensor:
        return over_rows(weight.reshape(-1, layout.positions), function)

    def refusal(self, layout: Layout) -> str | None:
        return None if len(layout.shape) == 4 else "it has no positions of kernels in two axes"

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        return values.sum((0, 1)).reshape(-1)

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


class Channel(Unit):
    """Input channels: all columns of one channel, over all rows; for an InnerProduct the same as columns."""

    plural = "channels"

    def size(self, layout: Layout) -> int:
        return layout.channels

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        if layout.transposed:
            return values.sum(1)
        return values.sum([axis for axis in range(values.dim()) if axis != 1])

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, 1) if layout.transposed else values.reshape(1, -1, *(1 for _ in layout.shape[2:]))

    def pruned(self, masks: Masks) -> Tensor:
        return masks.columns.all(0).reshape(-1, masks.layout.positions).all(1)

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        positions = masks.layout.positions
        masks.add_columns(groups.repeat_interleave(positions), None if count is None else count * positions)


class Weight(Unit):
    """Single weights."""

    plural = "weights"

    def size(self, layout: Layout) -> int:
        return layout.rows * layout.columns

    def sums(self, layout: Layout, values: Tensor) -> Tensor:
        return values.reshape(-1)

    def spread(self, layout: Layout, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(layout.shape)

    def pruned(self, masks: Masks) -> Tensor:
        return masks.zeros().reshape(-1)

    def prune(self, masks: Masks, groups: Tensor, count: int | None = None) -> None:
        masks.add_weights(groups.reshape(masks.layout.shape), count)


#: The units by the word that prune_method ends with.
UNITS: dict[str, Unit] = {"Row": Row(), "Col": Column(), "Channel": Channel(), "Spatial": Position(), "Weight": Weight()}
