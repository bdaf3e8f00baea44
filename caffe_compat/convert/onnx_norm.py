"""ONNX operators for layers that normalize, scale and shift."""

from __future__ import annotations

import numpy as np

from ..proto import enum_name
from .graph import Node
from .onnx_common import last_axes
from .onnx_neuron import affine
from .onnx_writer import ONNX, Writer


@ONNX.add("LRN")
def lrn(node: Node, out: Writer) -> None:
    """LRN across channels; within one, by an AveragePool of the squares."""
    p, x = node.param, node.inputs[0]
    if enum_name(p, "norm_region") == "ACROSS_CHANNELS":
        out.op("LRN", [x], node.outputs, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)
        return
    side = p.local_size // 2
    mean = out.op("AveragePool", [out.op("Mul", [x, x])], kernel_shape=[p.local_size] * 2, pads=[side] * 4,
                  count_include_pad=1)
    scale = out.op("Pow", [affine(out, mean, p.alpha, 1), out.constant(p.beta)])
    out.op("Div", [x, scale], node.outputs)


@ONNX.add("BatchNorm")
def batch_norm(node: Node, out: Writer) -> None:
    """BatchNormalization with the stored statistics; by those of the batch where the layer does so."""
    x, eps, layer = node.inputs[0], node.param.eps, node.layer
    if layer.by_batch:
        axes = [axis for axis in range(len(node.in_shapes[0])) if axis != 1]
        _normalized(out, x, axes, lambda variance: out.op("Sqrt", [affine(out, variance, 1, eps)]), node.outputs[0])
        return
    mean, _, divisor = node.params
    weight = np.float32(1) / divisor[0] if divisor[0] else np.float32(0)
    one, zero = np.ones_like(mean), np.zeros_like(mean)
    scale, shift = out.constant(one), out.constant(zero)
    statistics = [out.param(node, k) if weight == 1 else out.weight(node.params[k] * weight, str(k)) for k in (0, 1)]
    out.op("BatchNormalization", [x, scale, shift, *statistics], node.outputs, epsilon=eps)


@ONNX.add("MVN")
def mvn(node: Node, out: Writer) -> None:
    """(x - mean) / (deviation + eps), written out, on four axes."""
    p, x, shape = node.param, node.inputs[0], node.in_shapes[0]
    x = last_axes(out, x, len(shape), 4)
    axes = [1, 2, 3] if p.across_channels else [2, 3]
    if p.normalize_variance:
        _normalized(out, x, axes, lambda variance: affine(out, out.op("Sqrt", [variance]), 1, p.eps), node.outputs[0])
    else:
        out.op("Sub", [x, out.op("ReduceMean", [x], axes=axes, keepdims=1)], node.outputs)


def _normalized(out: Writer, x: str, axes: list[int], deviation, output: str) -> None:
    """x without its mean over `axes`, divided by what `deviation` makes of the variance."""
    centred = out.op("Sub", [x, out.op("ReduceMean", [x], axes=axes, keepdims=1)])
    variance = out.op("ReduceMean", [out.op("Mul", [centred, centred])], axes=axes, keepdims=1)
    out.op("Div", [centred, deviation(variance)], output)


@ONNX.add("Bias")
def bias(node: Node, out: Writer) -> None:
    """Add."""
    out.op("Add", [node.inputs[0], _operand(node, out, node.inputs[1:], 0)], node.outputs)


@ONNX.add("Scale")
def scale(node: Node, out: Writer) -> None:
    """Mul, and Add for the bias."""
    learned = len(node.inputs) == 1
    factor = _operand(node, out, node.inputs[1:], 0)
    if len(node.params) == learned:
        out.op("Mul", [node.inputs[0], factor], node.outputs)
    else:
        product = out.op("Mul", [node.inputs[0], factor])
        out.op("Add", [product, _operand(node, out, [], int(learned))], node.outputs)


def _operand(node: Node, out: Writer, given: list[str], index: int) -> str:
    """The bottom `given`, or else parameter `index`, with axes of size 1 behind it so that it goes with the layer's."""
    shape = node.in_shapes[1] if len(node.inputs) > 1 else node.params[0].shape
    axes = len(node.layer.aligned(node.in_shapes[0], shape))
    if given:
        return last_axes(out, given[0], len(shape), axes)
    return out.param(node, index, (*shape, *[1] * (axes - len(shape))))


@ONNX.add("Normalize")
def normalize(node: Node, out: Writer) -> None:
    """x scale / sqrt(eps + sum of squares)."""
    x, shape = node.inputs[0], node.in_shapes[0]
    squares = out.op("ReduceSumSquare", [x], axes=list(node.layer._axes), keepdims=1)
    normal = out.op("Div", [x, out.op("Sqrt", [affine(out, squares, 1, node.param.eps)])])
    blob = node.params[0]
    factor = out.param(node, 0, (*blob.shape, *[1] * (len(shape) - 2)) if blob.ndim else ())
    out.op("Mul", [normal, factor], node.outputs)
