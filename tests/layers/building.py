"""One layer by itself, without a net around it."""

from __future__ import annotations

import torch

from caffe_compat import proto
from caffe_compat.layers import LAYERS, Context, Layer, Shape


def make(type: str, *shapes: Shape, param: str = "", tops: int = 1, training: bool = True, seed: int = 0) -> Layer:
    """A layer called "it" for bottoms b0, b1, ... of `shapes` with tops t0, t1, ...; `param` is prototxt text."""
    bottoms = " ".join(f'bottom: "b{i}"' for i in range(len(shapes)))
    tops_text = " ".join(f'top: "t{i}"' for i in range(tops))
    text = f'layer {{ name: "it" type: "{type}" {bottoms} {tops_text} {param} }}'
    spec = proto.parse_text(text, "NetParameter").message.layer[0]
    layer = LAYERS.get(type)(spec, Context.make(training, seed=seed), "it (net.prototxt:1)")
    layer.setup(shapes)
    layer.top_shapes = layer.reshape(shapes)
    return layer


def gradient(top: torch.Tensor, *sources: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of the sum of `top` with respect to `sources`."""
    return torch.autograd.grad(top.sum(), sources)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values in float64 that want a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def refill(layer: Layer, seed: int = 0) -> list[torch.Tensor]:
    """Gives the layer's blobs normal values in float64, and returns their tensors, which want a gradient."""
    for i, blob in enumerate(layer.blobs):
        blob.tensor = randn(*blob.shape, seed=seed + i)
    return [blob.tensor for blob in layer.blobs]
