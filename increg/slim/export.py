"""Scattered columns in exports to PyTorch and ONNX: Convolution nodes become GatheredConvolution nodes, which skip them,
and InnerProduct nodes smaller ones, which read the inputs that a KeptInputs node leaves.

To `caffe_compat.convert` those are more node types with an entry for each target. Such an export cannot be turned back
into Caffe's files, which `increg slim` writes beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from caffe_compat.convert import (
    Options,
    Report,
    convert,
    onnx_target,  # noqa: F401  (it registers the emitters of all layer types)
)
from caffe_compat.convert.graph import Graph, Node, Pass
from caffe_compat.convert.onnx_writer import ONNX, Writer
from caffe_compat.convert.passes import passes_for
from caffe_compat.convert.torch_module import TORCH, Module
from caffe_compat.convert.torch_target import to_module
from caffe_compat.net import Net
from caffe_compat.proto import Document

from .gathered import BlockMaxPool2d, GatheredConv2d, Kept, pack

TYPE, BLOCKS, KEPT = "GatheredConvolution", "BlockMaxPooling", "KeptInputs"
#: The largest share of its time that a layer may take with zeros left out, where what gathers them is worth while.
WORTH = 0.5
#: Gathering a value takes as long as so many multiply-adds; measured on VGG-16's and ResNet-50's layers.
GATHERING = 50


def export(net: Net, document: Document, target: str, out: Path) -> Report:
    """Writes a net with its weights as `target` ("torch" or "onnx"), checked blob by blob; see `convert`."""
    return convert(document, net.to_document(), target, out, options=Options(inference=True, passes=(gather,)))


def forward_passes(net: Net, slimmed: Net, shape: tuple[int, ...], device: torch.device) -> dict[str, Callable[[], object]]:
    """Passes of the PyTorch exports on random images, in both memory formats: "before NCHW" and "before NHWC" of `net`, dense,
    and "after ..." of `slimmed`, with gathered convolutions."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)

    def run(model: nn.Module, memory_format: torch.memory_format) -> Callable[[], object]:
        model, images = (each.to(device, memory_format=memory_format) for each in (model, x))

        def forward() -> object:
            with torch.inference_mode():
                return model(images)
        return forward

    def module(net: Net, *more: Pass) -> nn.Module:
        return to_module(Graph.of(net).run([*passes_for(Options(inference=True)), *more]))

    return {f"{when} {name}": run(module(*what), memory_format)
            for when, what in (("before", (net,)), ("after", (slimmed, gather)))
            for name, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last))}


def before_and_after(times: Mapping[str, float]) -> tuple[float, float]:
    """The times of `forward_passes`, each in the memory format that is faster."""
    before, after = (min(value for name, value in times.items() if name.startswith(when)) for when in ("before", "after"))
    return before, after


def gather(graph: Graph) -> None:
    """A pass: Convolutions in two axes become gathered ones where that is worth while, and max pooling suits them;
    InnerProducts with few columns left become smaller."""
    graph.nodes = [each for node in graph.nodes for each in (*_kept(node), node)]
    for node in graph.nodes:
        if _is_plain(node) and _time(node) <= WORTH:
            _retype(node, TYPE)
    if any(node.type == TYPE for node in graph.nodes):
        for node in graph.nodes:
            if node.type == "Pooling" and _is_block_maximum(node):
                _retype(node, BLOCKS)


def not_gathered(net: Net) -> list[str]:
    """The convolutions with columns of zeros that `gather` leaves as they are."""
    return [node.name for node in Graph.of(net).nodes if _is_plain(node) and _time(node) > WORTH and _share(node) < 1]


def _is_plain(node: Node) -> bool:
    return node.type == "Convolution" and node.layer.axis == 1 and len(node.layer.window.kernel) == 2


def _kept(node: Node) -> list[Node]:
    """Leaves out an InnerProduct's columns of zeros, if most are: the node to put before it, which leaves out its inputs."""
    if node.type != "InnerProduct" or node.param.axis % len(node.in_shapes[0]) != 1:
        return []
    weight, *bias = node.params
    rows = 1 if node.param.transpose else 0
    used = (weight != 0).any(rows)
    if not 0 < used.mean() <= WORTH:
        return []
    before = replace(node, outputs=[f"{node.inputs[0]}.{node.name}"], out_shapes=[(node.in_shapes[0][0], int(used.sum()))],
                     params=[np.flatnonzero(used)], owners=[(f"{node.name}_kept", 0)])
    _retype(before, KEPT)
    before.layer.name = f"{node.name}_kept"
    node.inputs, node.in_shapes, node.params = before.outputs, before.out_shapes, [weight.compress(used, 1 - rows), *bias]
    node.change(axis=1)
    return [before]


def _retype(node: Node, kind: str) -> None:
    node.layer = copy.copy(node.layer)
    node.layer.type = kind


def _is_block_maximum(node: Node) -> bool:
    """Whether windows do not overlap, nor reach beyond a border but for the last ones."""
    layer = node.layer
    if layer.method != "MAX" or len(node.outputs) > 1 or node.param.global_pooling or len(node.in_shapes[0]) != 4:
        return False
    window = layer.window
    return window.kernel == window.stride and not any(window.pad) and max(window.kernel) > 1 and not any(
        size % kernel for size, kernel in zip(node.in_shapes[0][2:], window.kernel))


def _time(node: Node) -> float:
    """What a gathered convolution takes of the time of the whole one."""
    return _share(node) * (1 + GATHERING * node.param.group / len(node.params[0]))


def _share(node: Node) -> float:
    """Columns that are not zero throughout, of all."""
    weight = node.params[0]
    return float((weight.reshape(node.param.group, -1, weight[0].size) != 0).any(1).mean())


def _packed(node: Node) -> list[tuple[np.ndarray, np.ndarray]]:
    weight, *bias = (torch.from_numpy(np.ascontiguousarray(array)) for array in node.params)
    return [(matrix.numpy(), kept.numpy()) for matrix, kept in pack(weight, bias[0] if bias else None, node.param.group)]


@TORCH.add(TYPE)
def to_torch(node: Node) -> Module:
    """A GatheredConv2d, whose source goes into the model file."""
    window, packed = node.layer.window, _packed(node)
    state = {}
    for group, (matrix, kept) in enumerate(packed):
        state[f"weight{group}"], state[f"kept{group}"] = matrix, kept
    args = (node.layer.channels, node.param.num_output, window.kernel, tuple(len(kept) for _, kept in packed))
    options = {"stride": window.stride, "padding": (*window.pad, *window.pad), "dilation": window.dilation}
    return Module(GatheredConv2d, args, options, state, each=len(node.inputs) > 1)


@TORCH.add(KEPT)
def kept_to_torch(node: Node) -> Module:
    """A Kept."""
    return Module(Kept, (len(node.params[0]),), state={"kept": node.params[0]})


@TORCH.add(BLOCKS)
def pooling_to_torch(node: Node) -> Module:
    """A BlockMaxPool2d."""
    return Module(BlockMaxPool2d, (node.layer.window.kernel,))


#: ONNX runtimes choose their layouts themselves.
ONNX.add(BLOCKS)(ONNX.get("Pooling"))


@ONNX.add(KEPT)
def kept_to_onnx(node: Node, out: Writer) -> None:
    """Flatten and Gather."""
    out.op("Gather", [out.op("Flatten", node.inputs, axis=1), out.ints(*node.params[0])], node.outputs, axis=1)


@ONNX.add(TYPE)
def to_onnx(node: Node, out: Writer) -> None:
    """For each kernel position a Slice of the image and a Gather of its channels; all of them through a 1x1 Conv."""
    window, packed = node.layer.window, _packed(node)
    area, inputs = int(np.prod(window.kernel)), node.layer.channels // len(packed)
    order = [np.argsort(kept % area, kind="stable") for _, kept in packed]
    columns = [kept[places] + group * inputs * area for group, ((_, kept), places) in enumerate(zip(packed, order))]
    weights = [matrix[:, :-1][:, places] for (matrix, _), places in zip(packed, order)]
    bias = out.weight(np.concatenate([matrix[:, -1] for matrix, _ in packed]), "bias")
    for source, top in zip(node.inputs, node.outputs):
        padded = source
        if any(window.pad):
            padded = out.op("Pad", [source, out.ints(0, 0, *window.pad, 0, 0, *window.pad)])
        tops = []
        for group, (kept, weight) in enumerate(zip(columns, weights)):
            parts = [_seen(out, padded, window, position, kept[kept % area == position] // area)
                     for position in np.unique(kept % area)]
            stacked = parts[0] if len(parts) == 1 else out.op("Concat", parts, axis=1)
            rows = len(weight) * group
            shift = bias if len(packed) == 1 else out.op("Slice", [bias, out.ints(rows), out.ints(rows + len(weight))])
            kernel = out.weight(np.ascontiguousarray(weight)[..., None, None], f"columns{group}")
            tops.append(out.op("Conv", [stacked, kernel, shift], top if len(packed) == 1 else None))
        if len(tops) > 1:
            out.op("Concat", tops, top, axis=1)


def _seen(out: Writer, padded: str, window: object, position: int, channels: np.ndarray) -> str:
    """What a kernel position sees of some channels."""
    starts = [place * step for place, step in zip(np.unravel_index(position, window.kernel), window.dilation)]
    ends = [start - extent + 1 or np.iinfo(np.int32).max for start, extent in zip(starts, window.extent)]
    part = padded
    if any(starts) or any(end < 0 for end in ends) or any(step > 1 for step in window.stride):
        part = out.op("Slice", [padded, out.ints(*starts), out.ints(*ends), out.ints(2, 3), out.ints(*window.stride)])
    return out.op("Gather", [part, out.ints(*channels)], axis=1)

