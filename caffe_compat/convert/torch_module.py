"""`TORCH`, the registry of the torch target, and `Module`: what its entries make of a node.

An entry is a function `Node -> Module`. A Module names a class of `torch.nn`, or one of our own that needs nothing but
torch: its source is copied into the model file. Such classes stand beside the entries, in the `torch_*` modules.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from ..registry import Registry
from .graph import Node
from .targets import UnsupportedLayer

#: For every layer type, the function that makes a `Module` of a node.
TORCH: Registry[Callable[[Node], Module]] = Registry("torch emitter")

State = Mapping[str, np.ndarray]


@dataclass
class Module:
    """A layer as a module to write: `cls(*args, **options)`, and the values of its parameters and buffers by name.

    `argument` is what the module is called with, `{}` for the bottom (`"{}.flatten(1)"`); `each` says that it is called
    for one bottom after the other. `blobs` gives Caffe's parameter blobs back from a state: by default they are the
    values in their order.
    """

    cls: type[nn.Module]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    argument: str = "{}"
    each: bool = False
    blobs: Callable[[State], list[np.ndarray]] = lambda state: list(state.values())

    def call(self) -> str:
        """The expression that makes the module: `nn.Conv2d(3, 64, 3, padding=1)`."""
        words = [text(value) for value in self.args]
        words += [f"{name}={text(value)}" for name, value in self.options.items()]
        return f"{_reference(self.cls)}({', '.join(words)})"

    def helpers(self) -> dict[str, str]:
        """The source of all classes of ours that the expression needs, by name, in order."""
        found: dict[str, str] = {}
        for cls in (self.cls, *(value.cls for value in self.args if isinstance(value, Module))):
            if not _is_torch(cls):
                _collect(cls, found)
        return found


def module(cls: type[nn.Module], *args: Any, **options: Any) -> Module:
    """A Module without parameters."""
    return Module(cls, args, options)


def weighted(node: Node, made: Module, *names: str) -> Module:
    """`made` with the node's parameters under `names`, in Caffe's order, as many as there are."""
    made.state = dict(zip(names, node.params))
    return made


def refuse(node: Node, reason: str) -> UnsupportedLayer:
    """The exception to raise for settings that torch has no equivalent for."""
    return UnsupportedLayer(node, "torch", reason)


def text(value: Any) -> str:
    """A setting as Python source; equal sizes of all axes as one number, float32 values in their shortest form."""
    if isinstance(value, Module):
        return value.call()
    if isinstance(value, tuple | list):
        words = [text(item) for item in value]
        return f"({', '.join(words)}{',' * (len(words) == 1)})"
    if isinstance(value, float):
        return short(value)
    return repr(value)


def short(value: float) -> str:
    """The shortest number that is the same in float32, in which a prototxt's numbers are kept."""
    if value != value or value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(float(str(np.float32(value))))


def same(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number if all are equal, as torch takes it."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def given(**options: tuple[Any, Any]) -> dict[str, Any]:
    """Those of `name=(value, torch's default)` whose value is not the default."""
    return {name: value for name, (value, default) in options.items() if value != default}


def _is_torch(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "torch"


def _reference(cls: type) -> str:
    return f"nn.{cls.__name__}" if _is_torch(cls) else cls.__name__


def _collect(cls: type[nn.Module], found: dict[str, str]) -> None:
    """Adds the source of a class, after that of the others that it uses."""
    source, used = _source(cls)
    for other in used:
        if other.__name__ not in found:
            _collect(other, found)
    found[cls.__name__] = source


@cache
def _source(cls: type[nn.Module]) -> tuple[str, list[type[nn.Module]]]:
    """The source of a class, and the other modules of the same file that it names."""
    source = textwrap.dedent(inspect.getsource(cls)).rstrip()
    home = vars(sys.modules[cls.__module__])
    names = {node.id: home.get(node.id) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    return source, [thing for thing in names.values() if inspect.isclass(thing) and issubclass(thing, nn.Module)
                    and thing.__module__ == cls.__module__ and thing is not cls]
