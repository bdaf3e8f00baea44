"""The ONNX target: the export graph in standard operators of one opset, checked as it is written.

Axes stay open where the net allows it: the number of images ("N"), and the sizes of a fully convolutional net's images.
Which do is found out by asking the layers for their shapes with other sizes. ONNX files are for inference; weights in
float16 (`Options.half`) halve the file, what is computed stays float32.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import numpy as np

from ..errors import NetError
from ..layers import Shape
from ..proto import Document
from . import onnx_common, onnx_neuron, onnx_norm, onnx_pooling, onnx_recurrent, onnx_ssd, onnx_vision  # noqa: F401
from .conversion import IMPORTERS, Importer
from .graph import Graph
from .onnx_run import run_onnx
from .onnx_writer import ONNX, Fixed, Writer, require_onnx
from .targets import TARGETS, Options, Target, Unsupported, emitter

for _type in ("Accuracy", "ContrastiveLoss", "EuclideanLoss", "HingeLoss", "InfogainLoss", "MultinomialLogisticLoss",
              "SigmoidCrossEntropyLoss", "SoftmaxWithLoss"):
    ONNX.add(_type)(Unsupported("it compares with labels, and ONNX files are for inference; leave it out"))
ONNX.add("Python")(Unsupported("it is code of the user's; replace the layer, or register an emitter for its net"))


def write(graph: Graph, path: str | os.PathLike[str], options: Options) -> None:
    """Writes the graph to the ONNX file at `path`; `UnsupportedLayer` for a layer that has no equivalent."""
    writer = translate(graph, options.half, options.rename)
    try:
        require_onnx().checker.check_model(writer.model(with_weights=False), full_check=True)
    except Exception as error:
        raise NetError(f"{os.fspath(path)}: the operators do not fit together, which they should: {error}") from error
    writer.save(path)


def run(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the file at `path` by onnxruntime (or by onnx's reference, without it).

    An input that a layer in place overwrites is not called as its blob, whose last version has that name.
    """
    return run_onnx(path, {**inputs, **{f"{name}.v0": values for name, values in inputs.items()}})


def translate(graph: Graph, half: bool = False, rename: Mapping[str, str] | None = None) -> Writer:
    """The operators for all nodes, with as many axes open as can be."""
    for candidate in ("NHW", "N", ""):
        axes = open_axes(graph, candidate)
        if axes is None:
            continue
        writer = Writer(graph, axes, half, rename)
        try:
            for node in graph.nodes:
                writer.emit(node, emitter(ONNX, node, "ONNX"))
        except Fixed:
            continue
        return writer
    raise NetError(f"{graph.name}: a layer asks for fixed sizes where all are fixed")  # cannot be


def open_axes(graph: Graph, wanted: str) -> dict[str, dict[int, str]] | None:
    """For every value, the axes that change with the inputs' axes `wanted`, and a name for the size; None if the net
    does not allow that.

    "N" is the first axis of all inputs of several axes, "H" and "W" those of the single image that a net takes.
    """
    shapes = [shape for shape in graph.inputs.values() if len(shape) > 1]
    if "H" in wanted and (len(graph.inputs) != 1 or [len(shape) for shape in shapes] != [4]):
        return None
    found: dict[str, dict[int, str]] = {}
    for letter in wanted:
        axis = "N.HW".index(letter)
        if len({shape[axis] for shape in shapes}) != 1:
            return None
        trial = {value: _longer(shape, axis) if len(shape) > 1 else shape for value, shape in graph.inputs.items()}
        before, after = _shapes(graph, graph.inputs), _shapes(graph, trial)
        if before is None or after is None or any(len(before[value]) != len(after[value]) for value in before):
            return None
        old, new = shapes[0][axis], _longer(shapes[0], axis)[axis]
        for value, shape in before.items():
            for k, sizes in enumerate(zip(shape, after[value])):
                if sizes[0] != sizes[1]:
                    found.setdefault(value, {}).setdefault(k, letter if sizes == (old, new) else f"{value}/{k}")
    return found


def _longer(shape: Shape, axis: int) -> Shape:
    """A shape with another size: larger by so much that strides do not hide it, and odd where it was even."""
    return (*shape[:axis], shape[axis] + 1 if axis == 0 else 3 * shape[axis] + 193, *shape[axis + 1:])


def _shapes(graph: Graph, inputs: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """The shape of every value for other inputs; None if a layer refuses. Layers are asked on copies, which keep it."""
    shapes = dict(inputs)
    for node in graph.nodes:
        try:
            tops = copy.copy(node.layer).reshape([shapes[value] for value in node.inputs])
        except NetError:
            return None
        shapes.update(zip(node.outputs, map(tuple, tops)))
    return shapes


def read(path: str, inputs: Mapping[str, Shape]) -> Document:
    """The NetParameter, with its blobs, that an ONNX file is in Caffe; see `from_onnx`."""
    require_onnx()
    from .from_onnx import read_onnx

    return read_onnx(path, inputs)


IMPORTERS.add(".onnx")(Importer(read, run_onnx))
TARGETS.add("onnx")(Target("onnx", "an ONNX file, for inference", ONNX, write, run, inference=True))
