"""Passes that compute: `fold` takes scales and shifts into the products next to them, `preprocess` what images need first.

Both are exact but for rounding: what they cannot do exactly they leave as it is. Sums are taken in double precision.
"""

from __future__ import annotations

import numpy as np

from ..errors import NetError
from ..layers import LAYERS, Context
from ..layers.norm import BatchNorm
from .graph import Graph, Node, Pass
from .targets import Options

#: Layers that multiply by weights: (output channels, input channels...) but for Deconvolution.
PRODUCTS = ("Convolution", "Deconvolution", "InnerProduct")

Affine = tuple[np.ndarray, np.ndarray]


def fold(graph: Graph) -> None:
    """Takes BatchNorm, Scale, Bias and linear Power layers into a product before or after them, or into one another.

    After a product: always. Before one: where it pads with zeros, only if nothing is added (its zeros would have to be
    shifted too). Not where somebody else reads what lies between, nor where parameters are shared. What remains of
    several in a row is one Scale. Raises `NetError` for a net in the TRAIN phase.
    """
    if graph.training:
        raise NetError(f"{graph.name}: folding is for inference; convert the net in the TEST phase, or without folding")
    changed = True
    while changed:
        changed = any([_fold_into_neighbour(graph, node) for node in list(graph.nodes) if node in graph.nodes])


def _fold_into_neighbour(graph: Graph, node: Node) -> bool:
    affine = affine_of(node)
    if affine is None or graph.is_shared(node):
        return False
    source = graph.producer(node.inputs[0])
    follows = source is not None and graph.only_reader(node.inputs[0]) is node
    if follows and _can_take(graph, source) and _scale_outputs(source, *affine):
        source.outputs = node.outputs
        graph.nodes.remove(node)
        return True
    reader = graph.only_reader(node.outputs[0])
    if reader is not None and _can_take(graph, reader) and _scale_inputs(reader, *affine):
        reader.inputs = [node.inputs[0]]
        graph.nodes.remove(node)
        return True
    return follows and _join(graph, source, node, affine)


def _can_take(graph: Graph, node: Node) -> bool:
    """Whether a node is a product with weights of its own, over one bottom."""
    return (node.type in PRODUCTS and len(node.inputs) == 1 and not graph.is_shared(node)
            and (node.layer.axis if node.type != "InnerProduct" else node.param.axis) == 1)


def affine_of(node: Node) -> Affine | None:
    """(scale, shift) of each channel (axis 1) if that is all a layer does, else None."""
    shape = node.in_shapes[0] if node.in_shapes else ()
    if len(shape) < 2 or len(node.inputs) != 1:
        return None
    ones, zeros = np.ones(shape[1]), np.zeros(shape[1])
    if isinstance(node.layer, BatchNorm) and not node.layer.by_batch:
        mean, variance, divisor = (array.astype(np.float64) for array in node.params)
        weight = 1 / divisor if divisor[0] else np.zeros(1)
        scale = 1 / np.sqrt(variance * weight + np.float64(node.param.eps))
        return scale, -mean * weight * scale
    if node.type == "Power" and node.param.power == 1:
        return ones * node.param.scale, ones * node.param.shift
    if node.type not in ("Scale", "Bias"):
        return None
    operand = node.params[0].shape
    if operand and (operand != shape[1:2] or node.param.axis % len(shape) != 1):
        return None
    arrays = [array.astype(np.float64) for array in node.params]
    if node.type == "Bias":
        return ones, zeros + arrays[0]
    return ones * arrays[0], zeros + (arrays[1] if len(arrays) > 1 else 0)


def _scale_outputs(node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """y -> scale * y + shift, in the weights and the bias of a product."""
    if node.type == "InnerProduct" and len(node.out_shapes[0]) != 2:
        return False
    weight, groups = node.params[0].astype(np.float64), _groups(node)
    if node.type == "Deconvolution":  # (channels, outputs / groups, kernel...)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        weight = (by_group * _aligned(scale.reshape(groups, 1, -1), by_group)).reshape(weight.shape)
    elif node.type == "InnerProduct" and node.param.transpose:
        weight = weight * scale
    else:
        weight = weight * _aligned(scale, weight)
    bias = node.params[1] if len(node.params) > 1 else 0
    _set(node, weight, bias * scale + shift)
    return True


def _scale_inputs(node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    """x -> scale * x + shift before a product, in its weights and bias; False where that is not exact."""
    if shift.any() and (node.type == "Deconvolution" or (node.type == "Convolution" and any(node.layer.window.pad))):
        return False
    return _transform_inputs(node, np.diag(scale), shift)


def _transform_inputs(node: Node, matrix: np.ndarray, shift: np.ndarray) -> bool:
    """x -> matrix x + shift over the channels before a product, in its weights and bias."""
    weight, groups = node.params[0].astype(np.float64), _groups(node)
    diagonal = np.diag(matrix)
    mixes = np.count_nonzero(matrix) > np.count_nonzero(diagonal)
    if mixes and (groups > 1 or node.type != "Convolution"):
        return False
    added = np.zeros(node.param.num_output)
    if node.type == "Deconvolution":
        weight = weight * _aligned(diagonal, weight)
    elif node.type == "InnerProduct":
        rows = weight.T if node.param.transpose else weight
        repeats = rows.shape[1] // len(shift)
        added, rows = rows @ np.repeat(shift, repeats), rows * np.repeat(diagonal, repeats)
        weight = rows.T if node.param.transpose else rows
    else:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        added = (by_group * _aligned(shift.reshape(groups, 1, -1), by_group)).reshape(len(weight), -1).sum(1)
        if mixes:
            weight = np.moveaxis(np.tensordot(weight, matrix, (1, 0)), -1, 1)
        else:
            weight = (by_group * _aligned(diagonal.reshape(groups, 1, -1), by_group)).reshape(weight.shape)
    bias = node.params[1] if len(node.params) > 1 else 0
    _set(node, weight, bias + added if added.any() or len(node.params) > 1 else None)
    return True


def _join(graph: Graph, source: Node, node: Node, affine: Affine) -> bool:
    """Makes one Scale of two nodes of which one is a Scale and neither is next to a product that could take it."""
    before = affine_of(source)
    if before is None or graph.is_shared(source) or "Scale" not in (source.type, node.type):
        return False
    kept = node if node.type == "Scale" else source
    scale, shift = before[0] * affine[0], before[1] * affine[0] + affine[1]
    kept.change(axis=1, num_axes=1, bias_term=True)
    kept.params = [scale.astype(np.float32), shift.astype(np.float32)]
    kept.owners = [(kept.name, 0), (kept.name, 1)]
    kept.inputs, kept.outputs = source.inputs, node.outputs
    graph.nodes.remove(source if kept is node else node)
    return True


def _groups(node: Node) -> int:
    return 1 if node.type == "InnerProduct" else node.param.group


def _aligned(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`values` with axes of size 1 appended, to broadcast over the axes of `weight`."""
    return values.reshape(values.shape + (1,) * (weight.ndim - values.ndim))


def _set(node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
    node.params = [weight.astype(np.float32)]
    node.owners = [(node.name, 0)]
    if bias is not None:
        node.params.append(np.asarray(bias, np.float32))
        node.owners.append((node.name, 1))
        node.change(bias_term=True)


def preprocess(options: Options) -> Pass:
    """A pass after which images (inputs of four axes) are given as they are: what `Options.preprocessed` does is built in.

    It goes into the convolution that reads them if nobody else does and it is exact there; else a convolution of one
    position, called `preprocess`, does it.
    """

    def build_in(graph: Graph) -> None:
        images = [value for value, shape in graph.inputs.items() if len(shape) == 4]
        if not images:
            raise NetError(f"{graph.name}: no input has four axes, so there are no images to preprocess")
        for value in images:
            matrix, shift = options.as_affine(graph.inputs[value][1])
            reader = graph.only_reader(value)
            padded = reader is not None and reader.type == "Convolution" and any(reader.layer.window.pad)
            exact = reader is not None and _can_take(graph, reader) and not (padded and shift.any())
            if not exact or not _transform_inputs(reader, matrix, shift):
                _insert(graph, value, matrix, shift)

    return build_in


def _insert(graph: Graph, value: str, matrix: np.ndarray, shift: np.ndarray) -> None:
    """Puts a 1 x 1 convolution behind an input."""
    taken = {*graph.inputs, *(name for node in graph.nodes for name in (node.name, *node.outputs))}
    name = "preprocess"
    while name in taken or f"{value}_{name}" in taken:
        name += "_"
    top = f"{value}_{name}"
    spec = graph.dialect.message("LayerParameter")(name=name, type="Convolution", bottom=[value], top=[top])
    spec.convolution_param.num_output = len(matrix)
    spec.convolution_param.kernel_size.append(1)
    layer = LAYERS.get("Convolution")(spec, Context.make(graph.training), name)
    shape = graph.inputs[value]
    layer.setup([shape])
    for node in graph.nodes:
        node.inputs = [top if read == value else read for read in node.inputs]
    graph.nodes.insert(0, Node(layer, [value], [top], [shape], [shape],
                               [matrix.astype(np.float32)[:, :, None, None], shift.astype(np.float32)],
                               [(name, 0), (name, 1)]))
