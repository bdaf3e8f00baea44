"""The Caffe net that is written for an ONNX graph: `Translation`, and `FROM_ONNX`, the registry of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CaffeError
from ..layers import LAYERS, Shape
from ..proto import BVLC
from ..registry import Registry
from .from_onnx_graph import Gap, Node, OnnxGraph

#: Translates one node: writes layers through `Translation.layer`, or raises `Gap`.
FROM_ONNX: Registry[Callable[[Translation, Node], None]] = Registry("ONNX operator")

#: Operators whose results are never below 0, and those that keep that.
NONNEGATIVE = {"Relu", "Sigmoid", "Abs", "Exp", "Softmax", "Sqrt", "Softplus", "HardSigmoid"}
KEEP_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Identity", "Dropout", "Flatten",
             "Reshape", "Squeeze", "Unsqueeze", "Split", "Slice"}


class ConversionError(CaffeError):
    """A model that cannot be expressed in Caffe; `gaps` lists what stands in the way, as (node, reason)."""

    def __init__(self, path: str, gaps: Sequence[tuple[Node, str]]) -> None:
        self.gaps = list(gaps)
        lines = "\n".join(f"  {node}: {reason}" for node, reason in self.gaps)
        count = "1 node has" if len(self.gaps) == 1 else f"{len(self.gaps)} nodes have"
        super().__init__(f"{path}: cannot be expressed in BVLC Caffe, nothing was written; {count} no equivalent:\n{lines}")


@dataclass
class Padding:
    """A value that is another one with zeros around it, which the node that reads it may add by itself."""

    source: str
    before: Shape
    after: Shape


class Translation:
    """The Caffe net that is being written for an ONNX graph."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.message = BVLC.message("NetParameter")(name=graph.name)
        self.arrays: dict[tuple, np.ndarray] = {}
        #: Values that are read under another name: results of nodes that do nothing.
        self.aliases: dict[str, str] = {}
        self.paddings: dict[str, Padding] = {}
        self.nonnegative: set[str] = set()
        #: Nodes whose work another node's layers do.
        self.absorbed: list[Node] = []
        self._layer_names: set[str] = set()
        self._blobs = set(graph.shapes)

    def run(self) -> None:
        """Translates the whole graph, or raises nothing but notes the gaps in `graph.gaps`."""
        for name in self.graph.inputs:
            shape = {"dim": list(self.graph.shapes[name])}
            self._add(name, "Input", [], [name], (), input_param={"shape": [shape]})
        for node in self.graph.nodes:
            if any(node is other for other in self.absorbed):
                continue
            try:
                if node.op not in FROM_ONNX:
                    raise Gap("Caffe has no layer that does this")
                FROM_ONNX.get(node.op)(self, node)
            except Gap as gap:
                self.graph.gaps.append((node, str(gap)))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
                # onnx does not check that attributes are of the kind and number that an operator takes
                self.graph.gaps.append((node, f"its attributes are not those of such an operator: {error}"))
            if node.op in NONNEGATIVE or (node.op in KEEP_SIGN and node.inputs[0] in self.nonnegative and all(
                    name in self.nonnegative or node.op != "Concat" for name in node.inputs)):
                self.nonnegative.update(node.outputs)
        for name in self.graph.outputs:
            if self.is_constant(name):
                self.blob(name)

    # -- what an operator's entry asks ------------------------------------------------------------------------------

    def shape(self, value: str) -> Shape:
        """The shape of a value."""
        return self.graph.shapes[value]

    def is_constant(self, value: str) -> bool:
        """Whether a value is known already."""
        return value in self.graph.constants

    def blob(self, value: str) -> str:
        """The blob that holds a value; a constant becomes a Parameter layer."""
        while value in self.aliases:
            value = self.aliases[value]
        if value in self.graph.constants and not any(value in layer.top for layer in self.message.layer):
            array = np.asarray(self.graph.constants[value], np.float32)
            self._add(value, "Parameter", [], [value], [array], parameter_param={"shape": {"dim": list(array.shape)}})
        return value

    def temporary(self, node: Node, suffix: str) -> str:
        """A name for a blob between two layers of one node."""
        name = f"{node.outputs[0]}_{suffix}"
        while name in self._blobs:
            name += "_"
        self._blobs.add(name)
        return name

    # -- what it writes ---------------------------------------------------------------------------------------------

    def layer(self, node: Node, type: str, bottoms: Sequence[str], tops: Sequence[str] | None = None,
              blobs: Sequence[np.ndarray] = (), suffix: str = "", **settings: Any) -> None:
        """Adds a layer; `bottoms` and `tops` (by default the node's first output) are blobs, `settings` its type's own.

        `suffix` sets the layer's name off against the node's others.
        """
        name = (node.name or node.outputs[0]).strip("/") + (f"_{suffix}" if suffix else "")
        field = {LAYERS.get(type).param_field: settings} if settings else {}
        self._add(name, type, bottoms, node.outputs[:1] if tops is None else tops, blobs, **field)

    def alias(self, node: Node, value: str | None = None) -> None:
        """Lets the node's output be the same blob as `value`, by default its first input."""
        source = node.inputs[0] if value is None else value
        if node.outputs[0] in self.graph.outputs:
            self.layer(node, "Split", [self.blob(source)])
        else:
            self.aliases[node.outputs[0]] = source

    def absorb(self, node: Node, into: Node) -> None:
        """Leaves `node`, the only reader of `into`'s output, to the layers of `into`, which make its output instead.

        They take its name, too, by which exporters call the last of a layer's operators.
        """
        self.absorbed.append(node)
        into.name = node.name
        into.outputs = [node.outputs[0], *into.outputs[1:]]

    def _add(self, name: str, type: str, bottoms: Sequence[str], tops: Sequence[str], blobs: Sequence[np.ndarray],
             **fields: Any) -> None:
        unique, number = name, 1
        while unique in self._layer_names:
            number += 1
            unique = f"{name}_{number}"
        self._layer_names.add(unique)
        index = len(self.message.layer)
        layer = self.message.layer.add(name=unique, type=type, bottom=bottoms, top=tops, **fields)
        for k, array in enumerate(blobs):
            layer.blobs.add()
            self.arrays["layer", index, "blobs", k] = np.asarray(array, np.float32)
