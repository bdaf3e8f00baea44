"""ONNX's pooling, which Caffe has by a rule of its own for the number of windows and for what a mean divides by."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch

from ..layers import Shape
from ..layers.pooling import Pool
from ..layers.windows import Window
from .from_onnx_graph import Gap, Node
from .from_onnx_net import FROM_ONNX, Translation
from .from_onnx_shape import cut
from .from_onnx_windows import pads, per_axis, take_padding

LARGEST_WINDOW = 1 << 12


class _Windows:
    """The windows of an ONNX pooling node, as Caffe lays them; `Gap` where it lays none in one of the places.

    `pool` is Caffe's, of whose windows those from `first` on are ONNX's, `count` of them along each axis: with more
    padding, or rounded up, Caffe may have more.
    """

    def __init__(self, net: Translation, node: Node) -> None:
        kernel = tuple(node.get("kernel_shape"))
        axes = len(kernel)
        if axes != 2:
            raise Gap(f"it pools along {axes} spatial axes, Caffe along two")
        if any(d != 1 for d in per_axis(node, "dilations", axes)):
            raise Gap("its windows are dilated, which Caffe's cannot be")
        if max(kernel) > LARGEST_WINDOW:
            raise Gap(f"its windows have {kernel} positions")
        self.kernel, self.stride = kernel, per_axis(node, "strides", axes)
        self.before, self.after = pads(net, node, kernel, self.stride)
        self.bottom, self.margin_before, self.margin_after = take_padding(net, node)
        margins = zip(self.margin_before, self.margin_after)
        self.sizes = tuple(n - b - a for n, (b, a) in zip(net.shape(node.inputs[0])[2:], margins))
        self.count = net.shape(node.outputs[0])[2:]
        sizes_vary = any(axis > 1 for _, axis in net.graph.dynamic)
        self.pool, self.first = self._find(bool(node.get("ceil_mode", 0)), sizes_vary)

    def _find(self, ceil: bool, sizes_vary: bool) -> tuple[Pool, Shape]:
        """Caffe's pooling and the first of its windows to take, preferring as few as there must be, and rounding up,
        which every Caffe can (unless sizes vary and ONNX rounds down)."""
        starts = tuple(map(sum, zip(self.before, self.margin_before)))
        found = []
        for first in product(*(range((k - 1 - p) // s + 1) for k, p, s in zip(self.kernel, starts, self.stride))):
            pad = tuple(p + f * s for p, f, s in zip(starts, first, self.stride))
            for floor in (False, True) if ceil or not sizes_vary else (True, False):
                pool = Pool(self.sizes, Window(self.kernel, self.stride, pad, (1, 1)), floor)
                more = [out - f - n for out, f, n in zip(pool.outputs, first, self.count)]
                if min(more) >= 0:
                    found.append((sum(first) + sum(more), pool, first))
        if not found:
            raise Gap(f"of its {self.count} windows on {self.sizes} positions, Caffe does not lay the last, with padding "
                      f"smaller than the kernel {self.kernel}")
        return min(found, key=lambda item: item[0])[1:]

    def pooling(self, net: Translation, node: Node, method: str) -> None:
        """The layers: Pooling, a Slice along each axis with windows too many, a Scale where Caffe divides by other
        numbers."""
        outputs, factors = self.pool.outputs, self._factors(bool(node.get("count_include_pad", 0))) if method == "AVE" else None
        cuts = [i for i in (0, 1) if outputs[i] != self.count[i]]
        steps = ["pool", *(f"axis{i + 2}" for i in cuts), *(["factor"] if factors is not None else [])]
        tops = [net.temporary(node, step) for step in steps[:-1]] + [node.outputs[0]]
        suffixes = [*steps[:-1], ""]
        net.layer(node, "Pooling", [self.bottom], tops[:1], suffix=suffixes[0], pool=method, **self._settings())
        for k, i in enumerate(cuts, 1):
            cut(net, node, tops[k - 1], tops[k], i + 2, self.first[i], self.first[i] + self.count[i], outputs[i], suffixes[k])
        if factors is not None:
            net.layer(node, "Scale", [tops[-2]], blobs=[factors], axis=2, num_axes=2)

    def _settings(self) -> dict[str, Any]:
        """The fields of PoolingParameter."""
        window, settings = self.pool.window, {}
        for name, sizes, default in (("kernel", window.kernel, None), ("stride", window.stride, 1), ("pad", window.pad, 0)):
            if sizes[0] == sizes[1]:
                if sizes[0] != default:
                    settings["kernel_size" if name == "kernel" else name] = sizes[0]
            else:
                settings[f"{name}_h"], settings[f"{name}_w"] = sizes
        return {**settings, "round_mode": "FLOOR"} if self.pool.floor else settings

    def _factors(self, count_padding: bool) -> np.ndarray | None:
        """What Caffe divides by over what ONNX divides by, the window's part on the bottom (and its padding); None for 1."""
        sides = []
        for i, count in enumerate(self.count):
            own = (self.before[i], self.after[i]) if count_padding else (0, 0)
            low, high = -self.margin_before[i] - own[0], self.sizes[i] + self.margin_after[i] + own[1]
            starts = (np.arange(count) + self.first[i]) * self.stride[i] - self.pool.window.pad[i]
            sides.append(np.minimum(starts + self.kernel[i], high) - np.maximum(starts, low))
        taken = tuple(slice(first, first + count) for first, count in zip(self.first, self.count))
        factors = self.pool.divisors(torch.ones(())).numpy()[taken] / np.multiply.outer(*sides).astype(np.float32)
        return None if (factors == 1).all() else factors


@FROM_ONNX.add("MaxPool")
def max_pool(net: Translation, node: Node) -> None:
    """A MAX Pooling."""
    if any(node.outputs[1:]):
        raise Gap("it also gives indices, which Caffe counts differently")
    _Windows(net, node).pooling(net, node, "MAX")


@FROM_ONNX.add("AveragePool")
def average_pool(net: Translation, node: Node) -> None:
    """An AVE Pooling."""
    _Windows(net, node).pooling(net, node, "AVE")


def global_pooling(net: Translation, node: Node, method: str, tops: list[str] | None = None) -> None:
    """A Pooling over whole images."""
    shape = net.shape(node.inputs[0])
    if len(shape) != 4:
        raise Gap(f"it pools {shape}, Caffe images of two spatial axes")
    net.layer(node, "Pooling", [net.blob(node.inputs[0])], tops, pool=method, global_pooling=True)


@FROM_ONNX.add("GlobalAveragePool")
def global_average_pool(net: Translation, node: Node) -> None:
    """An AVE Pooling over whole images."""
    global_pooling(net, node, "AVE")


@FROM_ONNX.add("GlobalMaxPool")
def global_max_pool(net: Translation, node: Node) -> None:
    """A MAX Pooling over whole images."""
    global_pooling(net, node, "MAX")


@FROM_ONNX.add("ReduceMax")
@FROM_ONNX.add("ReduceMean")
@FROM_ONNX.add("ReduceSum")
@FROM_ONNX.add("ReduceL1")
@FROM_ONNX.add("ReduceSumSquare")
def reduce_(net: Translation, node: Node) -> None:
    """Pooling over whole images, or a Reduction of the last axes."""
    shape, value = net.shape(node.inputs[0]), node.inputs[0]
    by_input = node.opset >= (13 if node.op == "ReduceSum" else 18)
    axes = net.graph.constant(node, 1) if by_input else node.get("axes")
    if axes is None and node.get("noop_with_empty_axes", 0):
        net.alias(node)
        return
    axes = sorted(int(axis) % len(shape) for axis in (range(len(shape)) if axes is None else axes))
    result = list(net.shape(node.outputs[0]))
    if len(shape) == 4 and axes == [2, 3] and node.op in ("ReduceMean", "ReduceMax"):
        method = "AVE" if node.op == "ReduceMean" else "MAX"
        if node.get("keepdims", 1):
            global_pooling(net, node, method)
            return
        pooled = net.temporary(node, "pooled")
        global_pooling(net, node, method, [pooled])
        net.layer(node, "Flatten", [pooled], suffix="flat")
        return
    operation = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceL1": "ASUM", "ReduceSumSquare": "SUMSQ"}.get(node.op)
    if operation is None or axes != list(range(axes[0], len(shape))):
        raise Gap(f"it reduces the axes {axes} of {len(shape)}; Caffe's Reduction takes the last axes, and has no maximum")
    if not node.get("keepdims", 1):
        net.layer(node, "Reduction", [net.blob(value)], operation=operation, axis=axes[0])
        return
    reduced = net.temporary(node, "reduced")
    net.layer(node, "Reduction", [net.blob(value)], [reduced], suffix="reduced", operation=operation, axis=axes[0])
    dims = [0 if axis < axes[0] else 1 for axis in range(len(result))]
    net.layer(node, "Reshape", [reduced], shape={"dim": dims})
