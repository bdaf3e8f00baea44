"""Conversion of whole nets to PyTorch and other formats, checked blob by blob, and back.

    convert("deploy.prototxt", "net.caffemodel", "torch", "out")     # writes out/model.py and out/weights.pth
    module = to_torch("deploy.prototxt", "net.caffemodel")           # the same as an nn.Module in memory
    to_caffe("out", "trained")                                       # back: trained.prototxt, trained.caffemodel

A net becomes a `Graph`, passes change it, and a `Target` writes it. A target has a registry with one entry a layer type;
`support` tells which it has. To convert a type of one's own, one adds an entry (docs/convert-types.md).
"""

from . import (  # noqa: F401
    onnx_target,
    torch_formats,
    torch_loss,
    torch_neuron,
    torch_norm,
    torch_recurrent,
    torch_shape,
    torch_ssd,
    torch_target,
    torch_vision,
)
from .api import to_exported, to_onnx, to_safetensors, to_torch
from .conversion import IMPORTERS, Importer, Report, convert, open_net, to_caffe
from .graph import Graph, Node
from .targets import TARGETS, Options, Target, Unsupported, UnsupportedLayer, limited, support
from .torch_module import TORCH, Module, module, weighted

__all__ = [
    "IMPORTERS", "TARGETS", "TORCH", "Graph", "Importer", "Module", "Node", "Options", "Report", "Target",
    "Unsupported", "UnsupportedLayer", "convert", "limited", "module", "open_net", "support", "to_caffe", "to_exported",
    "to_onnx", "to_safetensors", "to_torch", "weighted",
]
