"""Layers that rearrange or combine whole blobs: products, sums, joining, cutting and reshaping."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Layer, Shape, format_shape, layer, may_overwrite
from .indices import as_index


@layer("InnerProduct", param="inner_product_param")
class InnerProduct(Layer):
    """y = W x + b over the axes from `axis` on, taken as one vector of length K (InnerProductParameter).

    Blobs: W (num_output x K, or K x num_output with `transpose`) and, with `bias_term`, b (num_output).
    The top has the bottom's axes before `axis` and then num_output.
    """

    overwritable = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        if p.num_output < 1:
            raise self.error(f"inner_product_param.num_output is {p.num_output}; give it a positive number")
        axis = self.canonical_axis(p.axis, shapes[0])
        self._inputs = prod(shapes[0][axis:])
        self._transposed = p.transpose
        self.add_param((self._inputs, p.num_output) if p.transpose else (p.num_output, self._inputs), p.weight_filler)
        if p.bias_term:
            self.add_param((p.num_output,), p.bias_filler)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        axis = self.canonical_axis(self.param.axis, shape)
        if prod(shape[axis:]) != self._inputs:
            raise self.error(f"the weights are for {self._inputs} inputs, but the bottom has {prod(shape[axis:])} from "
                             f"axis {axis} on: {format_shape(shape)}")
        # flatten(), not reshape(): it leaves alone a bottom that has nothing to flatten
        self._axis = axis if axis < len(shape) - 1 else None
        return [(*shape[:axis], self.param.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        if self._axis is not None:
            x = x.flatten(self._axis)
        weight = self.blobs[0].tensor
        bias = self.blobs[1].tensor if len(self.blobs) > 1 else None
        return F.linear(x, weight.t() if self._transposed else weight, bias)


@layer("Embed", param="embed_param", undifferentiable=(0,))
class Embed(Layer):
    """y = W[x] + b: the rows of W that the bottom's integers name (EmbedParameter).

    Blobs: W (input_dim x num_output) and, with `bias_term`, b (num_output). The top has the bottom's axes and then
    num_output. What an index out of range does is told at `indices.as_index`.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        for field in ("num_output", "input_dim"):
            if getattr(p, field) < 1:
                raise self.error(f"embed_param.{field} is {getattr(p, field)}; give it a positive number")
        self.add_param((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_param((p.num_output,), p.bias_filler)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0], self.param.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        index, count = as_index(self, x, self.param.input_dim, 0)
        y = F.embedding(index, self.blobs[0].tensor)
        if count is not None:
            y = y * count.unsqueeze(-1)
        return y + self.blobs[1].tensor if len(self.blobs) > 1 else y


@layer("Eltwise", bottoms=(2, None), param="eltwise_param")
class Eltwise(Layer):
    """SUM (with one `coeff` a bottom), PROD or MAX of bottoms of one shape, elementwise (EltwiseParameter).

    MAX takes bottom 1 where bottoms 0 and 1 are equal, and a later bottom only where it is larger; the gradient goes
    where the value came from (case Eltwise_max_ties). It ignores `coeff`, as Caffe does. The gradient of PROD is the
    product of the other bottoms also with `stable_prod_grad: false`, for which Caffe divides the top by the bottom:
    that is the same but at zeros, where it is NaN. In place with SUM, Caffe loses the first bottom (case
    Eltwise_sum_coeff_inplace); here the sum is right.
    """

    overwritable = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        coeffs = list(p.coeff)
        if coeffs and p.operation == p.PROD:
            raise self.error("coeff is for operation SUM, but the operation is PROD; take it away")
        if len(coeffs) not in (0, len(shapes)):
            raise self.error(f"found {len(coeffs)} coeff for {len(shapes)} bottoms; give one a bottom, or none")
        self._coeffs = coeffs or [1.0] * len(shapes)
        self._combine = {p.SUM: self._sum, p.PROD: self._product, p.MAX: self._max}[p.operation]
        self._order = list(range(len(shapes)))
        self._overwrites = False

    def overwrite(self, free: Sequence[int]) -> None:
        """Lets a SUM write into one of the bottoms `free`, which nobody else reads (`economy`)."""
        usable = [k for k in free if self._coeffs[k] == 1 and (k == 0 or len(self._order) == 2)]  # a + b is b + a, no more
        if usable and self._combine == self._sum:
            self._order = [usable[0], *(k for k in self._order if k != usable[0])]
            self._overwrites = True

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        for name, shape in zip(self.spec.bottom, shapes):
            if shape != shapes[0]:
                raise self.error(f'all bottoms must have one shape, but "{self.spec.bottom[0]}" is '
                                 f'{format_shape(shapes[0])} and "{name}" is {format_shape(shape)}', name)
        return [shapes[0]]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self._combine(bottoms)

    def _sum(self, bottoms: Sequence[Tensor]) -> Tensor:
        first, *others = self._order
        total = bottoms[first] if self._coeffs[first] == 1 else bottoms[first] * self._coeffs[first]
        add = torch.Tensor.add_ if self._overwrites and may_overwrite(total) else torch.add
        for k in others:
            total = add(total, bottoms[k], alpha=self._coeffs[k])
        return total

    def _product(self, bottoms: Sequence[Tensor]) -> Tensor:
        return reduce(torch.mul, bottoms)

    def _max(self, bottoms: Sequence[Tensor]) -> Tensor:
        top = torch.where(bottoms[0] > bottoms[1], bottoms[0], bottoms[1])
        for bottom in bottoms[2:]:
            top = torch.where(bottom > top, bottom, top)
        return top


@layer("Concat", bottoms=(1, None), param="concat_param")
class Concat(Layer):
    """The bottoms one after the other along `axis` (or the older `concat_dim`); other axes agree (ConcatParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        _check_one_axis_field(self, "concat_dim")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        first = shapes[0]
        self._axis = axis = _axis_or_dim(self, "concat_dim", first)
        for name, shape in zip(self.spec.bottom, shapes):
            if len(shape) != len(first) or shape[:axis] + shape[axis + 1:] != first[:axis] + first[axis + 1:]:
                raise self.error(f'all bottoms must have one shape but for axis {axis}; "{self.spec.bottom[0]}" is '
                                 f'{format_shape(first)}, "{name}" is {format_shape(shape)}', name)
        return [(*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1:])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self._axis) if len(bottoms) > 1 else bottoms[0]


@layer("Slice", tops=(1, None), param="slice_param")
class Slice(Layer):
    """Cuts the bottom along `axis` (or the older `slice_dim`) before each `slice_point`, else evenly (SliceParameter).

    The tops are views of the bottom.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        _check_one_axis_field(self, "slice_dim")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        self._axis = axis = _axis_or_dim(self, "slice_dim", shape)
        self._sizes = self._cut(shape[axis])
        return [(*shape[:axis], size, *shape[axis + 1:]) for size in self._sizes]

    def _cut(self, length: int) -> list[int]:
        points, tops = list(self.param.slice_point), len(self.spec.top)
        if not points:
            if length % tops:
                raise self.error(f"axis {self._axis} of length {length} cannot be cut evenly into {tops} tops; give "
                                 "slice_point")
            return [length // tops] * tops
        if len(points) != tops - 1:
            raise self.error(f"found {len(points)} slice_point for {tops} tops; give one less than tops")
        edges = [0, *points, length]
        sizes = [end - start for start, end in pairwise(edges)]
        if min(sizes) < 1:
            raise self.error(f"slice_point must rise from above 0 to below {length}, the length of axis {self._axis}; "
                             f"found {', '.join(map(str, points))}")
        return sizes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self._sizes, self._axis) if len(self._sizes) > 1 else (x,)


@layer("Split", tops=(1, None))
class Split(Layer):
    """The bottom once for each top; their gradients add up."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # a view each, so that each top can have its own gradient; view_as() would lose channels_last strides if N = 1
        return tuple(x[...] for _ in self.spec.top)


@layer("Flatten", param="flatten_param")
class Flatten(Layer):
    """The axes from `axis` to `end_axis` become one (FlattenParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        _refuse_in_place(self)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        first = self.canonical_axis(self.param.axis, shape)
        last = self.canonical_axis(self.param.end_axis, shape, "end_axis")
        if last < first - 1:
            raise self.error(f"axis {first} lies after end_axis {last}; give them in order")
        self._shape = (*shape[:first], prod(shape[first:last + 1]), *shape[last + 1:])
        return [self._shape]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self._shape)


@layer("Reshape", param="reshape_param")
class Reshape(Layer):
    """Gives `num_axes` axes of the bottom, from `axis` on, the new `shape` (ReshapeParameter).

    In `shape`, 0 stands for the bottom's size at the same place and one -1 for what is left. A negative `axis` counts
    from one past the end: -1 appends.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        _refuse_in_place(self)
        dims = list(self.param.shape.dim)
        if dims.count(-1) > 1 or min(dims, default=0) < -1:
            raise self.error(f"reshape_param.shape has sizes, 0 to copy, and at most one -1 to infer; found {dims}")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, p = shapes[0], self.param
        start = p.axis if p.axis >= 0 else len(shape) + 1 + p.axis
        end = len(shape) if p.num_axes == -1 else start + p.num_axes
        if not 0 <= start <= end <= len(shape):
            raise self.error(f"axis {p.axis} and num_axes {p.num_axes} do not lie within the bottom's {len(shape)} "
                             f"axes: {format_shape(shape)}")
        dims = list(p.shape.dim)
        for i, dim in enumerate(dims):
            if dim == 0:
                if start + i >= len(shape):
                    raise self.error(f"dim {i} of reshape_param.shape is 0, which copies axis {start + i} of the "
                                     f"bottom, but that has only {len(shape)} axes: {format_shape(shape)}")
                dims[i] = shape[start + i]
        new = [*shape[:start], *dims, *shape[end:]]
        self._shape = tuple(self._infer(new, prod(shape)))
        return [self._shape]

    def _infer(self, new: list[int], count: int) -> list[int]:
        """`new` with its -1 replaced such that it holds `count` values."""
        known = prod(dim for dim in new if dim != -1)
        if -1 in new and known and count % known == 0:
            new[new.index(-1)] = count // known
        if prod(new) != count:
            raise self.error(f"the bottom's {count} values do not fit the new shape {' '.join(map(str, new))}")
        return new

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self._shape)


@layer("Softmax", param="softmax_param")
class Softmax(Layer):
    """exp(x) / sum of exp(x) along `axis` (SoftmaxParameter)."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        self._axis = self.canonical_axis(self.param.axis, shapes[0])
        return [shapes[0]]

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self._axis)


def _check_one_axis_field(self: Layer, old: str) -> None:
    if self.param.HasField("axis") and self.param.HasField(old):
        raise self.error(f"both axis and {old} are given; take {old} away")


def _axis_or_dim(self: Layer, old: str, shape: Shape) -> int:
    """The axis that `axis`, or the older unsigned field `old`, names."""
    field = old if self.param.HasField(old) else "axis"
    return self.canonical_axis(getattr(self.param, field), shape, field)


def _refuse_in_place(self: Layer) -> None:
    if self.spec.top[0] == self.spec.bottom[0]:
        raise self.error(f"a {self.type} layer cannot work in place; give its top a name of its own", self.spec.top[0])
