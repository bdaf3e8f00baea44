"""ONNX operators that are convolutions or can be written as one: padding, repeating and rearranging pixels."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Shape
from .from_onnx_graph import Gap, Node
from .from_onnx_net import FROM_ONNX, Padding, Translation

#: The most positions of a kernel, or sizes of an image, that are made up here.
LARGEST_KERNEL = 1 << 16


def per_axis(node: Node, name: str, axes: int) -> Shape:
    return tuple(node.get(name) or (1,) * axes)


def pads(net: Translation, node: Node, extent: Shape, stride: Shape) -> tuple[Shape, Shape]:
    """Positions added before and behind each axis, by `pads` or `auto_pad`."""
    axes, mode = len(extent), node.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * axes, (0,) * axes
    if mode == "NOTSET":
        pads = tuple(node.get("pads") or (0,) * 2 * axes)
        return pads[:axes], pads[axes:]
    sizes = net.shape(node.inputs[0])[2:]
    total = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(sizes, extent, stride)]
    less, more = tuple(p // 2 for p in total), tuple(p - p // 2 for p in total)
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def take_padding(net: Translation, node: Node) -> tuple[str, Shape, Shape]:
    """The blob to read, and the padding that a Pad node before leaves to this one."""
    value = node.inputs[0]
    if value in net.paddings:
        padding = net.paddings[value]
        return net.blob(padding.source), padding.before, padding.after
    axes = len(net.shape(value)) - 2
    return net.blob(value), (0,) * axes, (0,) * axes


# -- convolutions ---------------------------------------------------------------------------------------------------


@FROM_ONNX.add("Conv")
def convolution(net: Translation, node: Node) -> None:
    """A Convolution. Where its padding is not the same on both sides, the kernel gets zeros on the side with less."""
    weight = net.graph.constant(node, 1)
    axes = weight.ndim - 2
    stride, dilation = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation))
    before, after = pads(net, node, extent, stride)
    bottom, *margins = take_padding(net, node)
    before, after = (tuple(map(sum, zip(own, more))) for own, more in zip((before, after), margins))
    missing = [(max(a - b, 0), max(b - a, 0)) for b, a in zip(before, after)]
    weight, dilation = _extended(weight, dilation, missing)
    pad = tuple(map(max, zip(before, after)))
    if min(pad) < 0:
        raise Gap(f"its padding is negative: {before}, {after}")
    _slide(net, node, "Convolution", bottom, weight, weight.shape[0], (pad, stride, dilation))


@FROM_ONNX.add("ConvTranspose")
def deconvolution(net: Translation, node: Node) -> None:
    """A Deconvolution; its kernel gets zeros where padding or output_padding are not the same on both sides."""
    weight = net.graph.constant(node, 1)
    axes = weight.ndim - 2
    stride, dilation = per_axis(node, "strides", axes), per_axis(node, "dilations", axes)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation))
    sizes, outputs = net.shape(node.inputs[0])[2:], net.shape(node.outputs[0])[2:]
    pads = tuple(node.get("pads") or (0,) * 2 * axes)
    before = pads[:axes]
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in node.attributes:
        total = [s * (n - 1) + e - out for n, out, e, s in zip(sizes, outputs, extent, stride)]
        upper = node.get("auto_pad", "NOTSET") == "SAME_UPPER"
        before = tuple(p // 2 if upper else p - p // 2 for p in total)
    # what is cut off behind the last position that the kernel reaches; below 0 where zeros are added there
    after = tuple(s * (n - 1) + e - out - b for n, out, e, s, b in zip(sizes, outputs, extent, stride, before))
    pad = tuple(max(b, a, 0) for b, a in zip(before, after))
    weight, dilation = _extended(weight, dilation, [(p - b, p - a) for p, b, a in zip(pad, before, after)])
    _slide(net, node, "Deconvolution", net.blob(node.inputs[0]), weight, weight.shape[1] * node.get("group", 1),
           (pad, stride, dilation))


def _extended(weight: np.ndarray, dilation: Shape, zeros: list[tuple[int, int]]) -> tuple[np.ndarray, Shape]:
    """A kernel with `zeros` (before, behind) positions added to each axis, and its dilation."""
    if not any(map(any, zeros)):
        return weight, dilation
    if prod(d * k + sum(counts) for k, d, counts in zip(weight.shape[2:], dilation, zeros)) > LARGEST_KERNEL:
        raise Gap(f"its padding differs too much from side to side: {zeros}")
    if any(count % d for counts, d in zip(zeros, dilation) for count in counts):
        dense = np.zeros((*weight.shape[:2], *(d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation))), weight.dtype)
        dense[(..., *(slice(None, None, d) for d in dilation))] = weight
        weight, dilation = dense, (1,) * len(dilation)
    added = [(0, 0), (0, 0), *((b // d, a // d) for (b, a), d in zip(zeros, dilation))]
    return np.pad(weight, added), dilation


def _slide(net: Translation, node: Node, type: str, bottom: str, weight: np.ndarray, outputs: int,
           geometry: tuple[Shape, Shape, Shape]) -> None:
    blobs = [weight]
    if (bias := net.graph.constant(node, 2)) is not None:
        blobs.append(bias)
    _kernels(net, node, type, bottom, blobs, outputs, geometry, group=node.get("group", 1))


def _kernels(net: Translation, node: Node, type: str, bottom: str, blobs: list[np.ndarray], outputs: int,
             geometry: tuple[Shape, Shape, Shape], group: int = 1) -> None:
    """A Convolution or Deconvolution layer, its settings as short as they can be."""
    settings: dict[str, object] = {"num_output": outputs}
    for name, sizes, default in zip(("pad", "kernel_size", "stride", "dilation"),
                                    (geometry[0], blobs[0].shape[2:], *geometry[1:]), (0, None, 1, 1)):
        if any(size != default for size in sizes):
            settings[name] = sizes[:1] if len(set(sizes)) == 1 else sizes
    if group != 1:
        settings["group"] = group
    if len(blobs) == 1:
        settings["bias_term"] = False
    net.layer(node, type, [bottom], blobs=blobs, **settings)


# -- padding and rearranging ----------------------------------------------------------------------------------------


@FROM_ONNX.add("Pad")
def pad(net: Translation, node: Node) -> None:
    """Zeros around images: left to the convolutions and pooling that read them, else a Convolution that changes nothing."""
    shape = net.shape(node.inputs[0])
    if node.opset < 11:
        pads, value = list(node.get("pads")), node.get("value", 0.0)
    else:
        pads, filling = net.graph.constant(node, 1).tolist(), net.graph.constant(node, 2)
        value = float(filling) if filling is not None else 0.0
    if (axes := net.graph.constant(node, 3)) is not None:
        given, pads = pads, [0] * 2 * len(shape)
        for k, axis in enumerate(axes.tolist()):
            pads[axis % len(shape)], pads[axis % len(shape) + len(shape)] = given[k], given[k + len(axes)]
    before, after = tuple(pads[:len(shape)]), tuple(pads[len(shape):])
    if not any(pads):
        net.alias(node)
        return
    if node.get("mode", "constant") != "constant" or value:
        raise Gap(f"it pads by mode {node.get('mode', 'constant')}, value {value:g}; Caffe's layers pad with zeros")
    if any(before[:2]) or any(after[:2]) or min(pads) < 0 or len(shape) < 3:
        raise Gap(f"it pads {before}, {after}; Caffe's layers pad the spatial axes of images, and cut nothing off")
    result = node.outputs[0]
    zero_is_lowest = {"MaxPool"} if node.inputs[0] in net.nonnegative else set()
    if result not in net.graph.outputs and all(
            reader.op in {"Conv", "AveragePool"} | zero_is_lowest and reader.inputs[0] == result
            for reader in net.graph.readers[result]):
        net.paddings[result] = Padding(node.inputs[0], before[2:], after[2:])
        return
    kernel = np.ones((shape[1], 1, *(1,) * (len(shape) - 2)), np.float32)
    kernel, _ = _extended(kernel, (1,) * (len(shape) - 2), [(max(a - b, 0), max(b - a, 0)) for b, a in
                                                           zip(before[2:], after[2:])])
    ones = (1,) * (len(shape) - 2)
    _kernels(net, node, "Convolution", net.blob(node.inputs[0]), [kernel], shape[1],
             (tuple(map(max, zip(before[2:], after[2:]))), ones, ones), group=shape[1])


@FROM_ONNX.add("Resize")
@FROM_ONNX.add("Upsample")
def resize(net: Translation, node: Node) -> None:
    """Every pixel repeated: a Deconvolution with ones."""
    shape, result = net.shape(node.inputs[0]), net.shape(node.outputs[0])
    if shape == result:
        net.alias(node)
        return
    if node.get("mode", "nearest") != "nearest":
        raise Gap(f'it interpolates ("{node.get("mode")}"), by a rule for the borders that no layer of Caffe has')
    factors = tuple(out // n for n, out in zip(shape, result))
    if factors[:2] != (1, 1) or len(shape) < 3 or any(n * f != out for n, f, out in zip(shape, factors, result)):
        raise Gap(f"it changes {shape} to {result}; Caffe can repeat pixels a whole number of times")
    if prod(factors) > LARGEST_KERNEL or max(result) > LARGEST_KERNEL:
        raise Gap(f"it makes images of {shape} as large as {result}")
    if node.op == "Resize" and any((_sources(node, n, f) != np.arange(n * f) // f).any()
                                   for n, f in zip(shape[2:], factors[2:])):
        raise Gap(f'its rounding ("{node.get("nearest_mode", "round_prefer_floor")}", '
                  f'"{node.get("coordinate_transformation_mode", "half_pixel")}") takes other pixels than repeating does')
    spatial = factors[2:]
    kernel = np.ones((shape[1], 1, *spatial), np.float32)
    _kernels(net, node, "Deconvolution", net.blob(node.inputs[0]), [kernel], shape[1],
             ((0,) * len(spatial), spatial, (1,) * len(spatial)), group=shape[1])


def _sources(node: Node, size: int, factor: int) -> np.ndarray:
    """For each position along an axis that is made `factor` times as long, the one that it is taken from."""
    transformation = node.get("coordinate_transformation_mode", "half_pixel")
    places = np.arange(size * factor, dtype=np.float64)
    if transformation in ("half_pixel", "pytorch_half_pixel"):
        places = (places + 0.5) / factor - 0.5 if size * factor > 1 else places * 0
    elif transformation == "asymmetric":
        places = places / factor
    elif transformation == "align_corners":
        places = places * (size - 1) / max(size * factor - 1, 1)
    else:
        raise Gap(f'it maps coordinates by "{transformation}"')
    rounding = {"round_prefer_floor": lambda x: np.ceil(x - 0.5), "round_prefer_ceil": lambda x: np.floor(x + 0.5),
                "floor": np.floor, "ceil": np.ceil}[node.get("nearest_mode", "round_prefer_floor")]
    return rounding(places).clip(0, size - 1).astype(int)


def _blocks(net: Translation, node: Node) -> tuple[int, int]:
    channels, block = net.shape(node.inputs[0])[1], node.get("blocksize")
    if channels * block > LARGEST_KERNEL:
        raise Gap(f"it rearranges {channels} channels in blocks of {block}")
    return channels, block


@FROM_ONNX.add("DepthToSpace")
def depth_to_space(net: Translation, node: Node) -> None:
    """A Deconvolution whose kernels have a single 1."""
    channels, block = _blocks(net, node)
    count = channels // block ** 2
    place = np.arange(channels)
    if node.get("mode", "DCR") == "DCR":
        y, x, channel = place // count // block, place // count % block, place % count
    else:
        channel, y, x = place // block ** 2, place // block % block, place % block
    kernel = np.zeros((channels, count, block, block), np.float32)
    kernel[place, channel, y, x] = 1
    _kernels(net, node, "Deconvolution", net.blob(node.inputs[0]), [kernel], count, ((0, 0), (block, block), (1, 1)))


@FROM_ONNX.add("SpaceToDepth")
def space_to_depth(net: Translation, node: Node) -> None:
    """A Convolution whose kernels have a single 1."""
    channels, block = _blocks(net, node)
    place = np.arange(channels * block ** 2)
    kernel = np.zeros((len(place), channels, block, block), np.float32)
    kernel[place, place % channels, place // channels // block, place // channels % block] = 1
    _kernels(net, node, "Convolution", net.blob(node.inputs[0]), [kernel], len(place), ((0, 0), (block, block), (1, 1)))
