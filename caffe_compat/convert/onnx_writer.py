"""What emitters write an ONNX graph with: `Writer`, and `ONNX`, the registry of emitters.

Weights stay in the net's memory until they are written: `save` puts them straight from there into the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..errors import CaffeError, NetError
from ..layers import Shape
from ..proto import replacing
from ..registry import Registry
from .graph import Graph, Node

#: Opset 17 is what every runtime of the last years reads (ONNX 1.12, 2022), and nothing Caffe has needs a later one.
OPSET = 17
#: The format's version of that release.
IR_VERSION = 8
#: protobuf's limit for one message.
LARGEST_FILE = (1 << 31) - 1
#: Before an input's name: the metadata with its shape as the net has it, where the file leaves axes open.
SHAPE_KEY = "input_shape/"
#: TensorProto.FLOAT.
FLOAT = 1
HALF_MAX = float(np.finfo(np.float16).max)

#: (node, out): writes the operators for a node, its outputs under their own names.
ONNX: Registry[Callable[[Node, Writer], None]] = Registry("ONNX emitter")


def require_onnx() -> Any:
    """The package onnx, which is asked for only where it is used."""
    try:
        import onnx
    except ImportError:
        raise CaffeError("ONNX files need the package onnx; install it with: pip install 'caffe-compat[convert]'") from None
    return onnx


class Fixed(Exception):
    """Raised by an emitter whose operators hold for sizes known now, not for those that are left open."""


class Writer:
    """An ONNX graph in the making.

    `open_axes` are, for each value, the axes whose size is not fixed, and a name for it; `half` and `rename` are those of
    `Options`.
    """

    def __init__(self, graph: Graph, open_axes: dict[str, dict[int, str]], half: bool = False,
                 rename: Mapping[str, str] | None = None) -> None:
        self.graph = graph
        self.open_axes = open_axes
        self.half = half
        self.rename = rename or {}
        self.onnx = require_onnx()
        self.nodes: list[Any] = []
        #: By name: the values, and the type they are written in.
        self.tensors: dict[str, tuple[np.ndarray, np.dtype]] = {}
        self._values = {value for node in graph.nodes for value in (*node.inputs, *node.outputs)} | set(graph.inputs)
        self._node_names: set[str] = set()
        self._node: Node | None = None
        self._small: dict[tuple, str] = {}
        self._params: dict[tuple, str] = {}

    def emit(self, node: Node, emitter: Callable[[Node, Writer], None]) -> None:
        """Lets an emitter write the operators of a node."""
        self._node = node
        emitter(node, self)

    # -- what emitters call -----------------------------------------------------------------------------------------

    def op(self, operator: str, inputs: Sequence[str], outputs: str | Sequence[str] | None = None, **attributes: Any) -> str:
        """Adds an operator; returns its first output. `outputs` are value names, by default a new one.

        The operator that makes the layer's own top has the layer's name.
        """
        tops = [self.name(operator)] if outputs is None else [outputs] if isinstance(outputs, str) else list(outputs)
        layer = self.rename.get(self._node.name, self._node.name)
        name = layer if tops[0] in self._node.outputs else f"{layer}/{operator}"
        unique, number = name, 1
        while unique in self._node_names:
            number += 1
            unique = f"{name}_{number}"
        self._node_names.add(unique)
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, tops, unique, **attributes))
        return tops[0]

    def param(self, node: Node, index: int, shape: Shape | None = None) -> str:
        """A parameter of the layer, in another shape if one is given; shared ones are written once."""
        array = node.params[index] if shape is None else node.params[index].reshape(shape)
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
        if key not in self._params:
            owner, number = node.owners[index] if index < len(node.owners) else (node.name, index)
            self._params[key] = self._weight(self._distinct(f"{self.rename.get(owner, owner)}/{number}"), array)
        return self._params[key]

    def weight(self, array: np.ndarray, suffix: str) -> str:
        """Numbers computed from parameters, as a weight of the layer."""
        layer = self.rename.get(self._node.name, self._node.name)
        return self._weight(self._distinct(f"{layer}/{suffix}"), array)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant that is none of the net's numbers; equal ones are written once."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = name = self._distinct("const")
            self.tensors[name] = array, array.dtype
        return self._small[key]

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(values, np.int64)

    def is_open(self, value: str, *axes: int) -> bool:
        """Whether one of the axes of a value (any, without `axes`) has no fixed size."""
        return any(axis in self.open_axes.get(value, {}) for axis in axes or range(1 << 5))

    def fixed(self, value: str, *axes: int) -> None:
        """Insists that these axes of a value (all, without `axes`) have a fixed size."""
        if self.is_open(value, *axes):
            raise Fixed(f"{self._node.where}: {value}")

    def reshape(self, value: str, result: Shape, target: str, like: str | None = None) -> str:
        """The graph's value `target`, of the shape `result`, from the values of `value`, which is shaped as the graph's
        value `like` if that is given."""
        before, after = self.open_axes.get(like, {}), self.open_axes.get(target, {})
        dims = list(result)
        inferred = None
        for axis, size in after.items():
            if before.get(axis) == size:
                dims[axis] = 0
            elif inferred is None:
                inferred, dims[axis] = axis, -1
            else:
                raise Fixed(f"{self._node.where}: {target}")
        return self.op("Reshape", [value, self.ints(*dims)], target)

    def name(self, suffix: str) -> str:
        """A new name for a value inside of the layer."""
        return self._distinct(f"{self._node.outputs[0]}/{suffix}")

    # -- names ------------------------------------------------------------------------------------------------------

    def _distinct(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._values or unique in self.tensors:
            number += 1
            unique = f"{name}_{number}"
        self._values.add(unique)
        return unique

    def _weight(self, name: str, array: np.ndarray) -> str:
        """The name to read a weight by; a float16 one is made float32 again by a Cast, which runtimes do when loading."""
        if not self.half:
            self.tensors[name] = array, np.dtype(np.float32)
            return name
        if array.size and not np.abs(array).max() <= HALF_MAX:
            raise NetError(f"{self._node.where}: a parameter is {np.abs(array).max():g}, and float16 ends at "
                           f"{HALF_MAX:g}; convert without it", self._node.name)
        self.tensors[name] = array, np.dtype(np.float16)
        single = self._distinct(f"{name}/float")
        self.nodes.append(self.onnx.helper.make_node("Cast", [name], [single], f"{name}/Cast", to=FLOAT))
        return single

    # -- the file ---------------------------------------------------------------------------------------------------

    def model(self, with_weights: bool) -> Any:
        """The ModelProto; without weights, those are inputs, so that it is small and as good to check."""
        helper = self.onnx.helper
        inputs = [self._info(value, shape) for value, shape in self.graph.inputs.items()]
        outputs = [self._info(value, self.graph.shape(value)) for value in self.graph.outputs]
        graph = helper.make_graph(self.nodes, self.graph.name or "net", inputs, outputs)
        for name, (array, dtype) in self.tensors.items():
            if with_weights or dtype.kind != "f" or array.size < 2:
                graph.initializer.append(self._tensor(name, array, dtype, whole=True))
            else:
                kind = helper.np_dtype_to_tensor_dtype(dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        model = helper.make_model(graph, producer_name="caffe-compat", ir_version=IR_VERSION,
                                  opset_imports=[helper.make_opsetid("", OPSET)])
        shapes = {f"{SHAPE_KEY}{value}": "x".join(map(str, shape)) for value, shape in self.graph.inputs.items()}
        helper.set_model_props(model, shapes)
        return model

    def _info(self, value: str, shape: Shape) -> Any:
        node = self.graph.producer(value)
        if node is not None and node.layer.dynamic:
            dims = [f"{value}/{axis}" for axis in range(len(shape))]
        else:
            sizes = self.open_axes.get(value, {})
            dims = [sizes.get(axis, size) for axis, size in enumerate(shape)]
        return self.onnx.helper.make_tensor_value_info(value, FLOAT, dims)

    def _tensor(self, name: str, array: np.ndarray, dtype: np.dtype, whole: bool) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
        tensor = self.onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        if whole:
            tensor.raw_data = b"".join(bytes(piece) for piece in _pieces(array, dtype))
        return tensor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, the weights straight from the net's memory; whole or not at all."""
        model = self.model(with_weights=False)
        del model.graph.input[len(self.graph.inputs):]
        del model.graph.initializer[:]
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        tensors = [(self._tensor(name, array, dtype, whole=False).SerializeToString(), array, dtype)
                   for name, (array, dtype) in self.tensors.items()]
        counts = [array.size * dtype.itemsize for _, array, dtype in tensors]
        sizes = [len(head) + len(_key(RAW_DATA, count)) + count for (head, _, _), count in zip(tensors, counts)]
        total = len(graph) + sum(size + len(_key(INITIALIZER, size)) for size in sizes)
        if total > LARGEST_FILE:
            raise NetError(f"the model has {total:,} bytes, and an ONNX file can have {LARGEST_FILE:,}; convert it with "
                           "float16 weights")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(model.SerializeToString() + _key(GRAPH, total) + graph)
            for size, count, (head, array, dtype) in zip(sizes, counts, tensors):
                file.write(_key(INITIALIZER, size) + head + _key(RAW_DATA, count))
                for piece in _pieces(array, dtype):
                    file.write(piece)


#: Field numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9


def _key(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a field in protobuf's wire format."""
    result = bytearray([number << 3 | 2])
    while length > 0x7F:
        result.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(result + bytes([length]))


def _pieces(array: np.ndarray, dtype: np.dtype, limit: int = 1 << 24) -> Iterator[memoryview]:
    """The values in little-endian order, a part at a time where they must be copied."""
    stored = dtype.newbyteorder("<")
    if array.dtype == stored and array.flags.c_contiguous:
        yield memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b"")
        return
    rows = array if array.ndim else array[None]
    step = max(1, limit // max(1, prod(rows.shape[1:])))
    for start in range(0, len(rows), step):
        yield memoryview(np.ascontiguousarray(rows[start:start + step], stored).reshape(-1)).cast("B")
