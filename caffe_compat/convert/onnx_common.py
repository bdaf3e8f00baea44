"""ONNX operators for layers that rearrange, combine, select and reduce whole blobs."""

from __future__ import annotations

from math import prod

from ..proto import enum_name
from .graph import Node
from .onnx_neuron import affine
from .onnx_writer import ONNX, Writer


@ONNX.add("InnerProduct")
def inner_product(node: Node, out: Writer) -> None:
    """Gemm, of a bottom flattened to two axes."""
    shape, x = node.in_shapes[0], node.inputs[0]
    axis = node.param.axis % len(shape)
    if len(shape) != 2 or axis != 1:
        x = out.op("Flatten", [x], axis=axis)
    inputs = [x, out.param(node, 0)] + ([out.param(node, 1)] if len(node.params) > 1 else [])
    settings = {} if node.param.transpose else {"transB": 1}
    if axis == 1:
        out.op("Gemm", inputs, node.outputs, **settings)
        return
    out.reshape(out.op("Gemm", inputs, **settings), node.out_shapes[0], node.outputs[0])


@ONNX.add("Embed")
def embed(node: Node, out: Writer) -> None:
    """Gather, and Add for the bias."""
    index = out.op("Cast", [node.inputs[0]], to=7)
    if len(node.params) < 2:
        out.op("Gather", [out.param(node, 0), index], node.outputs)
    else:
        out.op("Add", [out.op("Gather", [out.param(node, 0), index]), out.param(node, 1)], node.outputs)


@ONNX.add("Eltwise")
def eltwise(node: Node, out: Writer) -> None:
    """Add, Mul or Max of two or more; coefficients multiply first."""
    operation = enum_name(node.param, "operation")
    inputs = list(node.inputs)
    if operation == "SUM":
        inputs = [affine(out, x, c, 0) for x, c in zip(inputs, node.layer._coeffs)]
    if operation == "MAX" or (operation == "SUM" and len(inputs) > 2):
        out.op({"MAX": "Max", "SUM": "Sum"}[operation], inputs, node.outputs)
        return
    operator, total = {"SUM": "Add", "PROD": "Mul"}[operation], inputs[0]
    for k, x in enumerate(inputs[1:], 2):
        total = out.op(operator, [total, x], node.outputs if k == len(inputs) else None)


@ONNX.add("Concat")
def concat(node: Node, out: Writer) -> None:
    """Concat."""
    out.op("Concat", node.inputs, node.outputs, axis=node.layer._axis)


@ONNX.add("Slice")
def slice_(node: Node, out: Writer) -> None:
    """Split."""
    axis, sizes = node.layer._axis, [shape[node.layer._axis] for shape in node.out_shapes]
    out.fixed(node.inputs[0], axis)
    if len(sizes) == 1:
        out.op("Identity", node.inputs, node.outputs)
    else:
        out.op("Split", [node.inputs[0], out.ints(*sizes)], node.outputs, axis=axis)


@ONNX.add("Flatten")
@ONNX.add("Reshape")
def reshape(node: Node, out: Writer) -> None:
    """Reshape; Flatten where all axes but the first become one."""
    shape, result = node.in_shapes[0], node.out_shapes[0]
    if len(result) == 2 and len(shape) > 1 and node.type == "Flatten" and shape[0] == result[0]:
        out.op("Flatten", node.inputs, node.outputs)
    else:
        out.reshape(node.inputs[0], result, node.outputs[0], like=node.inputs[0])


@ONNX.add("Softmax")
def softmax(node: Node, out: Writer) -> None:
    """Softmax."""
    out.op("Softmax", node.inputs, node.outputs, axis=node.layer._axis)


@ONNX.add("Permute")
def permute(node: Node, out: Writer) -> None:
    """Transpose."""
    out.op("Transpose", node.inputs, node.outputs, perm=node.layer._order)


@ONNX.add("Tile")
def tile(node: Node, out: Writer) -> None:
    """Tile."""
    out.op("Tile", [node.inputs[0], out.ints(*node.layer._repeats)], node.outputs)


@ONNX.add("Parameter")
def parameter(node: Node, out: Writer) -> None:
    """A weight under the name of the top."""
    out.op("Identity", [out.param(node, 0)], node.outputs)


@ONNX.add("DummyData")
def dummy_data(node: Node, out: Writer) -> None:
    """Constants; what is random is an input of the graph."""
    for top, tensor in zip(node.outputs, node.layer._constants):
        out.op("Identity", [out.constant(tensor.cpu().numpy())], top)


@ONNX.add("Filter")
def filter_(node: Node, out: Writer) -> None:
    """Gather of the places where the selector is not 0."""
    flat = out.op("Reshape", [node.inputs[-1], out.ints(-1)])
    chosen = out.op("Squeeze", [out.op("NonZero", [flat]), out.ints(0)])
    for x, top in zip(node.inputs, node.outputs):
        out.op("Gather", [x, chosen], top, axis=0)


@ONNX.add("BatchReindex")
def batch_reindex(node: Node, out: Writer) -> None:
    """Gather."""
    out.op("Gather", [node.inputs[0], out.op("Cast", [node.inputs[1]], to=7)], node.outputs, axis=0)


@ONNX.add("Reduction")
def reduction(node: Node, out: Writer) -> None:
    """ReduceSum and its kin over the last axes."""
    p, axes = node.param, list(node.layer._axes)
    operation = enum_name(p, "operation")
    if operation == "SUM":  # of this opset, the only one that takes its axes as an input
        total, settings = [node.inputs[0], out.ints(*axes)], {"keepdims": 0}
    else:
        total, settings = node.inputs[:1], {"keepdims": 0, "axes": axes}
    operator = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}[operation]
    if p.coeff == 1:
        out.op(operator, total, node.outputs, **settings)
    else:
        affine(out, out.op(operator, total, **settings), p.coeff, 0, node.outputs[0])


@ONNX.add("ArgMax")
def argmax(node: Node, out: Writer) -> None:
    """ArgMax, ReduceMax or TopK; of equals the last first, which TopK does on what is turned around."""
    p, shape, x, result = node.param, node.in_shapes[0], node.inputs[0], node.outputs[0]
    along = node.layer._axis is not None
    axis = node.layer._axis if along else 1
    values = p.out_max_val
    if p.top_k == 1 and along:
        if values:
            out.op("ReduceMax", [x], result, axes=[axis], keepdims=1)
        else:
            out.op("Cast", [out.op("ArgMax", [x], axis=axis, keepdims=1, select_last_index=1)], result, to=1)
        return
    if not along:
        x = out.op("Flatten", [x], axis=1)
    out.fixed(node.inputs[0], *([axis] if along else range(1, len(shape))))
    length = shape[axis] if along else prod(shape[1:])
    turned = out.op("Slice", [x, out.ints(-1), out.ints(-length - 1), out.ints(axis), out.ints(-1)])
    largest, places = result if along and values else out.name("largest"), out.name("places")
    out.op("TopK", [turned, out.ints(p.top_k)], [largest, places], axis=axis)
    if along and values:
        return
    places = out.op("Cast", [places], to=1)
    index = out.op("Sub", [out.constant(length - 1), places], result if along else None)
    if along:
        return
    ones = [1] * (len(node.out_shapes[0]) - 3)
    parts = [out.op("Unsqueeze", [part, out.ints(1, *range(3, 3 + len(ones)))]) for part in
             ([index, largest] if values else [index])]
    out.op("Concat", parts, result, axis=1)


def last_axes(out: Writer, value: str, count: int, total: int) -> str:
    """`value` of `count` axes with axes of size 1 behind it, up to `total`."""
    if count == total:
        return value
    return out.op("Unsqueeze", [value, out.ints(*range(count, total))])
