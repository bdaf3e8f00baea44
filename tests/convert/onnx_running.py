"""Nets as ONNX models in memory, run by onnxruntime after onnx's full check."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from caffe_compat.convert import Graph
from caffe_compat.convert.onnx_target import translate
from caffe_compat.convert.passes import drop_identities, drop_silent
from caffe_compat.net import Net


def export(net: Net, half: bool = False) -> Any:
    """The model of a net."""
    return translate(Graph.of(net).run([drop_silent, drop_identities]), half).model(with_weights=True)


def run_model(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a model. The optimizer is left out, so that it is the operators themselves that are tested."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    # an input that a layer in place overwrites is `x.v0`
    feeds = {given.name: inputs[given.name.removesuffix(".v0")] for given in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds)))


def check_same(net: Net, inputs: dict[str, np.ndarray], rtol: float = 1e-4, atol: float = 1e-5, half: bool = False) -> Any:
    """Compares a net with its ONNX model on `inputs`; returns the model."""
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    model = export(net, half)
    found = run_model(model, inputs)
    net.forward()
    assert set(found) == set(net.outputs)
    for name, values in found.items():
        np.testing.assert_allclose(values, net.blobs[name].data, rtol=rtol, atol=atol, err_msg=name)
    return model
