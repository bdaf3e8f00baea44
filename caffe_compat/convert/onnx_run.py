"""Running an ONNX file: by onnxruntime, or by onnx's own reference, which is slow, where that is not installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import CaffeError
from .onnx_writer import require_onnx


def run_onnx(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an ONNX model for inputs, which are given in float32 whatever their type is there."""
    return session(path)(inputs)


def session(path: str | os.PathLike[str]) -> Callable[[Mapping[str, np.ndarray] | np.ndarray], dict[str, np.ndarray]]:
    """A model, to be run many times: a function of its inputs, by name, or of its only one."""
    name = os.fspath(path)
    try:
        import onnxruntime
    except ImportError:
        return _reference(name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # its optimizer moves a Pad with zeros into the MaxPool behind it (1.31), where zeros below the largest are lost
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # or it would hold most weights twice
    try:
        model = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CaffeError(f"{name}: onnxruntime cannot load it: {error}") from None
    return _runner(model.run, [given.name for given in model.get_outputs()],
                   {given.name: _DTYPES.get(given.type, np.float32) for given in model.get_inputs()})


def _reference(path: str) -> Callable[..., dict[str, np.ndarray]]:
    onnx = require_onnx()
    from onnx.reference import ReferenceEvaluator

    model = ReferenceEvaluator(path)
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type) for kind in model.input_types]
    return _runner(model.run, model.output_names, dict(zip(model.input_names, kinds)))


def _runner(run: Callable[..., list[np.ndarray]], outputs: list[str], inputs: Mapping[str, Any],
            ) -> Callable[..., dict[str, np.ndarray]]:
    def call(given: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        arrays = given if isinstance(given, Mapping) else {next(iter(inputs)): given}
        return dict(zip(outputs, run(outputs, {name: arrays[name].astype(kind, copy=False)
                                               for name, kind in inputs.items() if name in arrays})))

    return call


_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
           "tensor(int32)": np.int32}
