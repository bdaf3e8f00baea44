"""`Graph`: a built net as exporters want it, every value made once, parameters as numpy arrays.

In a Net a layer may overwrite its bottom; in a Graph each such version is a value of its own. The last version of a blob
has the blob's name, earlier ones a suffix (`conv1.v0`). Caffe's automatic Split layers are gone, and what a layer reads
from a file or a database is an input of the graph. Parameters share memory with the net's.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..blob import Blob, ReshapedBlob
from ..errors import NetError
from ..graph import TRAIN
from ..layers import Layer, Shape
from ..layers.base import format_shape
from ..net import Net
from ..net_builder import AUTOMATIC, Step
from ..proto import Dialect, Document


@dataclass(eq=False)
class Node:
    """A layer, the values it reads and makes, their shapes, and its parameters in Caffe's order.

    `layer` is the built layer: its settings are `layer.param`, checked and with their defaults, or `layer.spec` for
    what is not in the type's own message. `owners` are (layer name, blob index) of the parameters: two parameters with
    one owner are shared. A pass may replace `params`; whether there is a bias is told from their number.
    """

    layer: Layer
    inputs: list[str]
    outputs: list[str]
    in_shapes: list[Shape]
    out_shapes: list[Shape]
    params: list[np.ndarray] = field(default_factory=list)
    owners: list[tuple[str, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def type(self) -> str:
        """The layer's type."""
        return self.layer.type

    @property
    def param(self) -> Any:
        """The settings: the type's own message, or None."""
        return self.layer.param

    @property
    def where(self) -> str:
        """The place that error messages name: `conv2 (net.prototxt:41)`."""
        return self.layer.where

    def change(self, **settings: Any) -> None:
        """Sets fields of the type's own message, on a copy of the layer: the net keeps its own."""
        layer = copy.copy(self.layer)
        layer.spec = type(layer.spec)()
        layer.spec.CopyFrom(self.layer.spec)
        layer.param = layer._settings(layer.spec)
        for name, value in settings.items():
            setattr(layer.param, name, value)
        self.layer = layer

    def weigh(self, top: str, weight: float) -> None:
        """Sets the loss weight of an output."""
        self.change()
        self.layer.spec.loss_weight[:] = list(self.layer.spec.loss_weight) or [0.0] * len(self.outputs)
        self.layer.spec.loss_weight[self.outputs.index(top)] = weight


#: A pass changes a graph where it stands; several are run one after the other with `Graph.run`.
Pass = Callable[["Graph"], None]


@dataclass(eq=False)
class Graph:
    """Nodes in the order they run; `inputs` with their shapes, and `outputs`, by value name.

    `blob_of` is the blob that each value is a version of, where their names differ. `training` tells the phase.
    """

    name: str
    dialect: Dialect
    training: bool
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    blob_of: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, net: Net) -> Graph:
        """The graph of a built net in the shapes that its blobs have now."""
        graph = cls(net.name, net.dialect, net.phase == TRAIN)
        owners = {id(learnable.blob): (learnable.layer_name, learnable.index) for learnable in net.learnable}
        steps = net.steps
        names = _value_names(graph, steps)
        latest = {name: (i, k) for i, step in enumerate(steps) for k, name in enumerate(step.top_names)}
        for i, step in enumerate(steps):
            tops = [names[i, k] for k in range(len(step.tops))]
            if is_input(step.layer):
                graph.inputs.update(zip(tops, step.shapes))
            elif _is_automatic(step, steps):
                if any(step.loss_weights) and (made := graph.producer(tops[0])):  # Caffe moved the weight to the split
                    made.weigh(tops[0], step.loss_weights[0])
            else:
                blobs = [_owning(blob) for blob in step.layer.blobs]
                graph.nodes.append(Node(
                    step.layer, [names[source] for source in step.sources], tops,
                    [steps[p].shapes[k] for p, k in step.sources], list(step.shapes),
                    [_array(blob) for blob in step.layer.blobs],
                    [owners.get(id(blob), (step.layer.name, j)) for j, blob in enumerate(blobs)]))
        outputs = [names[latest[name]] for name in net.outputs]
        outputs += [names[i, 0] for i, step in enumerate(steps) if step.top_names[:1] == [AUTOMATIC]]
        graph.outputs = list(dict.fromkeys(outputs))
        return graph

    def run(self, passes: Iterable[Pass]) -> Graph:
        """Runs passes one after the other; returns the graph."""
        for change in passes:
            change(self)
            self._settle()
        return self

    # -- asking -----------------------------------------------------------------------------------------------------

    def producer(self, value: str) -> Node | None:
        """The node that makes a value; None for an input of the graph."""
        return next((node for node in self.nodes if value in node.outputs), None)

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value, once each."""
        return [node for node in self.nodes if value in node.inputs]

    def only_reader(self, value: str) -> Node | None:
        """The node that alone reads a value, once, if the value is no output."""
        readers = self.readers(value)
        alone = len(readers) == 1 and readers[0].inputs.count(value) == 1 and value not in self.outputs
        return readers[0] if alone else None

    def blob(self, value: str) -> str:
        """The name of the blob that a value is a version of."""
        return self.blob_of.get(value, value)

    def shape(self, value: str) -> Shape:
        """The shape of a value."""
        node = self.producer(value)
        return self.inputs[value] if node is None else node.out_shapes[node.outputs.index(value)]

    def is_shared(self, node: Node) -> bool:
        """Whether another node has one of this node's parameters."""
        count = Counter(owner for other in self.nodes for owner in other.owners)
        return any(count[owner] > 1 for owner in node.owners)

    # -- changing ---------------------------------------------------------------------------------------------------

    def replace(self, old: str, new: str) -> None:
        """Lets everybody read `new` instead of `old`, the graph's outputs included."""
        for node in self.nodes:
            node.inputs = [new if value == old else value for value in node.inputs]
        self.outputs = list(dict.fromkeys(new if value == old else value for value in self.outputs))

    def bypass(self, node: Node) -> bool:
        """Takes out a node that passes its first input on as its only output; False (and nothing done) where it cannot.

        It cannot where an output of the graph would lose its name. An input that is an earlier version of the same blob
        takes over the name.
        """
        (source, *_), (top,) = node.inputs, node.outputs
        same_blob = self.blob(source) == self.blob(top)
        if top in self.outputs and not same_blob:
            return False
        self.nodes.remove(node)
        self.replace(top, source)
        if same_blob:
            self.rename(source, top)
        return True

    def rename(self, old: str, new: str) -> None:
        """Gives a value another name, everywhere."""
        if old in self.inputs:
            self.inputs = {new if value == old else value: shape for value, shape in self.inputs.items()}
        for node in self.nodes:
            node.outputs = [new if value == old else value for value in node.outputs]
        self.replace(old, new)
        blob = self.blob_of.pop(old, old)
        if blob != new:
            self.blob_of[new] = blob

    def drop_unread_inputs(self) -> None:
        """Takes out inputs that nothing reads and that are no outputs."""
        read = {value for node in self.nodes for value in node.inputs} | set(self.outputs)
        self.inputs = {value: shape for value, shape in self.inputs.items() if value in read}

    def _settle(self) -> None:
        """Gives the remaining versions of a blob whose last version is gone a name of their own: they are not it."""
        made = [*self.inputs, *(value for node in self.nodes for value in node.outputs)]
        self.blob_of = {value: blob for value, blob in self.blob_of.items() if value in made}
        for blob in set(self.blob_of.values()) - set(made):
            versions = [value for value in made if self.blob(value) == blob]
            self.blob_of.update(dict.fromkeys(versions, versions[-1]))
            del self.blob_of[versions[-1]]

    # -- writing ----------------------------------------------------------------------------------------------------

    def to_document(self, weights: bool = True) -> Document:
        """The graph as a NetParameter: an Input layer, then the layers, in place where they were, with their blobs."""
        message = self.dialect.message("NetParameter")(name=self.name)
        if self.training:
            message.state.phase = TRAIN
        for value, shape in self.inputs.items():
            spec = message.layer.add(name=self.blob(value), type="Input", top=[self.blob(value)])
            spec.input_param.shape.add(dim=shape)
        arrays: dict[tuple, np.ndarray] = {}
        for node in self.nodes:
            index = len(message.layer)
            spec = message.layer.add()
            spec.CopyFrom(node.layer.spec)
            for name in ("bottom", "top", "blobs", "include", "exclude"):
                spec.ClearField(name)
            spec.bottom.extend(map(self.blob, node.inputs))
            if len(node.layer.spec.top):  # a loss layer that names no top gets one by itself
                spec.top.extend(map(self.blob, node.outputs))
            for j, array in enumerate(node.params if weights else ()):
                spec.blobs.add()
                arrays["layer", index, "blobs", j] = array
        return Document(message, self.dialect, None, {}, arrays)

    def __str__(self) -> str:
        lines = [("type", "name", "inputs", "outputs", "parameters")]
        lines += [("Input", value, "", f"{value} ({format_shape(shape)})", "") for value, shape in self.inputs.items()]
        for node in self.nodes:
            made = ", ".join(f"{value} ({format_shape(shape)})" for value, shape in zip(node.outputs, node.out_shapes))
            lines.append((node.type, node.name, ", ".join(node.inputs), made,
                          f"{sum(prod(array.shape) for array in node.params):,}" if node.params else ""))
        widths = [max(len(line[k]) for line in lines) for k in range(5)]
        return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines)


def _value_names(graph: Graph, steps: Sequence[Step]) -> dict[tuple[int, int], str]:
    """(step, top) -> the value's name; tops of automatic Split layers are their bottom. Fills in `graph.blob_of`."""
    versions: dict[str, list[tuple[int, int]]] = {}
    for i, step in enumerate(steps):
        for k, name in enumerate(step.top_names):
            versions.setdefault(name, []).append((i, k))
    names: dict[tuple[int, int], str] = {}
    for i, step in enumerate(steps):
        for k, blob in enumerate(step.top_names):
            place = versions[blob].index((i, k))
            if _is_automatic(step, steps):
                names[i, k] = names[step.sources[0]]
            elif blob == AUTOMATIC:
                names[i, k] = step.layer.name
            elif place == len(versions[blob]) - 1:
                names[i, k] = blob
            else:
                name = f"{blob}.v{place}"
                while name in versions:
                    name += "_"
                names[i, k], graph.blob_of[name] = name, blob
    return names


def _is_automatic(step: Step, steps: Sequence[Step]) -> bool:
    """Whether this is a Split that Caffe put there, which is told by the name it gives them."""
    if step.layer.type != "Split":
        return False
    position, top = step.sources[0]
    return step.layer.name == f"{step.layer.spec.bottom[0]}_{steps[position].layer.name}_{top}_split"


def is_input(layer: Layer) -> bool:
    """Whether a layer's tops come from outside: files, the user, or random numbers (not constants)."""
    if layer.type == "DummyData":
        return any(filler is not None and filler.type != "constant" for filler in layer._fillers)
    return layer.is_source


def _owning(blob: Blob) -> Blob:
    return blob._owner if isinstance(blob, ReshapedBlob) else blob


def _array(blob: Blob) -> np.ndarray:
    """A parameter's values, sharing the net's memory where that is the CPU's."""
    tensor = blob.tensor.detach()
    if tensor.is_meta:
        raise NetError("the net has no weights to export")
    return tensor.cpu().numpy()
