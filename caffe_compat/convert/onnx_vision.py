"""ONNX operators for layers with kernels, and for those that cut images."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers.windows import Window
from .graph import Node
from .onnx_writer import ONNX, Writer
from .targets import UnsupportedLayer, limited

KERNEL_LIMIT = "kernels of one to three axes"


@ONNX.add("Convolution")
@limited(KERNEL_LIMIT)
def convolution(node: Node, out: Writer) -> None:
    """Conv, once a bottom."""
    _slide(node, out, "Conv")


@ONNX.add("Deconvolution")
@limited(KERNEL_LIMIT)
def deconvolution(node: Node, out: Writer) -> None:
    """ConvTranspose, once a bottom."""
    _slide(node, out, "ConvTranspose")


def _slide(node: Node, out: Writer, operator: str) -> None:
    window, axis = node.layer.window, node.layer.axis
    if not 1 <= len(window.kernel) <= 3:
        raise UnsupportedLayer(node, "ONNX", f"its kernels have {len(window.kernel)} axes, and runtimes have one to three")
    weights = [out.param(node, k) for k in range(len(node.params))]
    for k, (x, top) in enumerate(zip(node.inputs, node.outputs)):
        _with_one_leading_axis(node, out, k, axis, operator, [x, *weights], top, **_settings(window), group=node.param.group)


def _with_one_leading_axis(node: Node, out: Writer, k: int, axis: int, operator: str, inputs: list[str], top: str,
                           **settings) -> None:
    """The operator on bottom `k`; axes before the channels are made one for it."""
    if axis == 1:
        out.op(operator, inputs, top, **settings)
        return
    out.fixed(node.inputs[k])
    shape = node.in_shapes[k]
    merged = out.op("Reshape", [inputs[0], out.ints(prod(shape[:axis]), *shape[axis:])])
    result = out.op(operator, [merged, *inputs[1:]], **settings)
    out.op("Reshape", [result, out.ints(*node.out_shapes[k])], top)


def _settings(window: Window) -> dict[str, list[int]]:
    return {"kernel_shape": list(window.kernel), "strides": list(window.stride), "pads": [*window.pad, *window.pad],
            "dilations": list(window.dilation)}


@ONNX.add("Im2col")
@limited(KERNEL_LIMIT)
def im2col(node: Node, out: Writer) -> None:
    """Conv with kernels of a single 1, one for each of their positions."""
    window, axis, shape = node.layer.window, node.layer.axis, node.in_shapes[0]
    if not 1 <= len(window.kernel) <= 3:
        raise UnsupportedLayer(node, "ONNX", f"its window has {len(window.kernel)} axes, and runtimes have one to three")
    positions, channels = prod(window.kernel), shape[axis]
    kernels = np.tile(np.eye(positions, dtype=np.float32), (channels, 1)).reshape(-1, 1, *window.kernel)
    _with_one_leading_axis(node, out, 0, axis, "Conv", [node.inputs[0], out.weight(kernels, "windows")], node.outputs[0],
                           **_settings(window), group=channels)


@ONNX.add("Crop")
def crop(node: Node, out: Writer) -> None:
    """Slice; where sizes are open, up to what the reference's shape says."""
    layer = node.layer
    axes = range(layer.axis, layer.axis + len(layer.offsets))
    if out.is_open(node.inputs[1], *axes):
        sizes = out.op("Shape", [node.inputs[1]], start=axes.start, end=axes.stop)
        ends = out.op("Add", [sizes, out.ints(*layer.offsets)])
    else:
        ends = out.ints(*(offset + node.in_shapes[1][axis] for offset, axis in zip(layer.offsets, axes)))
    out.op("Slice", [node.inputs[0], out.ints(*layer.offsets), ends, out.ints(*axes)], node.outputs)
