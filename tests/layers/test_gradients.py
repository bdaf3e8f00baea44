"""The gradient of every recorded layer case against finite differences, in double precision."""

from __future__ import annotations

from copy import copy

import golden
import pytest
import torch

from caffe_compat.layers import LAYERS

#: Cases at a point where the layer has no derivative, or whose gradient is by design not the derivative.
NOT_DIFFERENTIABLE = {
    "Clip_boundary": "values on the limits",
    "Eltwise_max_ties": "equal maxima",
    "LSTMUnit_cont_fraction": "Caffe's gradient of the forget gate takes cont for 0 or 1",
    "LSTM_cont_fraction": "Caffe's gradient of the forget gate takes cont for 0 or 1",
    "MVN_eps": "Caffe's gradient takes eps for 0",
    "MultinomialLogisticLoss_zero_probability": "a clamped probability",
    "Pooling_max_ties": "equal maxima",
    "ReLU_zeros": "values at 0",
    "SoftmaxWithLoss_underflow": "a clamped probability",
}

#: Types without a gradient, and those whose gradient is tested by themselves.
NO_CASES = {
    "no backward pass": {"Accuracy", "ArgMax", "DetectionOutput", "PriorBox", "Silence", "Threshold"},
    "no bottoms": {"Data", "DummyData", "HDF5Data", "ImageData", "Input", "MemoryData", "WindowData"},
    "no tops": {"HDF5Output"},
    "gradients in test_ssd.py": {"Normalize", "Permute"},
    "the user's own gradient, see test_python.py": {"Python"},
}


def differentiable() -> list[dict]:
    return [case for case in golden.all_cases() if case["has_backward"] and case["name"] not in NOT_DIFFERENTIABLE]


@pytest.mark.parametrize("case", differentiable(), ids=lambda case: case["name"])
def test_gradient(case):
    """Bottoms that Caffe gives a gradient to, and all parameters."""
    with golden.folder_of(case):
        net = golden.build(case)
    golden.run_forward(net, case)
    layer, values = net.layer_dict["layer"], golden.recorded(case, "bottom")
    moving = golden.recorded(case, "bottom_diff")
    bottoms = [torch.from_numpy(values[name]).double().requires_grad_(name in moving) for name in case["bottoms"]]
    learned = not golden.recorded(case, "param_after")  # BatchNorm's blobs are statistics
    params = [blob.tensor.detach().double().requires_grad_(learned) for blob in layer.blobs]

    def top_values(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for blob, tensor in zip(layer.blobs, tensors[len(bottoms):]):
            blob.tensor = tensor
        tops = copy(layer).forward(*tensors[:len(bottoms)])  # on a copy, as RNN and LSTM carry a state to the next pass
        return tuple(top for top in (tops if isinstance(tops, tuple) else (tops,)) if top.requires_grad)

    assert torch.autograd.gradcheck(top_values, (*bottoms, *params), atol=1e-5, rtol=1e-3, nondet_tol=0, fast_mode=True)


def test_every_type_is_checked():
    """A type has a case above, or no gradient."""
    checked = {case["type"] for case in differentiable()}
    without = set().union(*NO_CASES.values())
    assert not checked & without
    assert set(LAYERS.names()) <= checked | without
