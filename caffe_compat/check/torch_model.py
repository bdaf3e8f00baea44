"""torch exports (a folder with model.py, its weights and net.prototxt) and torch modules as models to compare."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import proto
from ..convert.torch_target import NET, caffe_names, load_module, read_source
from ..errors import CaffeError
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner


@RUNNERS.add("torch")
class TorchModel(Runner):
    """What `convert --to torch` wrote, or a module of yours that takes and returns tensors.

    Of an export, every blob that a submodule makes is shown, in its last version, as the net in the folder says. A module
    of yours says in attributes what Caffe calls its inputs and outputs, in order, and the outputs of its submodules:
    `INPUTS`, `OUTPUTS`, and `BLOBS`, {blob: submodule}. Without `INPUTS` they are called as forward's arguments.
    """

    kind = "torch module"

    def __init__(self, module: torch.nn.Module, name: str, device: str = "cpu", folder: str | None = None) -> None:
        self.name = name
        self._module = module.to(device).eval()
        self._device = device
        arguments = [p.name for p in inspect.signature(module.forward).parameters.values()
                     if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._inputs: dict[str, OpenShape | None] = dict.fromkeys(getattr(module, "INPUTS", arguments))
        self._outputs = list(getattr(module, "OUTPUTS", ()))
        self._named_outputs = bool(self._outputs)
        self._hidden: set[str] = set()
        #: Submodule -> the blobs that it makes.
        self._tops = {child: [blob] for blob, child in getattr(module, "BLOBS", {}).items()}
        if folder is not None:
            self._describe(Path(folder))

    @classmethod
    def claims(cls, spec: str) -> bool:
        return os.path.isfile(os.path.join(_folder(spec), "model.py"))

    @classmethod
    def open(cls, spec: str, options: Options) -> TorchModel:
        folder = _folder(spec)
        if not options.allow_code:
            raise CaffeError(f"{os.path.join(folder, 'model.py')}: is code, which comparing would run; read it, then allow "
                             "that with --allow-code (from Python: Options(allow_code=True))")
        return cls(load_module(folder), spec, options.device, folder)

    @classmethod
    def of(cls, module: object, options: Options) -> TorchModel | None:
        """A torch module that is there already."""
        if not isinstance(module, torch.nn.Module):
            return None
        return cls(module, type(module).__name__, options.device)

    def _describe(self, folder: Path) -> None:
        """Takes the names of inputs and blobs from the net in the folder."""
        layers = proto.read_text(folder / NET, "NetParameter").message.layer
        names = caffe_names(read_source(folder))
        children = {names.get(child, child): child for child, _ in self._module.named_children()}
        last: dict[str, str] = {}
        self._inputs = {}
        for layer in layers:
            if layer.type == "Input":
                shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
                self._inputs.update(zip(layer.top, shapes if len(shapes) > 1 else shapes * len(layer.top)))
            last.update(dict.fromkeys(layer.top, layer.name))
            if layer.name in children:
                self._tops[children[layer.name]] = list(layer.top) or [layer.name]
        # what a layer without a submodule overwrote in place is not the blob any more
        self._hidden = {blob for blob, layer in last.items() if layer not in children}
        read = {blob for layer in layers for blob in layer.bottom}
        self._outputs = [blob for layer in layers for blob in layer.top if blob not in read]

    def inputs(self) -> dict[str, OpenShape]:
        return {name: shape for name, shape in self._inputs.items() if shape is not None}

    def outputs(self) -> list[str]:
        return self._outputs

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise CaffeError(f"{self.name}: its inputs {', '.join(missing)} are not given; given are "
                             f"{', '.join(inputs) or 'none'}")
        weight = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        dtype = weight.dtype if weight is not None else torch.float32
        tensors = [torch.from_numpy(np.array(inputs[name])).to(self._device, dtype) for name in self._inputs]
        with torch.no_grad(), self._shown() as found:
            try:
                returned = self._module(*tensors)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise CaffeError(f"{self.name}: cannot run: {error}") from error
        found = {blob: value for blob, value in found.items() if blob not in self._hidden}
        if not found or self._named_outputs:
            found.update(self._named(returned))
        return {f"blob/{name}": value.detach().float().cpu().numpy() for name, value in found.items()
                if isinstance(value, torch.Tensor) and (wanted is None or f"blob/{name}" in wanted)}

    @contextmanager
    def _shown(self) -> Iterator[dict[str, Any]]:
        """Collects what submodules make, by blob."""
        found: dict[str, Any] = {}
        hooks = []
        for child, tops in self._tops.items():
            hooks.append(self._module.get_submodule(child).register_forward_hook(_keeper(found, tops)))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def _named(self, returned: Any) -> dict[str, Any]:
        if isinstance(returned, Mapping):
            return dict(returned)
        values = returned if isinstance(returned, tuple | list) else (returned,)
        names = self._outputs or [f"output{k}" for k in range(len(values))]
        if len(names) != len(values):
            raise CaffeError(f"{self.name}: forward returns {len(values)} values, but OUTPUTS names {len(names)}")
        return dict(zip(names, values))


def _keeper(found: dict[str, Any], tops: list[str]) -> Any:
    """A hook that keeps what a submodule makes; one that is called for each of its bottoms makes a top a call."""
    waiting: list[str] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        for value in output if isinstance(output, tuple | list) else (output,):
            waiting.extend(tops if not waiting else ())
            found[waiting.pop(0)] = value

    return keep


def _folder(spec: str) -> str:
    return spec.removesuffix("model.py") or "." if spec.endswith("model.py") else spec
