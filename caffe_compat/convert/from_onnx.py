"""From ONNX to Caffe: a graph of the usual CNN operators as a prototxt and weights that BVLC Caffe loads.

`FROM_ONNX` (from_onnx_net) has one entry an operator, a function that writes the Caffe layers for one node; the entries
are in the modules `from_onnx_*`. What Caffe has no layer for raises `Gap`, and a graph with gaps is refused as a whole,
with a list of all of them. Only types and fields of BVLC Caffe are used.

Blobs keep the names of ONNX's values, layers those of its nodes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..layers import Shape
from ..proto import BVLC, Document
from . import from_onnx_layers, from_onnx_math, from_onnx_pooling, from_onnx_shape, from_onnx_windows  # noqa: F401  (they register)
from .from_onnx_graph import read_graph
from .from_onnx_net import FROM_ONNX, ConversionError, Translation

__all__ = ["FROM_ONNX", "ConversionError", "read_onnx"]


def read_onnx(path: str | os.PathLike[str], shapes: Mapping[str, Shape] | None = None) -> Document:
    """The ONNX model at `path` as a NetParameter document of BVLC Caffe, blobs included.

    `shapes` are those of inputs with open axes (an open first axis is 1 by default). Raises `ConversionError` with all
    gaps where Caffe cannot express the graph, `ParseError` for a file that is no model.
    """
    graph = read_graph(path, shapes)
    translation = Translation(graph)
    translation.run()
    if graph.gaps:
        raise ConversionError(os.fspath(path), graph.gaps)
    return Document(translation.message, BVLC, None, {}, translation.arrays)
