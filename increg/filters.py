"""Which parameters belong to a layer's filters: weight, bias, and the Scale that follows its BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from caffe_compat.net import Net

from .importance import Filters
from .state import LayerState

#: Layers that work on each value by itself.
NEURONS = frozenset(("AbsVal", "BNLL", "Clip", "Dropout", "ELU", "Exp", "Log", "PReLU", "Power", "ReLU", "Sigmoid", "Swish",
                     "TanH", "Threshold"))


@dataclass(frozen=True)
class Places:
    """Indices among the net's learnable blobs; None where there is no such parameter.

    `straight` tells whether nothing but BatchNorm lies between the layer and its Scale, so that what the Scale makes 0 is 0
    whatever the filter does.
    """

    weight: int
    bias: int | None
    scale: int | None
    shift: int | None
    straight: bool


def places(net: Net, layers: Sequence[LayerState]) -> list[Places]:
    """Where each layer's filters are. A Scale is found behind a BatchNorm with nothing but neurons before it."""
    index = {id(learnable.blob): i for i, learnable in enumerate(net.learnable)}
    position = {layer.name: i for i, layer in enumerate(net.layers)}

    def of(blobs: Sequence[object], number: int) -> int | None:
        return index.get(id(blobs[number])) if len(blobs) > number else None

    found = []
    for state in layers:
        own = net.layer_dict[state.name].blobs
        blobs, straight = _scale_behind(net, position[state.name])
        found.append(Places(state.learnable, of(own, 1), of(blobs, 0), of(blobs, 1), straight))
    return found


def _scale_behind(net: Net, position: int) -> tuple[Sequence[object], bool]:
    """The blobs of that Scale, none if there is none, and whether it is `straight`."""
    carrier, normalized, straight = net.top_names[net.layers[position].name][0], False, True
    for layer in net.layers[position + 1:]:
        if carrier not in layer.spec.bottom:
            continue
        if layer.type == "Scale" and normalized and len(layer.spec.bottom) == 1:
            return (layer.blobs, straight) if layer.per_channel else ((), straight)
        if layer.type not in NEURONS and layer.type != "BatchNorm":
            break
        normalized |= layer.type == "BatchNorm"
        straight &= layer.type == "BatchNorm"
        carrier = net.top_names[layer.name][0]
    return (), straight


def cut(layer: LayerState, place: Places, values: Sequence[Tensor | None]) -> Filters:
    """The filters left of a layer, without its pruned columns, from `values` (one for each learnable blob; its tensor, or a
    statistic of it). A missing value counts as zeros. Waits for the device."""
    rows = (~layer.masks.rows).nonzero().squeeze(1)
    weight = values[place.weight]
    weight = layer.layout.matrix(layer.weight.tensor.new_zeros(layer.layout.shape) if weight is None else weight)[rows]
    if layer.layout.group == 1:
        weight = weight[:, (~layer.masks.columns[0]).nonzero().squeeze(1)]
    else:
        weight = weight * (~layer.masks.columns).repeat_interleave(layer.layout.rows // layer.layout.group, 0)[rows]

    def part(number: int | None) -> Tensor | None:
        if number is None:
            return None
        return weight.new_zeros(len(rows)) if values[number] is None else values[number][rows]

    return Filters(weight, part(place.bias), part(place.scale))
