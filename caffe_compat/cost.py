"""What a net costs, layer by layer: parameters, multiply-adds for one sample, memory of its tops.

Multiply-adds are those of Convolution, Deconvolution and InnerProduct layers, one for each use of a weight; biases, and
all other layers, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .layers import Layer
from .net import Net

#: The rule, to print with the number.
RULE = "multiply-adds of Convolution, Deconvolution and InnerProduct for one sample, biases not counted"


@dataclass(frozen=True)
class LayerCost:
    """One layer: its shapes, values in parameter blobs, multiply-adds for one sample, bytes of the tops it makes."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    shapes: list[tuple[int, ...]]
    parameters: int
    multiply_adds: int
    memory: int


def layer_costs(net: Net) -> list[LayerCost]:
    """The cost of every layer in the order they run; parameters shared between layers count where they come first."""
    seen: set[int] = set()
    costs = []
    for layer in net.layers:
        tops = net.top_names[layer.name]
        shapes = [net.blobs[name].shape for name in tops]
        made = [shape for name, shape in zip(tops, shapes) if name not in layer.spec.bottom]
        own = [blob for blob in layer.blobs if id(blob) not in seen]
        seen.update(id(blob) for blob in own)
        costs.append(LayerCost(layer.name, layer.type, list(layer.spec.bottom), tops, shapes,
                               sum(blob.count for blob in own), multiply_adds(layer, net), 4 * sum(map(prod, made))))
    return costs


def multiply_adds(layer: Layer, net: Net) -> int:
    """Every weight once for each place it is used at: an output position, or an input position of a Deconvolution."""
    if layer.type not in ("Convolution", "Deconvolution", "InnerProduct"):
        return 0
    if layer.type == "InnerProduct":
        return layer.blobs[0].count
    blob = layer.spec.bottom[0] if layer.type == "Deconvolution" else net.top_names[layer.name][0]
    kernel_axes = len(layer.blobs[0].shape) - 2
    shape = net.blobs[blob].shape
    return layer.blobs[0].count * prod(shape[len(shape) - kernel_axes:]) * len(layer.spec.bottom)
