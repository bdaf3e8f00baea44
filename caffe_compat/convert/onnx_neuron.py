"""ONNX operators for layers that act on every value by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph import Node
from .onnx_writer import ONNX, Writer


def plain(operator: str) -> Callable[[Node, Writer], None]:
    """The emitter of a layer that is one operator without settings."""

    def emit(node: Node, out: Writer) -> None:
        out.op(operator, node.inputs, node.outputs)

    emit.__doc__ = f"{operator}."
    return emit


for _type, _operator in (("AbsVal", "Abs"), ("BNLL", "Softplus"), ("Sigmoid", "Sigmoid"), ("TanH", "Tanh")):
    ONNX.add(_type)(plain(_operator))


@ONNX.add("Dropout")
@ONNX.add("Split")
def identity(node: Node, out: Writer) -> None:
    """Identity, once a top: as in the TEST phase."""
    for top in node.outputs:
        out.op("Identity", node.inputs, top)


@ONNX.add("ReLU")
def relu(node: Node, out: Writer) -> None:
    """Relu, or LeakyRelu."""
    if node.param.negative_slope:
        out.op("LeakyRelu", node.inputs, node.outputs, alpha=node.param.negative_slope)
    else:
        out.op("Relu", node.inputs, node.outputs)


@ONNX.add("PReLU")
def prelu(node: Node, out: Writer) -> None:
    """PRelu, its slopes shaped to go with axis 1."""
    slopes = node.params[0]
    shape = (*slopes.shape, *[1] * (len(node.in_shapes[0]) - 2)) if slopes.ndim else (1,)
    out.op("PRelu", [node.inputs[0], out.param(node, 0, shape)], node.outputs)


@ONNX.add("ELU")
def elu(node: Node, out: Writer) -> None:
    """Elu."""
    out.op("Elu", node.inputs, node.outputs, alpha=node.param.alpha)


@ONNX.add("Swish")
def swish(node: Node, out: Writer) -> None:
    """x sigmoid(beta x)."""
    x = node.inputs[0]
    out.op("Mul", [x, out.op("Sigmoid", [affine(out, x, node.param.beta, 0)])], node.outputs)


@ONNX.add("Power")
def power(node: Node, out: Writer) -> None:
    """(shift + scale x) ^ power, without the operators that would do nothing."""
    p, x = node.param, node.inputs[0]
    if p.scale == 0 or p.power == 0:
        value = np.array([np.float32(p.shift) ** np.float32(p.power)], np.float32)
        out.op("ConstantOfShape", [out.op("Shape", [x])], node.outputs, value=out.onnx.numpy_helper.from_array(value))
    elif p.power == 1:
        affine(out, x, p.scale, p.shift, node.outputs[0])
    else:
        x = affine(out, x, p.scale, p.shift)
        operator = {0.5: "Sqrt", -1.0: "Reciprocal"}.get(p.power)
        if operator:
            out.op(operator, [x], node.outputs)
        else:
            out.op("Pow", [x, out.constant(p.power)], node.outputs)


@ONNX.add("Exp")
def exp(node: Node, out: Writer) -> None:
    """Exp of the scaled bottom."""
    layer = node.layer
    out.op("Exp", [affine(out, node.inputs[0], layer._scale, layer._shift)], node.outputs)


@ONNX.add("Log")
def log(node: Node, out: Writer) -> None:
    """Log of the scaled bottom, scaled for its base."""
    layer = node.layer
    x = affine(out, node.inputs[0], layer._scale, layer._shift)
    if layer._outer == 1:
        out.op("Log", [x], node.outputs)
    else:
        affine(out, out.op("Log", [x]), layer._outer, 0, node.outputs[0])


@ONNX.add("Threshold")
def threshold(node: Node, out: Writer) -> None:
    """Greater, as numbers."""
    out.op("Cast", [out.op("Greater", [node.inputs[0], out.constant(node.param.threshold)])], node.outputs, to=1)


@ONNX.add("Clip")
def clip(node: Node, out: Writer) -> None:
    """Clip."""
    out.op("Clip", [node.inputs[0], out.constant(node.param.min), out.constant(node.param.max)], node.outputs)


def affine(out: Writer, x: str, scale: float, shift: float, output: str | None = None) -> str:
    """`x` scaled and shifted, without what would do nothing; `output` is made in any case."""
    steps = [(operator, value) for operator, value, nothing in (("Mul", scale, 1), ("Add", shift, 0)) if value != nothing]
    for k, (operator, value) in enumerate(steps):
        x = out.op(operator, [x, out.constant(value)], output if k == len(steps) - 1 else None)
    return x if steps or output is None else out.op("Identity", [x], output)
