"""torch exports (a folder with model.py and weights) and torch modules as models to compare."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch

from ..errors import CaffeError, ParseError
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner

_WEIGHTS = ("*.pt", "*.pth", "*.safetensors")


@RUNNERS.add("torch")
class TorchModel(Runner):
    """A torch module whose `forward` takes a net's inputs and returns its outputs.

    What it calls them is in its attributes (or its file's): `INPUTS`, `OUTPUTS`, and `BLOBS`, {blob: local variable of
    forward}; without them they are called as forward's arguments, its local variables and what it returns.
    """

    kind = "torch module"

    def __init__(self, module: torch.nn.Module, name: str, device: str = "cpu", source: ModuleType | None = None) -> None:
        self.name = name
        self._module = module.to(device).eval()
        self._device = device
        self._source = source
        arguments = [p.name for p in inspect.signature(module.forward).parameters.values()
                     if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._inputs = list(self._attribute("INPUTS", arguments))
        self._outputs = list(self._attribute("OUTPUTS", ()))
        self._blobs = dict(self._attribute("BLOBS", {}))

    @classmethod
    def claims(cls, spec: str) -> bool:
        return os.path.isfile(_model_file(spec))

    @classmethod
    def open(cls, spec: str, options: Options) -> TorchModel:
        path = _model_file(spec)
        if not options.allow_code:
            raise CaffeError(f"{path}: is code, which comparing would run; read it, then allow that with --allow-code "
                             "(from Python: Options(allow_code=True))")
        source = _import(path)
        module = _make(source, path)
        _load(module, os.path.dirname(path) or ".")
        return cls(module, path, options.device, source)

    @classmethod
    def of(cls, module: object, options: Options) -> TorchModel | None:
        """A torch module that is there already."""
        if not isinstance(module, torch.nn.Module):
            return None
        return cls(module, type(module).__name__, options.device)

    def inputs(self) -> dict[str, OpenShape]:
        shapes = self._attribute("INPUT_SHAPES", {})
        return {name: tuple(shapes[name]) for name in self._inputs if name in shapes}

    def outputs(self) -> list[str]:
        return list(self._outputs)

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise CaffeError(f"{self.name}: its inputs {', '.join(missing)} are not given; given are "
                             f"{', '.join(inputs) or 'none'}")
        weight = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        dtype = weight.dtype if weight is not None else torch.float32
        tensors = [torch.from_numpy(np.array(inputs[name])).to(self._device, dtype) for name in self._inputs]
        with torch.no_grad(), _locals_of(type(self._module).forward) as variables:
            try:
                returned = self._module(*tensors)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise CaffeError(f"{self.name}: cannot run: {error}") from error
        variables = {name: value for name, value in variables.items() if isinstance(value, torch.Tensor)}
        names = self._blobs or {name: name for name in variables}
        found = {blob: variables[name] for blob, name in names.items() if name in variables and blob not in self._inputs}
        found.update(self._named(returned))
        return {f"blob/{name}": value.detach().float().cpu().numpy() for name, value in found.items()
                if isinstance(value, torch.Tensor) and (wanted is None or f"blob/{name}" in wanted)}

    def _named(self, returned: Any) -> dict[str, Any]:
        if isinstance(returned, Mapping):
            return dict(returned)
        values = returned if isinstance(returned, tuple | list) else (returned,)
        names = self._outputs or [f"output{k}" for k in range(len(values))]
        if len(names) != len(values):
            raise CaffeError(f"{self.name}: forward returns {len(values)} values, but OUTPUTS names {len(names)}")
        return dict(zip(names, values))

    def _attribute(self, name: str, default: Any) -> Any:
        return getattr(self._module, name, getattr(self._source, name, default))


@contextmanager
def _locals_of(function: Any) -> Iterator[dict[str, Any]]:
    """Collects the local variables of a function as it returns, so that the model needs no second forward to show them."""
    found: dict[str, Any] = {}
    before = sys.getprofile()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is function.__code__:
            found.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _model_file(spec: str) -> str:
    return os.path.join(spec, "model.py") if os.path.isdir(spec) else spec if spec.endswith(".py") else ""


def _import(path: str) -> ModuleType:
    """The module in a file, under no name that others could import."""
    spec = importlib.util.spec_from_file_location("exported_model", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ParseError(f"cannot be imported: {type(error).__name__}: {error}", path) from error
    return module


def _make(source: ModuleType, path: str) -> torch.nn.Module:
    classes = [value for value in vars(source).values() if isinstance(value, type) and issubclass(value, torch.nn.Module)
               and value.__module__ == source.__name__]
    cls = getattr(source, "Net", None) or (classes[-1] if classes else None)
    if cls is None:
        raise ParseError("defines no torch.nn.Module; expected what `convert --to torch` writes", path)
    try:
        return cls()
    except Exception as error:
        raise ParseError(f"{cls.__name__}() fails: {type(error).__name__}: {error}", path) from error


def _load(module: torch.nn.Module, folder: str) -> None:
    """The weights that lie beside the file, all of them and no others; nothing is unpickled but tensors."""
    if not module.state_dict():
        return
    files = sorted(path for pattern in _WEIGHTS for path in glob(os.path.join(glob_escape(folder), pattern)))
    if len(files) != 1:
        raise CaffeError(f"{folder}: expected one file of weights ({', '.join(_WEIGHTS)}) beside model.py, found "
                         f"{', '.join(map(os.path.basename, files)) or 'none'}")
    try:
        if files[0].endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(files[0])
        else:
            state = torch.load(files[0], map_location="cpu", weights_only=True, mmap=True)
        module.load_state_dict(state)
    except Exception as error:  # of torch, pickle and safetensors
        raise CaffeError(f"{files[0]}: does not fit model.py: {error}") from error


def glob_escape(folder: str) -> str:
    """A folder's name for use in a pattern."""
    from glob import escape

    return escape(folder)
