"""Running an ONNX file: by onnxruntime, or by onnx's own reference, which is slow, where that is not installed."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from ..errors import CaffeError
from .onnx_writer import require_onnx


def run_onnx(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an ONNX model by onnxruntime, or by onnx's (slow) reference where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        require_onnx()
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(os.fspath(path))
        names, types = session.output_names, dict(zip(session.input_names, session.input_types))
        dtypes = {name: type.tensor_type.elem_type for name, type in types.items()}
        feeds = {name: _as_element(array, dtypes[name]) for name, array in inputs.items() if name in dtypes}
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # its optimizer moves a Pad with zeros into the MaxPool behind it (1.31), where zeros below the largest are lost
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CaffeError(f"{os.fspath(path)}: onnxruntime cannot load it: {error}") from None
        names = [output.name for output in session.get_outputs()]
        kinds = {given.name: given.type for given in session.get_inputs()}
        feeds = {name: array.astype(_DTYPES.get(kinds[name], np.float32)) for name, array in inputs.items()
                 if name in kinds}
    return dict(zip(names, session.run(names, feeds)))


_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
           "tensor(int32)": np.int32}


def _as_element(array: np.ndarray, element: int) -> np.ndarray:
    return array.astype(require_onnx().helper.tensor_dtype_to_np_dtype(element))

