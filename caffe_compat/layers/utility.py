"""Layers that select, repeat, reduce or swallow, and the one that is nothing but a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .base import Layer, Shape, format_shape, layer
from .indices import as_index


@layer("Silence", bottoms=(1, None), tops=0)
class Silence(Layer):
    """Takes blobs that nobody else does, so that they are no outputs of the net."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return []

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


@layer("Parameter", bottoms=0, param="parameter_param")
class Parameter(Layer):
    """Its one blob, zeros of `shape` at first, as the top (ParameterParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.add_param(self.param.shape.dim)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [self.blobs[0].shape]

    def forward(self) -> Tensor:
        return self.blobs[0].tensor


@layer("Filter", bottoms=(2, None), tops=(1, None))
class Filter(Layer):
    """Of each bottom but the last, the items (along axis 0) for which the last, the selector, is not zero.

    How many items there are is known only when the selector's values are, so on a GPU the program waits for them here.
    """

    dynamic = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(self.spec.top) != len(self.spec.bottom) - 1:
            raise self.error(f"a Filter layer has one top less than bottoms, the last of which is the selector; found "
                             f"{len(self.spec.bottom)} bottoms, {len(self.spec.top)} tops")
        self.undifferentiable = (len(self.spec.bottom) - 1,)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        selector = shapes[-1]
        if not selector or prod(selector[1:]) != 1:
            raise self.error(f"the selector has one value an item, so its axes after the first must be 1; found "
                             f"{format_shape(selector)}", self.spec.bottom[-1])
        for name, shape in zip(self.spec.bottom, shapes):
            if shape[:1] != selector[:1]:
                raise self.error(f'"{name}" must have {selector[0]} items, as the selector has; found '
                                 f"{format_shape(shape)}", name)
        return list(shapes[:-1])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        chosen = bottoms[-1].flatten().nonzero().flatten()
        return tuple(bottom.index_select(0, chosen) for bottom in bottoms[:-1])


@layer("BatchReindex", bottoms=2, undifferentiable=(1,))
class BatchReindex(Layer):
    """The items (along axis 0) of bottom 0 in the order that the indices in bottom 1 give; they may repeat.

    What an index out of range does is told at `indices.as_index`.
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[1]) != 1:
            raise self.error(f"the indices must have one axis, found {format_shape(shapes[1])}", self.spec.bottom[1])
        if not shapes[0]:
            raise self.error("the bottom has no axes, so there are no items to choose from", self.spec.bottom[0])
        return [(*shapes[1], *shapes[0][1:])]

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        index, count = as_index(self, order, x.shape[0], 1)
        y = x.index_select(0, index)
        return y if count is None else y * count.reshape(-1, *[1] * (x.dim() - 1))


@layer("Tile", param="tile_param")
class Tile(Layer):
    """The bottom `tiles` times along `axis` (TileParameter)."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, tiles = shapes[0], self.param.tiles
        axis = self.canonical_axis(self.param.axis, shape)
        if tiles < 1:
            raise self.error(f"tile_param.tiles is {tiles}; give it a positive number")
        self._repeats = [tiles if i == axis else 1 for i in range(len(shape))]
        return [(*shape[:axis], shape[axis] * tiles, *shape[axis + 1:])]

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self._repeats)


@layer("ArgMax", param="argmax_param", undifferentiable=(0,))
class ArgMax(Layer):
    """Indices (as floats) or values of the `top_k` largest, of equals that of the larger index first (ArgMaxParameter).

    Along `axis`, the top has there top_k indices, or values with `out_max_val`. Without `axis` it looks at all of an
    item's values as one vector; the top is N x 1 x top_k, or N x 2 x top_k with the values after the indices, and has
    as many axes as the bottom, 3 at least. It has no gradient.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.param.top_k < 1:
            raise self.error(f"argmax_param.top_k is {self.param.top_k}; give it a positive number")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, p = shapes[0], self.param
        if p.HasField("axis"):
            self._axis = self.canonical_axis(p.axis, shape)
            top = (*shape[:self._axis], p.top_k, *shape[self._axis + 1:])
            length = shape[self._axis]
        elif shape:
            self._axis = None
            top = (shape[0], 2 if p.out_max_val else 1, p.top_k, *[1] * (len(shape) - 3))
            length = prod(shape[1:])
            self._flat = (shape[0], length)
        else:
            raise self.error("the bottom has no axes, so there is nothing to choose from")
        if p.top_k > length:
            raise self.error(f"argmax_param.top_k is {p.top_k}, but there are only {length} values to choose from: "
                             f"{format_shape(shape)}")
        self._shape = top
        return [top]

    def forward(self, x: Tensor) -> Tensor:
        if self._axis is not None:
            values, indices = self._largest(x, self._axis)
            return values if self.param.out_max_val else indices.to(x.dtype)
        values, indices = self._largest(x.reshape(self._flat), 1)
        if not self.param.out_max_val:
            return indices.to(x.dtype).reshape(self._shape)
        return torch.stack((indices.to(x.dtype), values), 1).reshape(self._shape)

    def _largest(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The largest values along `axis`, and their indices."""
        # max and a stable sort keep equals in order, so the order is turned around
        flipped = x.flip(axis)
        if self.param.top_k == 1:
            values, places = flipped.max(axis, keepdim=True)
        else:
            values, places = flipped.sort(dim=axis, descending=True, stable=True)
            values, places = (found.narrow(axis, 0, self.param.top_k) for found in (values, places))
        return values, x.shape[axis] - 1 - places


@layer("Reduction", param="reduction_param")
class Reduction(Layer):
    """coeff * (SUM, ASUM, SUMSQ or MEAN) over all axes from `axis` on, which the top drops (ReductionParameter)."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, p = shapes[0], self.param
        axis = self.canonical_axis(p.axis, shape)
        self._axes = tuple(range(axis, len(shape)))
        count = prod(shape[axis:]) or float("nan")
        self._coeff = p.coeff / count if p.operation == p.MEAN else p.coeff
        return [shape[:axis]]

    def forward(self, x: Tensor) -> Tensor:
        p = self.param
        if p.operation == p.ASUM:
            x = x.abs()
        elif p.operation == p.SUMSQ:
            x = x.square()
        total = x.sum(self._axes)
        return total if self._coeff == 1 else total * self._coeff
