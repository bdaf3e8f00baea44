"""Caffe nets as models to compare: `net.prototxt:weights.caffemodel`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import proto
from ..blob import Blob
from ..errors import CaffeError, NetError, did_you_mean
from ..graph import filter_layers, place_layers
from ..layers import LAYERS
from ..net import PHASES, Net
from ..proto import Document
from ..trust import confined_to
from ..weights import copy_weights
from .recording_file import parameters, read_recording
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner

_OTHERS = (".npz", ".onnx", ".py")


@RUNNERS.add("caffe")
class CaffeModel(Runner):
    """A Caffe net. It is built when it runs, for inputs of any shape; data layers whose tops are given are not opened.

    Files that it names itself are opened only in its own folder and the working folder.
    """

    kind = "Caffe net"

    def __init__(self, document: Document, weights: Any, options: Options, net: Net | None = None) -> None:
        self.name = document.path or document.message.name or "net"
        self._document = document
        self._options = options
        self._weights = weights
        self._net = net
        self._force_backward = False
        self._outputs: list[str] = []
        self._origins: dict[str, str] = {}

    @classmethod
    def claims(cls, spec: str) -> bool:
        path = split_spec(spec)[0]
        return os.path.isfile(path) and not path.endswith(_OTHERS) and _is_net(path)

    @classmethod
    def open(cls, spec: str, options: Options) -> CaffeModel:
        path, weights = split_spec(spec)
        model = cls(proto.read_text(path, "NetParameter"), weights, options)
        model.name = spec
        return model

    @classmethod
    def of(cls, net: object, options: Options) -> CaffeModel | None:
        """A Net that is there already; it is run as it is, and is left holding the values."""
        if not isinstance(net, Net):
            return None
        return cls(Document(net.to_document().message, net.dialect, net.path), None, options, net)

    @property
    def has_weights(self) -> bool:
        """Whether anything says what the parameters are."""
        return self._weights is not None or self._net is not None

    def use(self, params: Mapping[str, list[np.ndarray]], phase: str, force_backward: bool = False) -> None:
        """Takes the parameters by layer name, and the phase, of a recording, where the user gave none."""
        self._force_backward = force_backward
        if not self.has_weights:
            self._weights = dict(params)
        if self._options.phase is None:
            self._options = replace(self._options, phase=phase)

    def inputs(self) -> dict[str, OpenShape]:
        if self._net is not None:
            return {name: self._net.blobs[name].shape for name in self._net.inputs}
        shapes: dict[str, OpenShape] = {}
        for placed in filter_layers(place_layers(self._document), self._state()):
            if placed.spec.type == "Input":
                given = [tuple(shape.dim) for shape in placed.spec.input_param.shape]
                shapes.update(zip(placed.spec.top, given if len(given) > 1 else given * len(placed.spec.top)))
        return shapes

    def outputs(self) -> list[str]:
        return self._outputs

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        net = self._build(inputs)
        for name, values in inputs.items():
            if name.startswith("output_diff/"):
                continue
            blob = net.blobs.get(name)
            if blob is None:
                raise NetError(f'{self.name}: has no blob "{name}"{did_you_mean(name, net.blobs)} to give values to; its '
                               f"inputs are {', '.join(net.inputs) or 'none'}", blob=name)
            if blob.shape != values.shape:
                blob.reshape(*values.shape)
            blob.write(values)
        backward = any(key.startswith(("blob_diff/", "param_diff/")) for key in wanted or ())
        with torch.set_grad_enabled(backward):
            net.run()
        self._outputs = list(net.outputs)
        versions = _versions(net)
        self._origins = {name: where for name, where, _ in versions}
        self._origins.update((f"layer {layer.name}", layer.where) for layer in net.layers)
        arrays = {f"blob/{name}": tensor.detach().cpu().numpy().copy() for name, _, tensor in versions
                  if wanted is None or f"blob/{name}" in wanted}
        arrays.update((f"param/{name}/{j}", _copy(blob)) for name, blobs in net.params.items()
                      for j, blob in enumerate(blobs) if wanted and f"param/{name}/{j}" in wanted)
        if backward:
            for key, values in inputs.items():
                if key.startswith("output_diff/"):
                    net.blobs[key.removeprefix("output_diff/")].write(values, diff=True)
            net.clear_param_diffs()
            net.propagate()
            arrays.update(_diffs(net))
        return {key: values for key, values in arrays.items() if wanted is None or key in wanted}

    def origin(self, key: str) -> str | None:
        kind, _, name = key.partition("/")
        return self._origins.get(name if "blob" in kind else f"layer {name.rpartition('/')[0]}")

    def close(self) -> None:
        self._net = None

    def _state(self) -> Any:
        """The NetState that the net is to be built in."""
        state = type(self._document.message.state)()
        state.CopyFrom(self._document.message.state)
        state.phase = PHASES[self._options.phase or "TEST"]
        if self._options.level is not None:
            state.level = self._options.level
        state.stage.extend(self._options.stages)
        return state

    def _build(self, inputs: Mapping[str, np.ndarray]) -> Net:
        """The net with its weights, and Input layers in the place of data layers whose tops are among the inputs."""
        net = self._net
        given = {name: values.shape for name, values in inputs.items() if not name.startswith("output_diff/")}
        if net is not None and (not given or set(given) <= set(net.inputs)):
            return net
        document = with_inputs(self._document, given)
        document.message.force_backward |= self._force_backward
        options = self._options
        with confined_to(document.path, options.allow_paths):
            net = Net(document, options.phase or "TEST", level=options.level, stages=options.stages,
                      device=options.device, seed=0)
        if isinstance(self._weights, str) and self._weights.endswith(".npz"):
            self._weights = parameters(read_recording(self._weights)[1])
        if isinstance(self._weights, dict):
            self._fill(net, self._weights)
        elif self._weights is not None:
            copy_weights(net, self._weights, options.weights)
        elif net.params:
            raise CaffeError(f"{self.name}: its weights are not given; write {self.name}:weights.caffemodel, or compare "
                             "it with a recording, whose parameters it then takes")
        self._net = net
        return net

    def _fill(self, net: Net, params: Mapping[str, list[np.ndarray]]) -> None:
        for name, blobs in net.params.items():
            if name not in params or [blob.shape for blob in blobs] != [values.shape for values in params[name]]:
                raise NetError(f"{self.name}: layer {name} has parameters of the shapes {[blob.shape for blob in blobs]}, "
                               f"the recording {[values.shape for values in params.get(name, [])]}", name)
            for blob, values in zip(blobs, params[name]):
                blob.write(values)


def split_spec(spec: str) -> tuple[str, str | None]:
    """The prototxt and the weights of `net.prototxt:weights.caffemodel`; weights may be left out."""
    position = spec.find(":")
    while position > 0:
        if os.path.isfile(spec[:position]):
            return spec[:position], spec[position + 1:]
        position = spec.find(":", position + 1)
    return spec, None


def with_inputs(document: Document, shapes: Mapping[str, tuple[int, ...]]) -> Document:
    """The net with an Input layer in the place of each layer without bottoms whose tops are all among `shapes`."""
    message = type(document.message)()
    message.CopyFrom(document.message)
    for layer in message.layer:
        if layer.type in LAYERS and LAYERS.get(layer.type).is_source and layer.top and set(layer.top) <= set(shapes):
            tops, rules = list(layer.top), (list(layer.include), list(layer.exclude))
            name = layer.name
            layer.Clear()
            layer.name, layer.type = name, "Input"
            layer.top.extend(tops)
            layer.include.extend(rules[0])
            layer.exclude.extend(rules[1])
            for top in tops:
                layer.input_param.shape.add().dim.extend(shapes[top])
    return Document(message, document.dialect, document.path, document.lines)


def is_automatic(name: str) -> bool:
    """Whether a blob is one of those that Caffe's automatic Split layers make: copies, of no interest."""
    stem, split, number = name.rpartition("_split_")
    return bool(stem and split) and number.isdecimal()


def _is_net(path: str) -> bool:
    """Whether a prototxt is not that of a solver; what is wrong with it otherwise is found when it is read."""
    try:
        proto.read_text(path, "SolverParameter")
    except CaffeError:
        return True
    return False


def _copy(blob: Blob) -> np.ndarray:
    return blob.tensor.detach().cpu().numpy().copy()


def _versions(net: Net) -> list[tuple[str, str, torch.Tensor]]:
    """(name, layer and its place, values) of all that was made, in that order, without the inputs and the automatic
    Splits' copies. What an in-place layer overwrote of the blob "conv1" is called conv1.v0, conv1.v1, ..."""
    found = [(name, layer.where, tensor) for layer, tensors in net.made()
             for name, tensor in zip(net.top_names[layer.name], tensors) if layer.type != "Input" and not is_automatic(name)]
    left, seen = Counter(name for name, _, _ in found), Counter[str]()
    versions = []
    for name, where, tensor in found:
        left[name] -= 1
        versions.append((f"{name}.v{seen[name]}" if left[name] else name, where, tensor))
        seen[name] += 1
    return versions


def _diffs(net: Net) -> Arrays:
    """The diffs that a backward pass made, of blobs and parameters, in the order it makes them."""
    wanted = {name for layer in net.layers for name, has in zip(layer.spec.bottom, net.gradients_of[layer.name]) if has}
    arrays = {f"blob_diff/{name}": net.blobs[name].diff.copy() for name in reversed(net.blobs) if name in wanted}
    for name, blobs in reversed(net.params.items()):
        arrays.update((f"param_diff/{name}/{j}", blob.diff.copy()) for j, blob in enumerate(blobs)
                      if blob.tensor.requires_grad)
    return arrays
