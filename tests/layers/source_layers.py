"""Layers that make their own data, built from prototxt text without a net around them."""

from __future__ import annotations

from pathlib import Path

from caffe_compat import proto
from caffe_compat.layers import LAYERS, Context, Layer

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def make_layer(text: str, phase: str = "TRAIN", seed: int | None = 1, device: str = "cpu") -> Layer:
    """The one layer of the net `text`, set up; its top shapes are in `.shapes`."""
    spec = proto.parse_text(text, "NetParameter").message.layer[0]
    layer = LAYERS.get(spec.type)(spec, Context.make(phase == "TRAIN", device, seed), f"{spec.name} (net.prototxt:1)")
    layer.setup([])
    layer.shapes = layer.reshape([])
    return layer


def tops(layer: Layer) -> list:
    """The next batch as numpy arrays."""
    result = layer.forward()
    return [top.numpy() for top in (result if isinstance(result, tuple) else (result,))]
