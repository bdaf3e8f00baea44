"""ONNX operators that move values without changing them: reshaping, cutting, joining, and those that do nothing."""

from __future__ import annotations

import numpy as np

from ..layers import Shape
from .from_onnx_graph import Gap, Node
from .from_onnx_net import FROM_ONNX, Translation

FLOATS = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 of TensorProto


@FROM_ONNX.add("Identity")
def identity(net: Translation, node: Node) -> None:
    """No layer."""
    net.alias(node)


@FROM_ONNX.add("Cast")
def cast(net: Translation, node: Node) -> None:
    """No layer, from one float type to another."""
    if node.get("to") not in FLOATS:
        raise Gap("it makes numbers that are not floats; Caffe's blobs hold floats alone")
    net.alias(node)


@FROM_ONNX.add("Dropout")
def dropout(net: Translation, node: Node) -> None:
    """A Dropout, which does nothing but in training."""
    if node.opset >= 12 and any(node.outputs[1:]):
        raise Gap("it also gives its mask, which Caffe does not")
    ratio = node.get("ratio", 0.5) if node.opset < 12 else net.graph.constant(node, 1)
    net.layer(node, "Dropout", [net.blob(node.inputs[0])], dropout_ratio=0.5 if ratio is None else float(ratio))


@FROM_ONNX.add("Flatten")
def flatten(net: Translation, node: Node) -> None:
    """A Flatten; a Reshape where more than one axis stays in front."""
    _reshape(net, node, net.shape(node.outputs[0]))


@FROM_ONNX.add("Reshape")
def reshape(net: Translation, node: Node) -> None:
    """A Reshape, or a Flatten."""
    wanted = net.graph.constant(node, 1) if node.opset >= 5 else np.array(node.get("shape"))
    result = net.shape(node.outputs[0])
    open_axis = wanted.tolist().index(-1) if -1 in wanted.tolist() else None
    _reshape(net, node, result, open_axis)


@FROM_ONNX.add("Squeeze")
@FROM_ONNX.add("Unsqueeze")
def squeeze(net: Translation, node: Node) -> None:
    """A Reshape, or a Flatten."""
    _reshape(net, node, net.shape(node.outputs[0]))


def _reshape(net: Translation, node: Node, result: Shape, open_axis: int | None = None) -> None:
    """The node's input in the shape `result`: axes in front that stay are copied, `open_axis` or else nothing is left open."""
    shape, bottom = net.shape(node.inputs[0]), net.blob(node.inputs[0])
    if shape == result:
        net.alias(node)
        return
    if len(result) == 2 and len(shape) > 2 and result[0] == shape[0]:
        reader = net.graph.only_reader(node.outputs[0])
        if reader is not None and reader.op in ("Gemm", "MatMul") and reader.inputs[0] == node.outputs[0]:
            net.alias(node)  # an InnerProduct flattens by itself
        else:
            net.layer(node, "Flatten", [bottom])
        return
    dims, copying = list(result), True
    for axis, size in enumerate(result):
        copying = copying and axis < len(shape) and shape[axis] == size and axis != open_axis
        if copying:
            dims[axis] = 0
        elif axis == open_axis:
            dims[axis] = -1
    net.layer(node, "Reshape", [bottom], shape={"dim": dims})


@FROM_ONNX.add("Transpose")
def transpose(net: Translation, node: Node) -> None:
    """A Reshape, if only axes of size 1 change their place."""
    shape = net.shape(node.inputs[0])
    order = node.get("perm") or list(range(len(shape)))[::-1]
    if [axis for axis in order if shape[axis] != 1] != [axis for axis in range(len(shape)) if shape[axis] != 1]:
        raise Gap(f"it changes the order of the axes of {shape} to {list(order)}; no layer of BVLC Caffe does (SSD's fork "
                  "has Permute)")
    _reshape(net, node, net.shape(node.outputs[0]))


@FROM_ONNX.add("Concat")
def concat(net: Translation, node: Node) -> None:
    """A Concat; of one input, nothing."""
    if len(node.inputs) == 1:
        net.alias(node)
        return
    axis = node.get("axis", 1) % len(net.shape(node.outputs[0]))
    net.layer(node, "Concat", [net.blob(name) for name in node.inputs], axis=axis)


@FROM_ONNX.add("Split")
def split(net: Translation, node: Node) -> None:
    """A Slice."""
    axis = node.get("axis", 0) % len(net.shape(node.inputs[0]))
    sizes = [net.shape(name)[axis] for name in node.outputs if name]
    if len(sizes) != len(node.outputs):
        raise Gap("it leaves out one of its outputs")
    if len(sizes) == 1:
        net.alias(node)
        return
    net.layer(node, "Slice", [net.blob(node.inputs[0])], node.outputs, axis=axis,
              slice_point=np.cumsum(sizes)[:-1].tolist())


@FROM_ONNX.add("Slice")
def slice_(net: Translation, node: Node) -> None:
    """A Slice for each axis that is cut; what is cut off goes to a Silence."""
    shape = net.shape(node.inputs[0])
    if node.opset < 10:
        starts, ends = node.get("starts"), node.get("ends")
        axes, steps = node.get("axes") or range(len(starts)), [1] * len(starts)
    else:
        starts, ends = (net.graph.constant(node, k).tolist() for k in (1, 2))
        axes, steps = (None if (given := net.graph.constant(node, k)) is None else given.tolist() for k in (3, 4))
        axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    if any(step != 1 for step in steps):
        raise Gap(f"it takes steps of {steps}; Caffe's Slice cuts out whole ranges")
    ranges = {axis % len(shape): slice(start, end).indices(shape[axis])[:2] for axis, start, end in zip(axes, starts, ends)}
    ranges = {axis: (start, end) for axis, (start, end) in ranges.items() if (start, end) != (0, shape[axis])}
    if not ranges:
        net.alias(node)
        return
    value = net.blob(node.inputs[0])
    for k, (axis, (start, end)) in enumerate(ranges.items()):
        last = k == len(ranges) - 1
        top = node.outputs[0] if last else net.temporary(node, f"axis{axis}")
        cut(net, node, value, top, axis, start, end, shape[axis], "" if last else f"axis{axis}")
        value = top


def cut(net: Translation, node: Node, bottom: str, top: str, axis: int, start: int, end: int, size: int,
        suffix: str = "") -> None:
    """A Slice that makes `top` of the positions from `start` to `end` of `size`, and a Silence for the rest."""
    if start >= end:
        raise Gap("nothing is left of its input; Caffe's blobs are never empty")
    before = [net.temporary(node, f"{suffix}before")] if start > 0 else []
    behind = [net.temporary(node, f"{suffix}behind")] if end < size else []
    points = [point for point in (start, end) if 0 < point < size]
    net.layer(node, "Slice", [bottom], [*before, top, *behind], suffix=suffix, axis=axis, slice_point=points)
    net.layer(node, "Silence", before + behind, [], suffix=f"{suffix}rest")


@FROM_ONNX.add("Gather")
def gather(net: Translation, node: Node) -> None:
    """Of a table with computed indices, an Embed; of computed values with constant indices, Slice (and Concat)."""
    axis = node.get("axis", 0)
    if net.is_constant(node.inputs[0]):
        table = net.graph.constants[node.inputs[0]]
        if axis or table.ndim != 2:
            raise Gap(f"it takes from {table.shape} along axis {axis}; Caffe's Embed takes rows of a matrix")
        net.layer(node, "Embed", [net.blob(node.inputs[1])], blobs=[table], num_output=table.shape[1],
                  input_dim=table.shape[0], bias_term=False)
        return
    shape, indices = net.shape(node.inputs[0]), net.graph.constant(node, 1)
    axis %= len(shape)
    wanted = [int(index) % shape[axis] for index in indices.ravel()]
    if indices.ndim > 1:
        raise Gap(f"it has indices of shape {indices.shape}; Caffe cuts along one axis")
    bottom, result = net.blob(node.inputs[0]), node.outputs[0]
    taken = result if indices.ndim else net.temporary(node, "taken")
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        if len(wanted) < shape[axis]:
            cut(net, node, bottom, taken, axis, wanted[0], wanted[-1] + 1, shape[axis])
        elif indices.ndim:
            net.alias(node)
        else:
            taken = bottom
    elif sorted(wanted) == list(range(shape[axis])):
        pieces = [net.temporary(node, f"piece{k}") for k in range(shape[axis])]
        net.layer(node, "Slice", [bottom], pieces, suffix="pieces", axis=axis)
        net.layer(node, "Concat", [pieces[k] for k in wanted], [taken], axis=axis)
    else:
        raise Gap(f"it takes {wanted} of {shape[axis]} along axis {axis}; here a range or another order can be expressed")
    if not indices.ndim:
        dims = [0 if k < axis else size for k, size in enumerate(net.shape(result))]
        net.layer(node, "Reshape", [taken], suffix="axis", shape={"dim": dims})


@FROM_ONNX.add("Expand")
@FROM_ONNX.add("Tile")
def tile(net: Translation, node: Node) -> None:
    """A Tile for each axis that grows."""
    shape, result = net.shape(node.inputs[0]), net.shape(node.outputs[0])
    if len(shape) != len(result):
        raise Gap(f"it adds axes to {shape}: {result}")
    growing = [axis for axis, (size, large) in enumerate(zip(shape, result)) if size != large]
    if not growing:
        net.alias(node)
        return
    value = net.blob(node.inputs[0])
    for axis in growing:
        top = node.outputs[0] if axis == growing[-1] else net.temporary(node, f"axis{axis}")
        net.layer(node, "Tile", [value], [top], suffix="" if axis == growing[-1] else f"axis{axis}", axis=axis,
                  tiles=result[axis] // shape[axis])
        value = top


@FROM_ONNX.add("ArgMax")
def argmax(net: Translation, node: Node) -> None:
    """An ArgMax, if of equals it takes the last, as Caffe does."""
    if not node.get("select_last_index", 0):
        raise Gap("of equal values it takes the first, Caffe's ArgMax the last; leave it to whoever reads the scores")
    if not node.get("keepdims", 1):
        raise Gap("it drops the axis; give it keepdims = 1")
    axis = node.get("axis", 0) % len(net.shape(node.inputs[0]))
    net.layer(node, "ArgMax", [net.blob(node.inputs[0])], axis=axis)
