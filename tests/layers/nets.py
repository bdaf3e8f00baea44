"""Helpers for tests of single layers: a net of one layer from its text."""

from __future__ import annotations

import numpy as np

from caffe_compat import proto
from caffe_compat.net import Net


def one_layer(layer: str, *shapes: tuple[int, ...], phase: str = "TRAIN", dialect=None) -> Net:
    """A net of one layer called "layer" on bottoms b0, b1, ... of the given shapes; `layer` is the rest of its text."""
    inputs = "".join(f'layer {{ name: "in{i}" type: "Input" top: "b{i}" input_param {{ {shape_text(shape)} }} }}\n'
                     for i, shape in enumerate(shapes))
    bottoms = " ".join(f'bottom: "b{i}"' for i in range(len(shapes)))
    text = f'force_backward: true\n{inputs}layer {{ name: "layer" {bottoms} {layer} }}\n'
    return Net(proto.parse_text(text, "NetParameter", dialect=dialect), phase, seed=3)


def shape_text(shape: tuple[int, ...]) -> str:
    """`shape { dim: 2 dim: 3 }`."""
    return f"shape {{ {' '.join(f'dim: {d}' for d in shape)} }}"


def run(net: Net, *bottoms: np.ndarray) -> np.ndarray:
    """The first top of a forward pass on the given bottoms."""
    for i, values in enumerate(bottoms):
        net.blobs[f"b{i}"].data[...] = values
    net.forward()
    return net.blobs[net.top_names["layer"][0]].data.copy()


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded normal numbers."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
