"""Layers that combine, rearrange, select or reduce whole blobs, as torch modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..proto import enum_name
from .graph import Node
from .torch_module import TORCH, Module, given, module, weighted


@TORCH.add("InnerProduct")
def inner_product(node: Node) -> Module:
    p, shape = node.param, node.in_shapes[0]
    axis = p.axis % len(shape)
    weight = node.params[0].T if p.transpose else node.params[0]
    made = module(nn.Linear, weight.shape[1], weight.shape[0], **given(bias=(len(node.params) > 1, True)))
    made = weighted(node, made, "weight", "bias")
    made.state["weight"] = weight
    if p.transpose:
        made.blobs = lambda state: [state["weight"].T, *list(state.values())[1:]]
    if axis < len(shape) - 1:
        made.argument = f"{{}}.flatten({axis})"
    elif axis == len(shape):
        made.argument = "{}.unsqueeze(-1)"
    return made


@TORCH.add("Embed")
def embed(node: Node) -> Module:
    p = node.param
    return weighted(node, module(Embed, p.input_dim, p.num_output, *[False] * (len(node.params) < 2)), "weight", "bias")


class Embed(nn.Module):
    """y = weight[x] + bias: the rows that the integers in x name."""

    def __init__(self, count: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight[x.long()]
        return y if self.bias is None else y + self.bias


@TORCH.add("Eltwise")
def eltwise(node: Node) -> Module:
    p = node.param
    if p.operation == p.SUM:
        coeffs = tuple(p.coeff)
        return module(Sum, *[coeffs] * any(coeff != 1 for coeff in coeffs))
    return module(Product if p.operation == p.PROD else Maximum)


class Sum(nn.Module):
    """The sum of the inputs, each multiplied by its coefficient if there are any."""

    def __init__(self, coeffs: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.coeffs = coeffs

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        coeffs = self.coeffs or (1.0,) * (1 + len(others))
        total = first if coeffs[0] == 1 else first * coeffs[0]
        for x, coeff in zip(others, coeffs[1:]):
            total = torch.add(total, x, alpha=coeff)
        return total


class Product(nn.Module):
    """The product of the inputs."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for x in others:
            first = first * x
        return first


class Maximum(nn.Module):
    """The largest of the inputs; where the first two are equal the gradient goes to the second."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        top = torch.where(first > others[0], first, others[0])
        for x in others[1:]:
            top = torch.where(x > top, x, top)
        return top


@TORCH.add("Concat")
def concat(node: Node) -> Module:
    return module(Concat, node.layer._axis)


class Concat(nn.Module):
    """The inputs one after the other along `axis`."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis)


@TORCH.add("Slice")
def slice_(node: Node) -> Module:
    points = tuple(node.param.slice_point)
    if len(node.outputs) == 1:
        return module(nn.Identity)
    return module(Slice, node.layer._axis, points or len(node.outputs))


class Slice(nn.Module):
    """Cuts along `axis` before each of the points, or into so many equal pieces."""

    def __init__(self, axis: int, points: tuple[int, ...] | int) -> None:
        super().__init__()
        self.axis, self.points = axis, points

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.tensor_split(self.points, self.axis)


@TORCH.add("Split")
def split(node: Node) -> Module:
    return module(Split, len(node.outputs)) if len(node.outputs) > 1 else module(nn.Identity)


class Split(nn.Module):
    """The input so many times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) * self.count


@TORCH.add("Flatten")
def flatten(node: Node) -> Module:
    axes = len(node.in_shapes[0])
    first, last = node.param.axis % axes, node.param.end_axis % axes
    if last == first - 1:  # flattens no axis, which makes one of size 1
        return module(Unsqueeze, first)
    return module(nn.Flatten, *[first] * (first != 1 or last != axes - 1), *[last] * (last != axes - 1))


class Unsqueeze(nn.Module):
    """A new axis of size 1."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(self.axis)


@TORCH.add("Reshape")
def reshape(node: Node) -> Module:
    p, axes = node.param, len(node.in_shapes[0])
    start = p.axis if p.axis >= 0 else axes + 1 + p.axis
    end = axes if p.num_axes == -1 else start + p.num_axes
    return module(Reshape, tuple(p.shape.dim), *[start] * (start > 0 or end < axes), *[end] * (end < axes))


class Reshape(nn.Module):
    """Gives the axes from `start` to `end` a new shape: 0 keeps the size at that place, -1 is what is left."""

    def __init__(self, shape: tuple[int, ...], start: int = 0, end: int | None = None) -> None:
        super().__init__()
        self.shape, self.start, self.end = shape, start, end

    def forward(self, x: Tensor) -> Tensor:
        old, start = x.shape, self.start
        end = len(old) if self.end is None else self.end
        return x.reshape((*old[:start], *(n or old[start + i] for i, n in enumerate(self.shape)), *old[end:]))


@TORCH.add("Permute")
def permute(node: Node) -> Module:
    return module(Permute, tuple(node.layer._order))


class Permute(nn.Module):
    """The axes in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


@TORCH.add("Tile")
def tile(node: Node) -> Module:
    axis = node.param.axis % len(node.in_shapes[0])
    return module(Tile, axis, node.param.tiles)


class Tile(nn.Module):
    """The input so many times along `axis`."""

    def __init__(self, axis: int, tiles: int) -> None:
        super().__init__()
        self.axis, self.tiles = axis, tiles

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.tiles, self.axis)


@TORCH.add("Reduction")
def reduction(node: Node) -> Module:
    p = node.param
    return module(Reduction, enum_name(p, "operation"), p.axis % len(node.in_shapes[0]), p.coeff)


class Reduction(nn.Module):
    """coeff * (SUM, ASUM, SUMSQ or MEAN) over all axes from `axis` on."""

    def __init__(self, operation: str, axis: int, coeff: float) -> None:
        super().__init__()
        self.operation, self.axis, self.coeff = operation, axis, coeff

    def forward(self, x: Tensor) -> Tensor:
        if self.operation == "ASUM":
            x = x.abs()
        elif self.operation == "SUMSQ":
            x = x.square()
        x = x.flatten(self.axis)
        return self.coeff * (x.mean(-1) if self.operation == "MEAN" else x.sum(-1))


@TORCH.add("ArgMax")
def argmax(node: Node) -> Module:
    p = node.param
    return module(ArgMax, p.top_k, p.out_max_val, *[node.layer._axis] * p.HasField("axis"))


class ArgMax(nn.Module):
    """Indices (as floats) of the largest values, or with `values` their values; of equals, that of the larger index first.

    Without `axis`, of each item's values as one vector, and values come after the indices.
    """

    def __init__(self, count: int, values: bool, axis: int | None = None) -> None:
        super().__init__()
        self.count, self.values, self.axis = count, values, axis

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.axis is None else self.axis
        flat = x.flatten(1) if self.axis is None else x
        values, places = flat.flip(axis).sort(dim=axis, descending=True, stable=True)
        values, places = values.narrow(axis, 0, self.count), places.narrow(axis, 0, self.count)
        indices = (flat.shape[axis] - 1 - places).to(x.dtype)
        if self.axis is not None:
            return values if self.values else indices
        top = torch.stack((indices, values), 1) if self.values else indices.unsqueeze(1)
        return top.reshape(top.shape + (1,) * (x.dim() - 3))


@TORCH.add("Filter")
def filter_(node: Node) -> Module:
    return module(Filter)


class Filter(nn.Module):
    """Of all inputs but the last, the items for which the last is not zero."""

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        chosen = inputs[-1].flatten().nonzero().flatten()
        tops = tuple(x.index_select(0, chosen) for x in inputs[:-1])
        return tops if len(tops) > 1 else tops[0]


@TORCH.add("BatchReindex")
def batch_reindex(node: Node) -> Module:
    return module(BatchReindex)


class BatchReindex(nn.Module):
    """The items of x in the order that the indices give."""

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        return x.index_select(0, order.long())


@TORCH.add("DummyData")
def dummy_data(node: Node) -> Module:
    values = [filler.value if filler else 0.0 for filler in node.layer._fillers]
    return module(DummyData, tuple(zip(node.out_shapes, values)))


class DummyData(nn.Module):
    """Constants: a (shape, value) for each."""

    def __init__(self, tops: tuple[tuple[tuple[int, ...], float], ...]) -> None:
        super().__init__()
        for i, (shape, value) in enumerate(tops):
            self.register_buffer(f"top{i}", torch.full(shape, value), persistent=False)

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        tops = tuple(self.buffers())
        return tops if len(tops) > 1 else tops[0]
