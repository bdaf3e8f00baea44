"""`Model`: a graph as the source of one `nn.Module` and its state dict.

No text of the net's gets into the source but as a literal: names become plain identifiers.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from ..errors import NetError, did_you_mean
from .graph import Graph, Node
from .targets import emitter
from .torch_module import TORCH, Module, refuse, short

#: Names that an argument or a variable of `forward` cannot have, and those that a submodule cannot.
_RESERVED = {*keyword.kwlist, "self"}
_TAKEN = {*dir(nn.Module()), *keyword.kwlist}

_TEMPLATE = '''"""{title}, converted from Caffe by caffe-compat. It needs nothing but torch.

    model = {cls}(){half}
    {load}
    model.eval()
    {result} = model({arguments})

{shapes}
"""

from __future__ import annotations

{imports}

#: Caffe's names of the layers that are called otherwise here.
CAFFE_NAMES = {names}

{helpers}class {cls}(nn.Module):
    """{title}: one submodule a layer, in the order they run."""

    def __init__(self) -> None:
        super().__init__()
{modules}

    def forward(self, {inputs}) -> {returns}:
{lines}
'''


@dataclass
class Model:
    """A graph with the torch module of each node: `modules` by attribute, which `layers` gives Caffe's name of.

    Raises `UnsupportedLayer` for the first layer that torch has no equivalent for, and `NetError` where `rename` names a
    layer that is not there.
    """

    graph: Graph
    rename: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.layers: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        taken, known = set(_TAKEN), [node.name for node in self.graph.nodes]
        for name in self.rename:
            if name not in known:
                raise NetError(f'there is no layer "{name}" to rename in what is written{did_you_mean(name, known)}; there are '
                               f"{', '.join(known)}", name)
        for node in self.graph.nodes:
            made = emitter(TORCH, node, "torch")(node)
            name = unique(identifier(self.rename.get(node.name, node.name)), taken)
            self.modules[name], self.layers[name], self.nodes[name] = made, node.name, node
        self.ties = self._ties()

    def _ties(self) -> dict[str, str]:
        """State keys of shared parameters, each with the key of the one that was there first."""
        first: dict[tuple[str, int], str] = {}
        ties = {}
        for name, node in self.nodes.items():
            state = list(self.modules[name].state.items())
            for owner, (key, values) in zip(node.owners, state):
                known = first.setdefault(owner, f"{name}.{key}")
                if known == f"{name}.{key}":
                    continue
                if self.state_of(known).shape != values.shape:
                    raise refuse(node, f"it shares a parameter with {known.partition('.')[0]} in another shape; a torch "
                                       "module cannot")
                ties[f"{name}.{key}"] = known
        return ties

    def state_of(self, key: str) -> np.ndarray:
        """The values of a state key: `conv1.weight`."""
        name, _, rest = key.partition(".")
        return self.modules[name].state[rest]

    def state(self) -> dict[str, np.ndarray]:
        """The state dict as arrays, without the keys that are tied to others."""
        keys = (f"{name}.{key}" for name, made in self.modules.items() for key in made.state)
        return {key: self.state_of(key) for key in keys if key not in self.ties}

    def caffe_names(self) -> dict[str, str]:
        """Attribute -> layer, where they differ."""
        return {name: layer for name, layer in self.layers.items() if name != layer}

    def source(self, load: str, half: bool = False) -> str:
        """The file; `load` is the line that loads the weights, for its docstring."""
        graph = self.graph
        title = re.sub(r"[^\w .+-]", "", graph.name, flags=re.ASCII).strip() or "A net"
        helpers = {name: code for made in self.modules.values() for name, code in made.helpers().items()}
        lines, inputs, results = _Forward(self).lines()
        code = "\n\n\n".join(helpers.values())
        modules = [f"self.{name} = {made.call()}" for name, made in self.modules.items()]
        modules += [f"self.{key} = self.{known}  # shared" for key, known in self.ties.items()]
        shapes = [f"{name}: {_batched(shape)}" for name, shape in zip(inputs, graph.inputs.values())]
        return _TEMPLATE.format(
            title=title, cls=_class_name(title, set(helpers)), half=".half()" if half else "", load=load,
            result="prediction" if len(graph.outputs) == 1 else "blobs", arguments=", ".join(inputs),
            shapes="\n".join([*shapes, *results]), imports=_imports(code), names=_literal(self.caffe_names()),
            helpers=f"\n{code}\n\n\n" if code else "\n", modules=_indented(modules or ["pass"]),
            inputs=", ".join(f"{name}: Tensor" for name in inputs),
            returns="Tensor" if len(graph.outputs) == 1 else "dict[str, Tensor]", lines=_indented(lines),
        ).replace("(self, )", "(self)")


class _Forward:
    """Writes the body of `forward`: a line a node, a variable a value, none held longer than it is read.

    A value that only the next node reads is `x`; others have their blob's name.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.graph = model, model.graph
        taken = set(_RESERVED)
        self.inputs = {value: unique(identifier(self.graph.blob(value)), taken) for value in self.graph.inputs}
        self.chain = unique("x", taken)
        self.variables = dict(self.inputs)
        self.last = {value: i for i, node in enumerate(self.graph.nodes) for value in node.inputs}
        self.last.update(dict.fromkeys(self.graph.outputs, len(self.graph.nodes)))

    def lines(self) -> tuple[list[str], list[str], list[str]]:
        """The lines; the names of the arguments; what comes back, for the docstring."""
        written = []
        for i, (name, node) in enumerate(self.model.nodes.items()):
            call = self._call(name, node)
            dead = {value: self.variables.pop(value) for value in list(self.variables)
                    if self.last.get(value, -1) <= i and value not in self.inputs}
            tops = [self._variable(value, i) for value in node.outputs]
            written.append(f"{', '.join(tops)} = {call}")
            gone = [variable for variable in dead.values() if variable not in (self.chain, "_", *tops)]
            if gone and i + 1 < len(self.graph.nodes):
                written.append(f"del {', '.join(gone)}")
        found = {self.graph.blob(value): self.variables[value] for value in self.graph.outputs}
        if len(found) == 1:
            ((blob, variable),) = found.items()
            return [*written, f"return {variable}"], list(self.inputs.values()), [f"Returns {_plain(blob)}."]
        items = ", ".join(f"{quoted(blob)}: {variable}" for blob, variable in found.items())
        names = ", ".join(map(self._described, self.graph.outputs))
        return [*written, f"return {{{items}}}"], list(self.inputs.values()), [f"Returns a dict of {names}."]

    def _described(self, value: str) -> str:
        """An output's name for the docstring, with its weight in the loss if it has one of its own."""
        node = self.graph.producer(value)
        weights = list(node.layer.spec.loss_weight) if node else []
        weight = weights[node.outputs.index(value)] if weights else 1
        return _plain(self.graph.blob(value)) + (f" (weight {short(weight)} in the loss)" if weight not in (0, 1) else "")

    def _call(self, name: str, node: Node) -> str:
        made = self.model.modules[name]
        arguments = [made.argument.format(self.variables[value]) for value in node.inputs]
        if made.each:
            return ", ".join(f"self.{name}({argument})" for argument in arguments)
        return f"self.{name}({', '.join(arguments)})"

    def _variable(self, value: str, i: int) -> str:
        """A name for a value that node `i` makes, which no value in use has."""
        last, nodes = self.last.get(value, -1), self.graph.nodes
        if last <= i:
            return "_"
        if last == i + 1 and len(nodes[i].outputs) == 1 and last < len(nodes):
            self.variables[value] = self.chain
        else:
            used = {*self.variables.values(), *_RESERVED, self.chain}
            self.variables[value] = unique(identifier(self.graph.blob(value)), used)
        return self.variables[value]


def identifier(name: str) -> str:
    """`name` with every character that a Python name cannot have replaced by an underscore.

    It begins with one underscore at most: Python takes two for a class's private name.
    """
    word = re.sub(r"^_{2,}", "_", re.sub(r"\W", "_", name, flags=re.ASCII))
    return f"_{word}" if not word or word[0].isdigit() else word


def unique(name: str, taken: set[str]) -> str:
    """`name`, or with a number after it if it is taken; it is taken afterwards."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def _class_name(title: str, taken: set[str]) -> str:
    word = "".join(part[:1].upper() + part[1:] for part in re.split(r"\W+", title, flags=re.ASCII) if part)
    return unique(identifier(word if title != "A net" else "Net"), {*taken, *keyword.kwlist, "Any", "F", "Tensor"})


def _imports(code: str) -> str:
    lines = ["import math"] if "math." in code else []
    lines += ["from typing import Any"] if re.search(r"\bAny\b", code) else []
    lines += [""] if lines else []
    lines += ["import torch"] if re.search(r"\btorch\.", code) else []
    lines += ["import torch.nn.functional as F"] if re.search(r"\bF\.", code) else []
    return "\n".join([*lines, "from torch import Tensor, nn"])


def _plain(name: str) -> str:
    """A blob's name for a docstring."""
    return re.sub(r"[^\w ./-]", "?", name, flags=re.ASCII)


def quoted(text: str) -> str:
    """A string as a literal, in double quotes where nothing in it speaks against them."""
    literal = repr(text)
    return literal if '"' in text or "'" in text else f'"{literal[1:-1]}"'


def _batched(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('N', *shape[1:])))})" if shape else "a scalar"


def _literal(names: dict[str, str]) -> str:
    if not names:
        return "{}"
    return "{\n" + "".join(f"    {quoted(key)}: {quoted(value)},\n" for key, value in names.items()) + "}"


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"        {line}" for line in lines)
