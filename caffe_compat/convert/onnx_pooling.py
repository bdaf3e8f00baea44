"""ONNX operators for Pooling and SPP.

Where an image's size is known, Caffe's windows are laid by explicit padding, so that it does not matter how a runtime
rounds. Else they are left to the runtime's own rule where that is Caffe's for every size.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from ..errors import NetError
from ..layers.pooling import LOWEST, Pool
from .graph import Node
from .onnx_writer import ONNX, Fixed, Writer
from .targets import UnsupportedLayer, limited


@ONNX.add("Pooling")
@limited("STOCHASTIC as in the TEST phase")
def pooling(node: Node, out: Writer) -> None:
    """MaxPool or AveragePool, Global... for whole images; with a mask, its indices within an image."""
    x, layer = node.inputs[0], node.layer
    axes = len(node.in_shapes[0]) - 2
    _check(node)
    if layer.param.global_pooling and len(node.outputs) == 1 and layer.method != "STOCHASTIC":
        out.op({"MAX": "GlobalMaxPool", "AVE": "GlobalAveragePool"}[layer.method], [x], node.outputs)
        return
    spatial = range(2, 2 + axes)
    if out.is_open(x, *spatial):
        _pool_any_size(node, out)
        return
    pool = layer._pool(tuple(node.in_shapes[0][2:]))
    if len(node.outputs) == 1:
        _pool(out, layer.method, x, pool, node.outputs[0])
        return
    index = out.name("index")
    _max(out, x, pool, [node.outputs[0], index])
    within = out.op("Mod", [index, out.ints(prod(pool.sizes))])
    out.op("Cast", [within], node.outputs[1], to=1)


def _check(node: Node) -> None:
    if node.layer.method == "STOCHASTIC" and node.layer.training:
        raise UnsupportedLayer(node, "ONNX", "in the TRAIN phase it draws random numbers; convert the TEST phase")


def _pool_any_size(node: Node, out: Writer) -> None:
    """Pooling by the runtime's rule: rounded up, without a last window that starts behind the image and its padding."""
    layer, window = node.layer, node.layer.window
    padded = any(window.pad)
    if len(node.outputs) > 1 or layer.method == "STOCHASTIC" or layer.param.global_pooling:
        raise Fixed(f"{node.where}: a mask and drawn values need sizes")
    if not padded and any(s > k for s, k in zip(window.stride, window.kernel)):
        raise Fixed(f"{node.where}: without padding Caffe keeps a last window behind the image")
    if layer.method == "AVE" and padded and not layer.floor and any(s > 1 for s in window.stride):
        raise Fixed(f"{node.where}: what the windows at the border are divided by depends on the size")
    settings = {"kernel_shape": window.kernel, "strides": window.stride, "pads": [*window.pad, *window.pad],
                "ceil_mode": int(not layer.floor and any(s > 1 for s in window.stride))}
    if layer.method == "MAX":
        out.op("MaxPool", node.inputs, node.outputs, **settings)
    else:
        out.op("AveragePool", node.inputs, node.outputs, **settings, count_include_pad=int(padded))


def _pool(out: Writer, method: str, x: str, pool: Pool, output: str) -> None:
    {"MAX": _max, "AVE": _average, "STOCHASTIC": _stochastic}[method](out, x, pool, output)


def _max(out: Writer, x: str, pool: Pool, outputs: str | list[str]) -> None:
    padded, settings = _windows(out, x, pool, LOWEST)
    if padded != x and not isinstance(outputs, str):
        raise NetError("the mask of a window behind the image cannot be expressed in ONNX; take the second top away")
    out.op("MaxPool", [padded], outputs, **settings)


def _average(out: Writer, x: str, pool: Pool, output: str) -> None:
    """AveragePool by the divisors that are Caffe's, if there are such, else multiplied for them."""
    divisors = pool.divisors(torch.ones(())).numpy()
    padded, settings = _windows(out, x, pool, 0.0)
    for count_padding in (False, True):
        if padded == x and np.array_equal(_onnx_divisors(pool, settings["pads"], count_padding), divisors):
            out.op("AveragePool", [x], output, **settings, count_include_pad=int(count_padding))
            return
    mean = out.op("AveragePool", [padded], **settings, count_include_pad=1)
    with np.errstate(divide="ignore"):
        factors = np.float32(prod(pool.window.kernel)) / divisors
    out.op("Mul", [mean, out.constant(factors)], output)


def _stochastic(out: Writer, x: str, pool: Pool, output: str) -> None:
    """The mean of the values weighted by themselves, 0 where there are none."""
    x, settings = _windows(out, x, pool, 0.0)
    squares, values = (out.op("AveragePool", [term], **settings, count_include_pad=1)
                       for term in (out.op("Mul", [x, x]), x))
    some = out.op("Greater", [values, out.constant(0)])
    quotient = out.op("Div", [squares, out.op("Where", [some, values, out.constant(1)])])
    out.op("Where", [some, quotient, out.constant(0)], output)


def _windows(out: Writer, x: str, pool: Pool, filling: float) -> tuple[str, dict[str, list[int]]]:
    """kernel_shape, strides, and pads with which the windows that fit, rounded down, are Caffe's, and what to lay them on.

    That is `x`, but where a window lies behind it (stride > kernel), which ONNX wants no padding for: there it is `x`
    with `filling` around it.
    """
    settings = {"kernel_shape": list(pool.window.kernel), "strides": list(pool.window.stride)}
    before, after = zip(*((before, max(after, 0)) for before, after in pool.margins))
    if all(size < kernel for size, kernel in zip(after, pool.window.kernel)):
        return x, {**settings, "pads": [*before, *after]}
    x = out.op("Pad", [x, out.ints(0, 0, *before, 0, 0, *after), out.constant(filling)])
    return x, {**settings, "pads": [0] * 2 * len(before)}


def _onnx_divisors(pool: Pool, pads: list[int], count_padding: bool) -> np.ndarray:
    """What AveragePool divides by: the part of each window on the bottom, or on it and its padding."""
    axes, result = len(pool.sizes), np.ones((), np.float32)
    for i, (out, n, k, s) in enumerate(zip(pool.outputs, pool.sizes, pool.window.kernel, pool.window.stride)):
        starts = np.arange(out) * s - pads[i]
        low, high = (-pads[i], n + pads[axes + i]) if count_padding else (0, n)
        result = np.multiply.outer(result, np.minimum(starts + k, high) - np.maximum(starts, low))
    return result


@ONNX.add("SPP")
@limited("STOCHASTIC as in the TEST phase")
def spp(node: Node, out: Writer) -> None:
    """A pooling for each level, side by side."""
    _check(node)
    x, layer = node.inputs[0], node.layer
    out.fixed(x, 2, 3)
    levels = layer._levels(tuple(node.in_shapes[0][2:]))
    if len(levels) == 1:
        _pool(out, layer.method, x, levels[0], node.outputs[0])
        return
    parts: list[str] = []
    for k, pool in enumerate(levels):
        top = out.name(f"level{k}")
        _pool(out, layer.method, x, pool, top)
        parts.append(out.op("Flatten", [top]))
    out.op("Concat", parts, node.outputs, axis=1)


