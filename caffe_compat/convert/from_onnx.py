"""From ONNX to Caffe: a graph of the usual CNN operators as a prototxt and weights that BVLC Caffe loads.

`FROM_ONNX` (from_onnx_net) has one entry an operator, a function that writes the Caffe layers for one node; the entries
are in the modules `from_onnx_*`. What Caffe has no layer for raises `Gap`, and a graph with gaps is refused as a whole,
with a list of all of them. Only types and fields of BVLC Caffe are used.

Blobs keep the names of ONNX's values, layers those of its nodes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import hdf5, proto
from ..errors import CaffeError
from ..layers import Shape
from ..net import Net
from ..proto import BVLC, Document
from . import from_onnx_layers, from_onnx_math, from_onnx_pooling, from_onnx_shape, from_onnx_windows  # noqa: F401  (they register)
from .from_onnx_graph import read_graph
from .from_onnx_net import FROM_ONNX, ConversionError, Translation
from .onnx_run import run_onnx

__all__ = ["FROM_ONNX", "ConversionError", "compare_with_onnx", "convert_from_onnx", "read_onnx"]


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


def convert_from_onnx(path: str | os.PathLike[str], folder: str | os.PathLike[str], *, with_hdf5: bool = False,
                      shapes: Mapping[str, Shape] | None = None, check: bool = True) -> dict[str, float]:
    """Writes `<model>.prototxt` and `<model>.caffemodel` (and `.caffemodel.h5`) into `folder`.

    With `check` the written net is run on random inputs beside the ONNX model; returned is, for each output, the largest
    difference relative to the largest value. `CaffeError` where one is above 1e-4. In HDF5 a layer's name is that of a
    group, where BVLC Caffe cannot take a "/": with `with_hdf5`, layers are renamed to have "_" there.
    """
    document = read_onnx(path, shapes)
    if with_hdf5:
        _rename_for_groups(document.message)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffeError(f"{folder}: cannot be made a folder: {error.strerror}") from None
    stem = str(target / Path(path).stem)
    definition = type(document.message)()
    definition.CopyFrom(document.message)
    for layer in definition.layer:
        layer.ClearField("blobs")
    proto.write_binary(f"{stem}.caffemodel", document)
    if with_hdf5:
        hdf5.write_weights(f"{stem}.caffemodel.h5", document)
    proto.write_text(f"{stem}.prototxt", definition)
    return compare_with_onnx(f"{stem}.prototxt", f"{stem}.caffemodel", path) if check else {}


def _rename_for_groups(message: Any) -> None:
    taken = {layer.name for layer in message.layer}
    for layer in message.layer:
        if "/" in layer.name:
            name = layer.name.replace("/", "_")
            while name in taken:
                name += "_"
            taken.add(name)
            layer.name = name


def compare_with_onnx(model: str, weights: str, onnx_path: str | os.PathLike[str], tolerance: float = 1e-4,
                      seed: int = 0) -> dict[str, float]:
    """For every output, the largest difference between a Caffe net and an ONNX model on random inputs, relative to the
    largest value; `CaffeError` where one is above `tolerance`."""
    net = Net(model, keep_blobs=False)
    net.copy_from(weights)
    rng = np.random.RandomState(seed)
    for name in net.inputs:
        net.blobs[name].data[...] = rng.standard_normal(net.blobs[name].shape)
    expected = run_onnx(onnx_path, {name: net.blobs[name].data for name in net.inputs})
    net.forward()
    errors = {}
    for name, values in expected.items():
        found = net.blobs[name].data
        if found.shape != values.shape:
            raise CaffeError(f'{model}: "{name}" has the shape {found.shape}, in {os.fspath(onnx_path)} {values.shape}')
        scale = float(np.abs(values).max()) if values.size else 0.0
        errors[name] = float(np.abs(found - values).max()) / (scale or 1.0) if values.size else 0.0
        if not errors[name] <= tolerance:
            raise CaffeError(f'{model}: "{name}" differs from {os.fspath(onnx_path)} by {errors[name]:.2g} of its '
                             f"largest value, {scale:.4g}; allowed is {tolerance:g}")
    return errors
