"""An ONNX file as a plain graph: constants in numpy, every shape known, and only nodes left that compute something.

What shape computations (Shape, Gather, Concat ... before a Reshape) and constant expressions come to is worked out while
reading, so that the translation sees numbers.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ..errors import CaffeError, ParseError
from ..layers import Shape
from .onnx_writer import SHAPE_KEY

#: The most values that anything may have: a file of a few bytes can ask for any number. A constant expression may come to
#: `MOST_FOLDED`, or some times what it is made of.
MOST_VALUES, MOST_FOLDED = 1 << 29, 1 << 22
#: Constants up to this many values are shown to the shape inference: shapes, axes and the like.
SHAPE_LIKE = 1024
DOMAINS = ("", "ai.onnx")
#: Operators that onnx defines by others and therefore infers nothing for.
SAME_SHAPE = ("MeanVarianceNormalization",)
OTHER_FLOATS = (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class Gap(Exception):
    """Why one node cannot be expressed in Caffe; the translation collects them all."""


@dataclass
class Node:
    """One operator: `inputs` and `outputs` are value names, "" for an input left out; `opset` the version it has."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int

    def __str__(self) -> str:
        return f'{self.op} "{self.name or next(iter(self.outputs), "")}"'

    def check(self) -> None:
        """Raises `Gap` for a node that no operator can be."""
        if not self.outputs or not self.outputs[0]:
            raise Gap("it has no output")

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.attributes.get(name, default)

    def input(self, index: int) -> str:
        """The name of an input, "" if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass
class OnnxGraph:
    """What a model computes, in order. `inputs` are without those that are constants; `shapes` hold every value's.

    `dynamic` names the inputs' axes (value, axis) that the file leaves open. `gaps` are the nodes that could not even be
    read, as (node, reason).
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    dynamic: set[tuple[str, int]] = field(default_factory=set)
    gaps: list[tuple[Node, str]] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        self.readers: dict[str, list[Node]] = defaultdict(list)

    def constant(self, node: Node, index: int) -> np.ndarray | None:
        """The value of a constant input, None if it is left out; `Gap` if it is computed."""
        name = node.input(index)
        if name and name not in self.constants:
            raise Gap(f'its input "{name}" is computed, and Caffe takes a constant there')
        return self.constants[name] if name else None

    def only_reader(self, value: str) -> Node | None:
        """The one node that reads a value which is no output, if there is just one."""
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 and value not in self.outputs else None


def read_graph(path: str | os.PathLike[str], shapes: Mapping[str, Shape] | None = None) -> OnnxGraph:
    """The graph in the ONNX file at `path`, for inputs of the given `shapes`.

    Where the file leaves an input's first axis open it is 1; other open axes must be given, unless the file says in its
    metadata what they were in Caffe, as ours do. Raises `ParseError` for a
    file that is no valid model, `CaffeError` for shapes that are missing or contradict the file.
    """
    name = os.fspath(path)
    model = _load(name)
    graph = model.graph
    initializers = {tensor.name: _array(tensor, name) for tensor in graph.initializer}
    result = OnnxGraph([value.name for value in graph.input if value.name not in initializers],
                       [value.name for value in graph.output], constants=initializers, name=graph.name)
    noted = {item.key: item.value for item in model.metadata_props}
    for value in graph.input:
        if value.name not in initializers:
            given = (shapes or {}).get(value.name) or _noted_shape(noted.get(f"{SHAPE_KEY}{value.name}", ""))
            result.shapes[value.name] = _input_shape(value, given, result, name)
    if strangers := set(shapes or ()) - set(result.inputs):
        raise CaffeError(f"{name}: has no input {', '.join(sorted(strangers))}; its inputs: {', '.join(result.inputs)}")
    _Reader(model, result, name).read()
    return result


def _load(path: str) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ParseError(f"cannot be read: {error.strerror or error}", path) from None
    except (DecodeError, ValueError) as error:
        raise ParseError(f"not an ONNX model: {error}", path) from None
    if not model.graph.output:
        raise ParseError("not an ONNX model: its graph has no outputs", path)
    graph = model.graph
    names = [graph.name, *(item.name for item in (*graph.input, *graph.output, *graph.initializer))]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(item.name for item in node.attribute)]
    if any(isinstance(name, bytes) for name in names):
        raise ParseError("not an ONNX model: it has names that are no text in UTF-8", path)
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise ParseError(f"its functions cannot be expanded: {error}", path) from None
    return model


def _array(tensor: onnx.TensorProto, path: str) -> np.ndarray:
    """The values of a tensor, in float32 if it holds other floats; external ones only from the model's own folder."""
    base = Path(path).resolve().parent
    where = f'tensor "{tensor.name}"'
    if any(dim < 0 for dim in tensor.dims):
        raise ParseError(f"{where} has the shape {list(tensor.dims)}", path)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        location = next((item.value for item in tensor.external_data if item.key == "location"), "")
        file = (base / location).resolve()
        if not location or not file.is_relative_to(base):
            raise ParseError(f'{where} has its values in "{location}", outside of the model\'s folder', path)
        if not file.is_file():
            raise ParseError(f'{where} has its values in "{location}", which is not there', path)
    try:
        values = numpy_helper.to_array(tensor, str(base))
        values = values.reshape(tuple(tensor.dims))
    except Exception as error:  # whatever numpy and onnx say of bytes that are not what they claim to be
        raise ParseError(f"{where} of shape {list(tensor.dims)} cannot be read: {error}", path) from None
    return values.astype(np.float32) if tensor.data_type in OTHER_FLOATS else values


def _noted_shape(text: str) -> Shape | None:
    words = text.split("x")
    return tuple(map(int, words)) if all(word.isdecimal() and len(word) < 10 for word in words) else None


def _input_shape(value: onnx.ValueInfoProto, given: Shape | None, graph: OnnxGraph, path: str) -> Shape:
    where = f'{path}: input "{value.name}"'
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        if given is None:
            raise CaffeError(f"{where} has no shape in the file; give it one")
        graph.dynamic |= {(value.name, axis) for axis in range(len(given))}
        return tuple(given)
    dims = value.type.tensor_type.shape.dim
    names = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
    text = " x ".join(map(str, names))
    if given is not None and len(given) != len(dims):
        raise CaffeError(f"{where} has {len(dims)} axes ({text}), but the shape given has {len(given)}")
    shape = []
    for axis, dim in enumerate(dims):
        size = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        if size is None:
            graph.dynamic.add((value.name, axis))
        wanted = given[axis] if given is not None else size if size is not None else 1 if axis == 0 else None
        if wanted is None:
            raise CaffeError(f"{where} is {text}: axis {axis} is open, and Caffe's layers need to know its size; give "
                             "the shape to convert for")
        if size is not None and wanted != size:
            raise CaffeError(f"{where} is {text} in the file, which does not allow the {wanted} given for axis {axis}")
        shape.append(wanted)
    return tuple(shape)


class _Reader:
    """Goes through the nodes in order: folds what is constant, infers the shapes of the rest."""

    def __init__(self, model: onnx.ModelProto, graph: OnnxGraph, path: str) -> None:
        self.model, self.graph, self.path = model, graph, path
        self.opsets = {imported.domain: imported.version for imported in model.opset_import}
        elements = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.types = {name: _in_float32(helper.make_tensor_type_proto(elements[name] or 1, shape))
                      for name, shape in graph.shapes.items()}
        for name, values in graph.constants.items():
            self._know(name, values)

    def read(self) -> None:
        """Fills the graph. Values that follow from a node that cannot be read are left out without another word."""
        known = set(self.types) | {""}
        for proto in self.model.graph.node:
            opset = self.opsets.get(proto.domain, self.opsets.get("", 1))
            attributes = {item.name: _attribute(item, self.path) for item in proto.attribute}
            node = Node(proto.op_type, proto.name, list(proto.input), list(proto.output), attributes, opset)
            if not all(name in known for name in node.inputs):
                continue
            try:
                self._read(node, proto)
            except Gap as gap:
                self.graph.gaps.append((node, str(gap)))
                continue
            known.update(node.outputs)
        unknown = [name for name in self.graph.outputs if name not in known]
        if unknown and not self.graph.gaps:
            raise ParseError(f"output {', '.join(unknown)} does not follow from the inputs", self.path)

    def _read(self, node: Node, proto: onnx.NodeProto) -> None:
        graph = self.graph
        node.check()
        if proto.domain not in DOMAINS:
            raise Gap(f'it is not of ONNX itself, but of the domain "{proto.domain}"')
        if any(isinstance(value, onnx.GraphProto) for value in node.attributes.values()):
            raise Gap("its graph within the graph is control flow, which Caffe does not have")
        if node.op == "Constant":
            graph.constants[node.outputs[0]] = _constant(node)
            self._know(node.outputs[0], graph.constants[node.outputs[0]])
            return
        if node.op == "Shape":
            shape = graph.shapes[node.inputs[0]]
            cut = shape[slice(node.get("start", 0), node.get("end"))]
            graph.constants[node.outputs[0]] = np.array(cut, np.int64)
            self._know(node.outputs[0], graph.constants[node.outputs[0]])
            return
        types = self._infer(node, proto)
        if all(name in graph.constants or not name for name in node.inputs):
            self._fold(node, proto, types)
            return
        for name, type in types.items():
            dims = type.tensor_type.shape.dim
            if not type.tensor_type.HasField("shape") or any(not dim.HasField("dim_value") for dim in dims):
                raise Gap(f'the shape of its output "{name}" depends on the values of its inputs')
            shape = tuple(dim.dim_value for dim in dims)
            if min(shape, default=1) < 1 or prod(shape) > MOST_VALUES:
                raise Gap(f'its output "{name}" would have the shape {shape}')
            self.types[name], graph.shapes[name] = type, shape
        for name in filter(None, node.inputs):
            graph.readers[name].append(node)
        graph.nodes.append(node)

    def _infer(self, node: Node, proto: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        try:
            schema = onnx.defs.get_schema(node.op, node.opset, "")
        except Exception:
            raise Gap(f"there is no such operator in opset {node.opset}") from None
        small = {name: numpy_helper.from_array(np.ascontiguousarray(values), name) for name in node.inputs
                 if name and (values := self.graph.constants.get(name)) is not None and values.size <= SHAPE_LIKE}
        types = {name: self.types[name] for name in node.inputs if name}
        opset = [helper.make_opsetid("", node.opset)]
        try:
            found = shape_inference.infer_node_outputs(schema, proto, types, small, opset_imports=opset)
        except Exception as error:
            raise Gap(f"its shapes do not fit: {str(error).strip().splitlines()[-1]}") from None
        if node.op in SAME_SHAPE:
            found.update({node.outputs[0]: self.types[node.inputs[0]]})
        if node.op in ("MaxPool", "AveragePool") and node.get("ceil_mode", 0):
            _drop_windows_in_padding(node, self.graph.shapes[node.inputs[0]], found)
        return {name: _in_float32(found[name]) for name in node.outputs if name in found}

    def _fold(self, node: Node, proto: onnx.NodeProto, types: dict[str, onnx.TypeProto]) -> None:
        """Computes a node whose inputs are all constants."""
        counts = [prod(dim.dim_value if dim.HasField("dim_value") else MOST_VALUES + 1
                       for dim in type.tensor_type.shape.dim) for type in types.values()]
        given = sum(self.graph.constants[name].size for name in node.inputs if name)
        if not counts or max(counts) > max(MOST_FOLDED, 4 * given):
            raise Gap("it is a constant of unknown or enormous size")
        feeds = {name: self.graph.constants[name] for name in node.inputs if name}
        inputs = [helper.make_value_info(name, self.types[name]) for name in feeds]
        outputs = [helper.make_value_info(name, type) for name, type in types.items()]
        model = helper.make_model(helper.make_graph([proto], "constant", inputs, outputs),
                                  opset_imports=[helper.make_opsetid("", node.opset)])
        try:
            values = ReferenceEvaluator(model).run(None, feeds)
        except Exception as error:
            raise Gap(f"it is constant, but cannot be computed: {error}") from None
        for name, value in zip(types, values):
            self.graph.constants[name] = np.asarray(value)
            self._know(name, self.graph.constants[name])

    def _know(self, name: str, values: np.ndarray) -> None:
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        self.graph.shapes[name] = values.shape


def _drop_windows_in_padding(node: Node, shape: Shape, types: dict[str, onnx.TypeProto]) -> None:
    """Rounded up, a last window that would start behind the bottom is not there: runtimes drop it, onnx's inference does
    not."""
    axes = len(shape) - 2
    strides, before = node.get("strides") or (1,) * axes, node.get("pads") or (0,) * axes
    for type in types.values():
        for dim, n, s, p in zip(type.tensor_type.shape.dim[2:], shape[2:], strides, before):
            if (dim.dim_value - 1) * s >= n + p:
                dim.dim_value -= 1


def _in_float32(type: onnx.TypeProto) -> onnx.TypeProto:
    """The type of a value, with float32 in the place of other floats, as constants are read."""
    if type.tensor_type.elem_type in OTHER_FLOATS:
        type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return type


def _attribute(item: onnx.AttributeProto, path: str) -> Any:
    if item.type == onnx.AttributeProto.TENSOR:
        return _array(item.t, path)
    value = helper.get_attribute_value(item)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _constant(node: Node) -> np.ndarray:
    for name, dtype in (("value", None), ("value_float", np.float32), ("value_floats", np.float32),
                        ("value_int", np.int64), ("value_ints", np.int64)):
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype)
    raise Gap("it holds no tensor of numbers")
