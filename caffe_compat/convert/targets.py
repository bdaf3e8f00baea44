"""What a net can be converted to: `TARGETS`, with one entry a target, and what each layer type becomes there.

A target has a registry of emitters, one entry a layer type: a function that translates a node (its signature is the
target's own), or `Unsupported` with the reason. What happens to a type before any emitter sees it is in `HANDLED`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..errors import NetError
from ..layers import LAYERS
from ..registry import Registry
from .graph import Graph, Node, Pass


class UnsupportedLayer(NetError):
    """A layer that a target has no equivalent for, with the reason."""

    def __init__(self, node: Node, target: str, reason: str) -> None:
        super().__init__(f"{node.where}: this {node.type} layer cannot be converted to {target}: {reason}", node.name)
        self.reason = reason


@dataclass(frozen=True)
class Unsupported:
    """The entry of a layer type that a target has no equivalent for."""

    reason: str


@dataclass(frozen=True)
class Options:
    """What the user asks of a conversion.

    `fold`: BatchNorm and Scale go into the convolutions and inner products next to them. `inference`: layers that do
    nothing but in training are left out. `keep_losses`: losses and accuracies stay. `half`: weights are float16.
    `rename`: new names for layers. `safetensors`: the torch target writes its weights in that format.
    `passes`: changes of the caller's own to the graph, after all others.
    `mean`, `scale`, `swap_channels`: what is done to images before the net, to be built into it: channels reversed (RGB
    to BGR), then `mean` (one number, or one a channel, in the net's order) subtracted, then multiplied by `scale`.
    """

    fold: bool = False
    inference: bool = False
    keep_losses: bool = False
    half: bool = False
    safetensors: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    mean: tuple[float, ...] = ()
    scale: float = 1.0
    swap_channels: bool = False

    @property
    def preprocesses(self) -> bool:
        """Whether there is anything to do to images."""
        return any(self.mean) or self.scale != 1 or self.swap_channels

    def as_affine(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The preprocessing as (matrix, shift) over the channels: what the net is to see is matrix x + shift."""
        if len(self.mean) not in (0, 1, channels):
            raise NetError(f"found {len(self.mean)} means for {channels} channels; give one for all, or one a channel")
        order = range(channels)[::-1] if self.swap_channels else range(channels)
        return np.eye(channels)[list(order)] * self.scale, -np.ones(channels) * (self.mean or 0) * self.scale

    def preprocessed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs as the original net is to see them."""
        if not self.preprocesses:
            return dict(inputs)
        found = {}
        for name, x in inputs.items():
            if x.ndim == 4:
                matrix, shift = self.as_affine(x.shape[1])
                x = (np.einsum("dc,nchw->ndhw", matrix, x) + shift[:, None, None]).astype(np.float32)
            found[name] = x
        return found


@dataclass(frozen=True)
class Target:
    """A format to convert to.

    `write(graph, path, options)` writes files, whole or not at all, after the passes have run. `run(path, inputs)`
    reads them back and returns every value that the format lets one see, by its name in the graph, outputs at least.
    `emitters` has an entry a layer type; `exceptions` are limits of the format's own, or `Unsupported`, that take their
    place in the table of `support`. `inference` is set where the format is for inference alone.
    """

    name: str
    help: str
    emitters: Registry[Any]
    write: Callable[[Graph, str | os.PathLike[str], Options], None]
    run: Callable[[str | os.PathLike[str], Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    inference: bool = False
    exceptions: Mapping[str, str | Unsupported] = field(default_factory=dict)


#: The targets by the name that `--to` takes.
TARGETS: Registry[Target] = Registry("conversion target")

Entry = TypeVar("Entry")

#: What becomes of layer types before the emitters of any target see them.
HANDLED = {
    **dict.fromkeys(("Data", "HDF5Data", "ImageData", "Input", "MemoryData", "WindowData"), "an input of the graph"),
    "Split": "gone; its bottom is read instead",
    "Silence": "left out",
    "HDF5Output": "left out",
}


def emitter(registry: Registry[Any], node: Node, target: str) -> Any:
    """The registry's entry for a node's type; `UnsupportedLayer` where there is none, or only a reason."""
    if node.type not in registry:
        raise UnsupportedLayer(node, target, f"nobody has registered how; known types: {', '.join(registry.names())}")
    entry = registry.get(node.type)
    if isinstance(entry, Unsupported):
        raise UnsupportedLayer(node, target, entry.reason)
    return entry


def support() -> dict[str, dict[str, str]]:
    """For every layer type and target: "yes" (with limits after a colon), what it becomes, or "no: " and the reason.

    The limits are the `limits` attribute of an emitter, if it has one.
    """
    return {kind: {name: _support(kind, TARGETS.get(name)) for name in TARGETS.names()} for kind in LAYERS.names()}


def _support(kind: str, target: Target) -> str:
    if kind in HANDLED:
        return HANDLED[kind]
    if kind not in target.emitters:
        return "no: nobody has registered how"
    entry = target.emitters.get(kind)
    found = target.exceptions.get(kind, entry if isinstance(entry, Unsupported) else getattr(entry, "limits", ""))
    if isinstance(found, Unsupported):
        return f"no: {found.reason}"
    return f"yes: {found}" if found else "yes"


def limited(limits: str) -> Callable[[Entry], Entry]:
    """A decorator that notes what an emitter cannot do, for the table of `support`."""

    def note(entry: Entry) -> Entry:
        entry.limits = limits  # type: ignore[attr-defined]
        return entry

    return note
