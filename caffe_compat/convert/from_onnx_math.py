"""ONNX operators that work on every value by itself, or on two or more of them: activations, sums, products."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..layers import Shape
from .from_onnx_graph import Gap, Node
from .from_onnx_net import FROM_ONNX, Translation

LARGEST = float(np.finfo(np.float32).max)


def _plain(type: str, **settings: Any) -> Callable[[Translation, Node], None]:
    """The entry of an operator that is just one layer."""

    def translate(net: Translation, node: Node) -> None:
        net.layer(node, type, [net.blob(node.inputs[0])], **settings)

    return translate


for _operator, _type in (("Relu", "ReLU"), ("Sigmoid", "Sigmoid"), ("Tanh", "TanH"), ("Abs", "AbsVal"), ("Exp", "Exp"),
                         ("Log", "Log"), ("Softplus", "BNLL")):
    FROM_ONNX.add(_operator)(_plain(_type))
FROM_ONNX.add("Neg")(_plain("Power", scale=-1))
FROM_ONNX.add("Sqrt")(_plain("Power", power=0.5))
FROM_ONNX.add("Reciprocal")(_plain("Power", power=-1))


@FROM_ONNX.add("LeakyRelu")
def leaky_relu(net: Translation, node: Node) -> None:
    """A ReLU with a slope."""
    net.layer(node, "ReLU", [net.blob(node.inputs[0])], negative_slope=node.get("alpha", 0.01))


@FROM_ONNX.add("Elu")
def elu(net: Translation, node: Node) -> None:
    """An ELU."""
    net.layer(node, "ELU", [net.blob(node.inputs[0])], alpha=node.get("alpha", 1.0))


@FROM_ONNX.add("PRelu")
def prelu(net: Translation, node: Node) -> None:
    """A PReLU, if there is one slope, or one for each channel."""
    shape, slope = net.shape(node.inputs[0]), net.graph.constant(node, 1)
    first, last, values = _run(shape, slope)
    if values.ndim and (first, last) != (1, 2):
        raise Gap(f"its slope has the shape {slope.shape}; Caffe's PReLU has one slope, or one for each channel")
    net.layer(node, "PReLU", [net.blob(node.inputs[0])], blobs=[values], channel_shared=not values.ndim)


@FROM_ONNX.add("Clip")
def clip(net: Translation, node: Node) -> None:
    """A Clip; a ReLU where it is that."""
    if node.opset < 11:
        low, high = node.get("min", -LARGEST), node.get("max", LARGEST)
    else:
        bounds = (net.graph.constant(node, 1), net.graph.constant(node, 2))
        low, high = (default if bound is None else float(bound) for bound, default in zip(bounds, (-LARGEST, LARGEST)))
    _clip(net, node, net.blob(node.inputs[0]), low, high)


def _clip(net: Translation, node: Node, bottom: str, low: float, high: float) -> None:
    if low == 0 and high >= LARGEST:
        net.layer(node, "ReLU", [bottom])
    else:
        net.layer(node, "Clip", [bottom], min=max(low, -LARGEST), max=min(high, LARGEST))
    if low >= 0:
        net.nonnegative.update(node.outputs)


@FROM_ONNX.add("HardSigmoid")
def hard_sigmoid(net: Translation, node: Node) -> None:
    """A Power and a Clip."""
    line = net.temporary(node, "line")
    net.layer(node, "Power", [net.blob(node.inputs[0])], [line], suffix="line", scale=node.get("alpha", 0.2),
              shift=node.get("beta", 0.5))
    net.layer(node, "Clip", [line], min=0, max=1)


@FROM_ONNX.add("HardSwish")
def hard_swish(net: Translation, node: Node) -> None:
    """x times a HardSigmoid of it."""
    x, line, gate = net.blob(node.inputs[0]), net.temporary(node, "line"), net.temporary(node, "gate")
    net.layer(node, "Power", [x], [line], suffix="line", scale=1 / 6, shift=0.5)
    net.layer(node, "Clip", [line], [gate], suffix="gate", min=0, max=1)
    net.layer(node, "Eltwise", [x, gate], operation="PROD")


@FROM_ONNX.add("Pow")
def power(net: Translation, node: Node) -> None:
    """A Power, if the exponent is one number."""
    exponent = net.graph.constant(node, 1)
    if exponent.size != 1:
        raise Gap(f"it has {exponent.size} exponents; Caffe's Power has one")
    net.layer(node, "Power", [net.blob(node.inputs[0])], power=float(exponent.ravel()[0]))


@FROM_ONNX.add("Softmax")
def softmax(net: Translation, node: Node) -> None:
    """A Softmax along one axis."""
    net.layer(node, "Softmax", [net.blob(node.inputs[0])], axis=_softmax_axis(net, node))


@FROM_ONNX.add("LogSoftmax")
def log_softmax(net: Translation, node: Node) -> None:
    """A Softmax and a Log."""
    probability = net.temporary(node, "probability")
    net.layer(node, "Softmax", [net.blob(node.inputs[0])], [probability], suffix="softmax",
              axis=_softmax_axis(net, node))
    net.layer(node, "Log", [probability])


def _softmax_axis(net: Translation, node: Node) -> int:
    shape = net.shape(node.inputs[0])
    axis = node.get("axis", -1 if node.opset >= 13 else 1) % len(shape)
    if node.opset < 13 and prod(shape[axis:]) != shape[axis]:
        raise Gap(f"in opset {node.opset} it normalizes over all axes from {axis} on, Caffe's Softmax over one; the shape "
                  f"is {shape}")
    return axis


# -- sums and products ----------------------------------------------------------------------------------------------


def _axes(shape: Shape, small: Shape) -> tuple[int, int]:
    """(first, last): the run of axes of `shape` that an operand of shape `small` differs along; it is 1 in all others."""
    full = (1,) * (len(shape) - len(small)) + small
    if len(full) > len(shape) or any(size not in (1, wanted) for size, wanted in zip(full, shape)):
        raise Gap(f"{small} makes {shape} larger, which no layer of Caffe does")
    varying = [axis for axis, size in enumerate(full) if size != 1]
    if not varying:
        return 0, 0
    first, last = varying[0], varying[-1] + 1
    if full[first:last] != shape[first:last]:
        raise Gap(f"{small} goes with axes of {shape} that do not follow each other")
    return first, last


def _run(shape: Shape, operand: np.ndarray) -> tuple[int, int, np.ndarray]:
    """`_axes` of a constant, and its values in just those axes; in none, for a single number."""
    first, last = _axes(shape, operand.shape)
    return first, last, operand.reshape(shape[first:last])


@FROM_ONNX.add("Add")
def add(net: Translation, node: Node) -> None:
    """Eltwise, Power (a number), Bias (a constant, or a smaller value)."""
    a, b = _constant_last(net, node)
    if not net.is_constant(b):
        _combine(net, node, a, b, "Bias", operation="SUM")
    else:
        _shift(net, node, net.blob(a), net.shape(a), np.asarray(net.graph.constants[b], np.float32))


@FROM_ONNX.add("Sub")
def subtract(net: Translation, node: Node) -> None:
    """As Add, of what is negated."""
    a, b = node.inputs
    if net.is_constant(b):
        _shift(net, node, net.blob(a), net.shape(a), -np.asarray(net.graph.constants[b], np.float32))
    elif net.is_constant(a):
        negative = net.temporary(node, "negative")
        net.layer(node, "Power", [net.blob(b)], [negative], suffix="negative", scale=-1)
        _shift(net, node, negative, net.shape(b), np.asarray(net.graph.constants[a], np.float32))
    elif net.shape(a) == net.shape(b):
        net.layer(node, "Eltwise", [net.blob(a), net.blob(b)], operation="SUM", coeff=[1, -1])
    else:
        raise Gap(f"it subtracts {net.shape(b)} from {net.shape(a)}; give both one shape")


@FROM_ONNX.add("Mul")
def multiply(net: Translation, node: Node) -> None:
    """Eltwise, Power (a number), Scale (a constant, or a smaller value)."""
    a, b = _constant_last(net, node)
    if not net.is_constant(b):
        _combine(net, node, a, b, "Scale", operation="PROD")
    else:
        _scale(net, node, net.blob(a), net.shape(a), np.asarray(net.graph.constants[b], np.float32))


@FROM_ONNX.add("Div")
def divide(net: Translation, node: Node) -> None:
    """As Mul, by what is inverted."""
    a, b = node.inputs
    if net.is_constant(b):
        with np.errstate(divide="ignore"):
            _scale(net, node, net.blob(a), net.shape(a), np.float32(1) / np.asarray(net.graph.constants[b], np.float32))
        return
    inverse = net.temporary(node, "inverse")
    net.layer(node, "Power", [net.blob(b)], [inverse], suffix="inverse", power=-1)
    if net.is_constant(a):
        _scale(net, node, inverse, net.shape(b), np.asarray(net.graph.constants[a], np.float32))
    elif net.shape(a) == net.shape(b):
        net.layer(node, "Eltwise", [net.blob(a), inverse], operation="PROD")
    else:
        raise Gap(f"it divides {net.shape(a)} by {net.shape(b)}; give both one shape")


def _constant_last(net: Translation, node: Node) -> list[str]:
    """The two inputs of a commutative operator, a constant or the smaller one last."""
    a, b = node.inputs
    return [b, a] if net.is_constant(a) or (not net.is_constant(b) and net.shape(a) != net.shape(node.outputs[0])) else [a, b]


def _shift(net: Translation, node: Node, bottom: str, shape: Shape, operand: np.ndarray) -> None:
    first, last, values = _run(shape, operand)
    if first == last:
        net.layer(node, "Power", [bottom], shift=float(values))
    else:
        net.layer(node, "Bias", [bottom], blobs=[values], axis=first, num_axes=last - first)


def _scale(net: Translation, node: Node, bottom: str, shape: Shape, operand: np.ndarray) -> None:
    """A Scale layer, with the constant that a following Add adds as its bias; a Power for a number."""
    first, last, values = _run(shape, operand)
    if first == last:
        net.layer(node, "Power", [bottom], scale=float(values))
        return
    blobs = [values]
    following = net.graph.only_reader(node.outputs[0])
    if following is not None and following.op == "Add":
        other = next(name for name in following.inputs if name != node.outputs[0])
        if net.is_constant(other) and net.shape(following.outputs[0]) == shape:
            try:
                start, end, bias = _run(shape, np.asarray(net.graph.constants[other], np.float32))
            except Gap:
                start = end = -1
            if (start, end) == (first, last):
                blobs.append(bias)
                net.absorb(following, node)
    net.layer(node, "Scale", [bottom], blobs=blobs, axis=first, num_axes=last - first, bias_term=len(blobs) > 1)


def _combine(net: Translation, node: Node, a: str, b: str, broadcast: str, operation: str) -> None:
    """Two computed values: Eltwise if they are of one shape, else a layer that spreads the second over the first."""
    shape, small = net.shape(a), net.shape(b)
    if shape == small:
        net.layer(node, "Eltwise", [net.blob(a), net.blob(b)], operation=operation)
        return
    first, last = _axes(shape, small)
    of_images = len(small) == len(shape) and small[0] == shape[0]  # there may be another number of them later
    first = 0 if of_images else first
    operand, sizes = net.blob(b), list(shape[first:last])
    if sizes != list(small):
        operand = net.temporary(node, "operand")
        dims = [0, *sizes[1:]] if of_images and sizes else sizes
        net.layer(node, "Reshape", [net.blob(b)], [operand], suffix="operand", shape={"dim": dims})
    net.layer(node, broadcast, [net.blob(a), operand], axis=first)


@FROM_ONNX.add("Sum")
def sum_(net: Translation, node: Node) -> None:
    """Eltwise SUM."""
    _eltwise(net, node, "SUM")


@FROM_ONNX.add("Mean")
def mean(net: Translation, node: Node) -> None:
    """Eltwise SUM, each bottom divided by their number."""
    _eltwise(net, node, "SUM", coeff=[1 / len(node.inputs)] * len(node.inputs))


@FROM_ONNX.add("Max")
def maximum(net: Translation, node: Node) -> None:
    """Eltwise MAX; Clip or ReLU with a number."""
    _bounded(net, node, lambda bound: (bound, LARGEST), lambda: _eltwise(net, node, "MAX"))


@FROM_ONNX.add("Min")
def minimum(net: Translation, node: Node) -> None:
    """Clip with a number; else the negated MAX of what is negated."""

    def of_blobs() -> None:
        blobs = _of_one_shape(net, node)
        if len(blobs) == 1:
            net.alias(node)
            return
        negatives = [net.temporary(node, f"negative{k}") for k in range(len(blobs))]
        for k, (blob, negative) in enumerate(zip(blobs, negatives)):
            net.layer(node, "Power", [blob], [negative], suffix=f"negative{k}", scale=-1)
        largest = net.temporary(node, "largest")
        net.layer(node, "Eltwise", negatives, [largest], suffix="largest", operation="MAX")
        net.layer(node, "Power", [largest], scale=-1)

    _bounded(net, node, lambda bound: (-LARGEST, bound), of_blobs)


def _bounded(net: Translation, node: Node, limits: Callable[[float], tuple[float, float]],
             of_blobs: Callable[[], None]) -> None:
    bounds = [name for name in node.inputs if net.is_constant(name) and net.graph.constants[name].size == 1]
    if len(node.inputs) == 2 and len(bounds) == 1:
        value = next(name for name in node.inputs if name not in bounds)
        _clip(net, node, net.blob(value), *limits(float(net.graph.constants[bounds[0]].ravel()[0])))
    else:
        of_blobs()


def _eltwise(net: Translation, node: Node, operation: str, **settings: Any) -> None:
    blobs = _of_one_shape(net, node)
    if len(blobs) == 1:
        net.alias(node)
    else:
        net.layer(node, "Eltwise", blobs, operation=operation, **settings)


def _of_one_shape(net: Translation, node: Node) -> list[str]:
    shapes = [net.shape(name) for name in node.inputs]
    if any(shape != shapes[0] for shape in shapes):
        raise Gap(f"its inputs have the shapes {', '.join(map(str, shapes))}; Caffe's Eltwise wants one")
    return [net.blob(name) for name in node.inputs]
