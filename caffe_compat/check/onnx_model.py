"""ONNX files as models to compare, run by onnxruntime; inner tensors are shown where they have a blob's name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import CaffeError, ParseError
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner


@RUNNERS.add("onnx")
class OnnxModel(Runner):
    """An ONNX file. Data in files of their own must lie in its folder."""

    kind = "ONNX file"

    def __init__(self, path: str) -> None:
        onnx = _require("onnx")
        self.name = path
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's and onnx's, of many kinds
            raise ParseError(f"not a readable ONNX file: {error}", path) from None
        _check_external(model, path)
        weights = {tensor.name for tensor in model.graph.initializer}
        self._inputs = {value.name: tuple(dim.dim_value if dim.HasField("dim_value") else None
                                          for dim in value.type.tensor_type.shape.dim)
                        for value in model.graph.input if value.name not in weights}
        self._types = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                       for value in model.graph.input}
        self._outputs = [value.name for value in model.graph.output]
        self._inner = list(dict.fromkeys(name for node in model.graph.node for name in node.output if name))

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.endswith(".onnx") and os.path.isfile(spec)

    @classmethod
    def open(cls, spec: str, options: Options) -> OnnxModel:
        return cls(spec)

    def inputs(self) -> dict[str, OpenShape]:
        return dict(self._inputs)

    def outputs(self) -> list[str]:
        return list(self._outputs)

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        missing = sorted(set(self._inputs) - set(inputs))
        if missing:
            raise CaffeError(f"{self.name}: its inputs {', '.join(missing)} are not given; given are "
                             f"{', '.join(inputs) or 'none'}")
        shown = [name for name in self._inner if wanted is None or f"blob/{name}" in wanted]
        session = _session(self.name, [name for name in shown if name not in self._outputs])
        names = [*shown, *(name for name in self._outputs if name not in shown)]
        try:
            values = session.run(names, {name: np.asarray(inputs[name], self._types[name]) for name in self._inputs})
        except Exception as error:  # onnxruntime's own, of many kinds
            raise CaffeError(f"{self.name}: onnxruntime cannot run it: {_first_line(error)}") from None
        return {f"blob/{name}": np.asarray(array) for name, array in zip(names, values)
                if getattr(array, "dtype", np.dtype(object)).kind in "fiub"}


@contextmanager
def _showing(path: str, shown: list[str]) -> Iterator[str]:
    """A copy of the file with more outputs: they are appended to its bytes, which to protobuf is the same message with
    more in it, so that the model need not be in memory to be written."""
    onnx = _require("onnx")
    graph = onnx.GraphProto(output=[onnx.helper.make_empty_tensor_value_info(name) for name in shown])
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "model.onnx")
            shutil.copyfile(path, copy)
            with open(copy, "ab") as file:
                file.write(onnx.ModelProto(graph=graph).SerializeToString())
            yield copy
    except OSError as error:
        raise CaffeError(f"{path}: cannot be copied to be run: {error}") from None


def _session(path: str, shown: list[str]) -> Any:
    """A session whose outputs are the model's and the inner tensors `shown`.

    Nothing is optimized, as that would change what is computed inside.
    """
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0) or 0)
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path",
                                     os.path.dirname(os.path.abspath(path)))
    with _showing(path, shown) as copy:
        try:
            return runtime.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own, of many kinds
            raise CaffeError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from None


def _check_external(model: Any, path: str) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            place = entry.value.replace("\\", "/")
            if entry.key == "location" and (place.startswith("/") or ":" in place or ".." in place.split("/")):
                raise ParseError(f"{tensor.name} is stored in {entry.value}, outside of the model's folder; it is not "
                                 "opened", path)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _require(name: str) -> ModuleType:
    """A library that only ONNX files need."""
    try:
        return import_module(name)
    except ImportError:
        raise CaffeError(f"comparing ONNX files takes the package {name}: pip install 'caffe-compat[convert]'") from None
