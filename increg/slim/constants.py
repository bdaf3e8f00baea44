"""What is the same everywhere: the channels that have one value at every pixel of every image, and that value.

A pruned row writes its bias, which normalization, shift and activation turn into another constant. Values are followed
from layer to layer as the net computes them: a layer that treats every value by itself is run on the constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net
from caffe_compat.registry import Registry

from ..channels import Channels
from .matrices import Matrix

#: A layer and the values of its bottoms' channels to those of its top's; NaN stands for one that varies.
Rule = Callable[[Layer, list[Tensor]], Tensor]
RULES: Registry[Rule] = Registry("rule for constant channels")

#: Layers that compute each value from the one in its place and from parameters of its channel.
ELEMENTWISE = ("AbsVal", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Exp", "Log", "PReLU", "Power", "ReLU", "Scale",
               "Sigmoid", "Swish", "TanH", "Threshold")


def constants(net: Net, channels: Channels, matrices: dict[str, Matrix]) -> dict[str, list[Tensor]]:
    """By layer name, for each bottom the values of its channels, NaN for those that vary. `net` is in the TEST phase."""
    values: dict[str, Tensor] = {}
    found = {}
    for layer in net.layers:
        bottoms = found[layer.name] = [values[name] for name in layer.spec.bottom]
        tops = channels.tops[layer.name]
        if layer.name in matrices:
            results = [of_rows(matrices[layer.name], bottom) for bottom in bottoms]
        elif layer.type == "Split":
            results = bottoms * len(tops)
        elif layer.type == "Slice":
            sizes = [len(ids) for ids in tops]
            results = list(bottoms[0].split(sizes)) if sum(sizes) == len(bottoms[0]) else bottoms * len(tops)
        elif layer.type == "Concat" and sum(map(len, bottoms)) == len(tops[0]):
            results = [torch.cat(bottoms)]
        elif layer.type in RULES and _same_channels(layer, channels):
            result = RULES.get(layer.type)(layer, bottoms)
            results = [result.repeat_interleave(len(tops[0]) // len(result))]
        else:
            results = [_varying(len(ids)) for ids in tops]
        for name, result in zip(net.top_names[layer.name], results):
            values[name] = result.where(result.isfinite(), torch.nan)
    return found


def of_rows(matrix: Matrix, bottom: Tensor) -> Tensor:
    """The constants that the rows of a matrix write."""
    inputs = bottom.repeat_interleave(matrix.reads.size // len(bottom)).reshape(matrix.reads.shape)
    varies = inputs.isnan() | ((inputs != 0) if matrix.padded else torch.zeros(()).bool())
    steady = ~(matrix.used & varies[:, None]).any(2) if varies.any() else torch.ones(matrix.writes.shape, dtype=torch.bool)
    result = torch.full(matrix.writes.shape, torch.nan)
    result[steady] = folded(matrix, torch.where(varies, 0, inputs))[steady]
    result = result.flatten()
    return result if matrix.bias is None else result + matrix.bias


def folded(matrix: Matrix, inputs: Tensor) -> Tensor:
    """(group, rows): what inputs that have the values `inputs` (group, inputs) everywhere add to each row."""
    total = torch.zeros(matrix.writes.shape, dtype=torch.float64)
    for g in range(len(inputs)):
        some = inputs[g].nonzero().flatten()
        if len(some):
            total[g] = matrix.weight[g][:, some].double().sum(-1) @ inputs[g, some].double()
    return total.float()


def _same_channels(layer: Layer, channels: Channels) -> bool:
    """Whether a layer's only top has the channels of its bottoms, each once or once a pixel."""
    bottoms, tops = channels.bottoms[layer.name], channels.tops[layer.name]
    read = bottoms[:1] if layer.type == "Crop" else bottoms
    if len(tops) != 1 or any(not np.array_equal(ids, read[0]) for ids in read):
        return False
    return len(tops[0]) % len(read[0]) == 0 and np.array_equal(tops[0], read[0].repeat(len(tops[0]) // len(read[0])))


def _varying(count: int) -> Tensor:
    return torch.full((count,), torch.nan)


# -- rules ------------------------------------------------------------------------------------------------------------

def _elementwise(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    """Runs the layer on one pixel."""
    if len(bottoms) > 1 or getattr(layer, "by_batch", False):
        return _varying(len(bottoms[0]))
    pixel = bottoms[0].reshape(1, -1, *[1] * len(getattr(layer, "operand_view", (0, 0, 0))[1:]))
    with torch.no_grad():
        result = layer.forward(pixel.clone()).flatten()
    return result.where(~bottoms[0].isnan(), torch.nan)


for _type in ELEMENTWISE:
    RULES.add(_type)(_elementwise)


@RULES.add("Pooling")
def _pooling(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    """Means over windows that reach beyond the border are smaller; how 0 is pooled does not depend on that."""
    param = layer.param
    steady = layer.method == "MAX" or (layer.method == "AVE" and not (param.pad or param.pad_h or param.pad_w))
    return bottoms[0] if steady else torch.where(bottoms[0] == 0, 0, torch.nan)


@RULES.add("LRN")
def _lrn(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    return torch.where(bottoms[0] == 0, 0, torch.nan)


@RULES.add("Eltwise")
def _eltwise(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    result = layer.forward(*bottoms)
    if layer.param.operation == layer.param.PROD:  # nothing survives a factor of 0
        return torch.where(torch.stack(bottoms).eq(0).any(0), 0, result)
    return result.where(~torch.stack(bottoms).isnan().any(0), torch.nan)


@RULES.add("Crop")
@RULES.add("Flatten")
@RULES.add("Reshape")
def _first(layer: Layer, bottoms: list[Tensor]) -> Tensor:
    return bottoms[0]
