"""Every layer type as a torch module: what Caffe recorded, forward and backward; and the table of what is supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from test_golden import NOT_AS_RECORDED
from torch import nn

from caffe_compat import proto
from caffe_compat.convert import TARGETS, TORCH, Graph, Options, UnsupportedLayer, open_net, support, to_torch
from caffe_compat.convert.targets import HANDLED
from caffe_compat.convert.torch_formats import run_exported, write_exported
from caffe_compat.convert.torch_source import Model
from caffe_compat.convert.torch_target import to_module
from caffe_compat.layers import LAYERS

#: Cases that torch has no module for, and what is said.
UNSUPPORTED = {"Convolution_no_spatial": "0 spatial axes"}
#: Cases whose gradient in Caffe is not the derivative, which is what torch computes; the layers' docstrings tell of them.
OTHER_GRADIENT = {
    **NOT_AS_RECORDED,
    "ContrastiveLoss_zero_distance": "Caffe divides by d + 1e-4",
    "LSTMUnit_cont_fraction": "Caffe's gradient of the forget gate holds where cont is 0 or 1",
    "LSTM_cont_fraction": "as above",
}
CASES = [case for case in golden.all_cases() if case["feed"] == "inputs" and case["type"] != "Input"]


def modules_of(case: dict) -> tuple[Graph, nn.Module]:
    """The case as a module that returns the tops of the layer under test."""
    with golden.folder_of(case):
        graph = Graph.of(golden.build(case))
    graph.outputs = list(dict.fromkeys([*graph.outputs, *(top for top in case["tops"])]))
    return graph, to_module(graph)


def run(graph: Graph, module: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = module(*(inputs[graph.blob(value)] for value in graph.inputs))
    return found if isinstance(found, dict) else {graph.blob(graph.outputs[0]): found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict) -> None:
    """The tops, and after training BatchNorm's sums, are what Caffe gave."""
    if case["name"] in UNSUPPORTED:
        with pytest.raises(UnsupportedLayer, match=UNSUPPORTED[case["name"]]):
            modules_of(case)
        return
    graph, module = modules_of(case)
    inputs = {name: torch.from_numpy(values.copy()) for name, values in golden.recorded(case, "bottom").items()}
    with torch.no_grad():
        for _ in range(case["n_forward"]):
            found = run(graph, module, inputs)
    if case["name"] != "Eltwise_sum_coeff_inplace":
        for name, values in golden.recorded(case, "top").items():
            golden.compare(found[name].detach().numpy(), values, f"{case['name']}: top {name}")
    after = golden.recorded(case, "param_after")
    if after:
        state = {key.partition(".")[2]: value.numpy() for key, value in module.state_dict().items() if key.startswith("layer.")}
        blobs = Model(graph).modules["layer"].blobs(state)
        by_means = not module.training and "divisor" not in state  # torch's own keeps means, without their divisor
        for index, values in after.items():
            means = np.ones(1) if index == "2" else values / (after["2"] or np.inf)
            expected = means if by_means else values
            golden.compare(blobs[int(index)].reshape(values.shape), expected, f"{case['name']}: parameter {index} after")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted({case["type"] for case in CASES}))
def test_cases_on_a_gpu(kind: str) -> None:
    """So they are on CUDA."""
    for case in golden.cases(kind):
        if case not in CASES or case["name"] in (*UNSUPPORTED, "Eltwise_sum_coeff_inplace"):
            continue
        graph, module = modules_of(case)
        module.cuda()
        inputs = {name: torch.from_numpy(values.copy()).cuda() for name, values in golden.recorded(case, "bottom").items()}
        with torch.no_grad():
            for _ in range(case["n_forward"]):
                found = run(graph, module, inputs)
        for name, values in golden.recorded(case, "top").items():
            golden.compare(found[name].cpu().numpy(), values, f"{case['name']}: top {name}")


@pytest.mark.parametrize("kind", sorted({case["type"] for case in CASES}))
def test_gradients(kind: str) -> None:
    """The diffs of bottoms and parameters are Caffe's, so that what is converted trains as it did."""
    checked = 0
    for case in golden.cases(kind):
        name = case["name"]
        if not case["has_backward"] or case["feed"] != "inputs" or name in UNSUPPORTED or name in OTHER_GRADIENT:
            continue
        if not case["prototxt"].startswith(f'name: "{name}"\nforce_backward'):
            continue  # layers around it compute the top diff
        graph, module = modules_of(case)
        checked += _check_gradients(case, graph, module)
    without = {"Accuracy", "ArgMax", "DummyData", "Input", "Parameter", "Threshold", "BatchReindex", "Embed", "Filter"}
    assert checked or kind in without


def _check_gradients(case: dict, graph: Graph, module: nn.Module) -> int:
    wanted = golden.recorded(case, "bottom_diff")
    inputs = {name: torch.from_numpy(values.copy()).requires_grad_(name in wanted)
              for name, values in golden.recorded(case, "bottom").items()}
    for _ in range(case["n_forward"]):
        found = run(graph, module, inputs)
    diffs = {name: torch.from_numpy(values.copy()) for name, values in golden.recorded(case, "top_diff").items()
             if found[name].requires_grad}
    for _ in range(case["n_backward"]):
        for x in inputs.values():
            x.grad = None
        torch.autograd.backward([found[name] for name in diffs], list(diffs.values()), retain_graph=True)
    in_place = {node.name for node in graph.nodes} and set(case["bottoms"]) & set(case["tops"])
    for name, values in wanted.items():
        if name in inputs and not in_place:
            grad = inputs[name].grad
            golden.compare(np.zeros_like(values) if grad is None else grad.numpy(), values, f"{case['name']}: diff of {name}")
    made = Model(graph).modules["layer"]
    grads = {key: parameter.grad for key, parameter in module.named_parameters()}
    state = {key: np.zeros_like(values) if (grad := grads.get(f"layer.{key}")) is None else grad.numpy()
             for key, values in made.state.items()}
    if case["type"] != "BatchNorm":
        for index, values in golden.recorded(case, "param_diff").items():
            golden.compare(made.blobs(state)[int(index)], values, f"{case['name']}: diff of parameter {index}")
    return 1


def test_every_type_has_an_entry() -> None:
    """In every target: a way to convert it, or the reason why not."""
    assert set(TORCH.names()) | set(HANDLED) >= set(LAYERS.names())
    for kind, targets in support().items():
        for target in TARGETS.names():
            assert targets[target], kind
            assert "nobody has registered" not in targets[target], f"{kind} in {target}"


SSD = """
layer { name: "in" type: "Input" top: "data" top: "f" input_param { shape { dim: 2 dim: 3 dim: 60 dim: 80 }
                                                                    shape { dim: 2 dim: 4 dim: 3 dim: 5 } } }
layer { name: "norm" type: "Normalize" bottom: "f" top: "n" norm_param { across_spatial: false
        scale_filler { type: "uniform" min: 1 max: 2 } channel_shared: %(shared)s } }
layer { name: "loc" type: "Convolution" bottom: "n" top: "loc" convolution_param { num_output: 16 kernel_size: 1
        weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "loc_perm" type: "Permute" bottom: "loc" top: "loc_perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "loc_flat" type: "Flatten" bottom: "loc_perm" top: "loc_flat" }
layer { name: "conf" type: "Convolution" bottom: "n" top: "conf" convolution_param { num_output: 12 kernel_size: 1
        weight_filler { type: "gaussian" std: 1 } } }
layer { name: "conf_perm" type: "Permute" bottom: "conf" top: "conf_perm"
        permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "conf_shape" type: "Reshape" bottom: "conf_perm" top: "conf_shape"
        reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "conf_soft" type: "Softmax" bottom: "conf_shape" top: "conf_soft" softmax_param { axis: 2 } }
layer { name: "conf_flat" type: "Flatten" bottom: "conf_soft" top: "conf_flat" }
layer { name: "prior" type: "PriorBox" bottom: "f" bottom: "data" top: "prior" prior_box_param { min_size: 20.5 max_size: 31
        aspect_ratio: 2 flip: true clip: %(clip)s variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 offset: 0.5
        %(step)s } }
layer { name: "found" type: "DetectionOutput" bottom: "loc_flat" bottom: "conf_flat" bottom: "prior" top: "found"
        detection_output_param { num_classes: 3 background_label_id: 0 keep_top_k: %(keep)s confidence_threshold: %(least)s
        code_type: %(code)s nms_param { nms_threshold: 0.45 top_k: 20 eta: %(eta)s } } }
"""


@pytest.mark.parametrize("settings", [
    {"code": "CENTER_SIZE", "keep": 10, "least": 0.2}, {"code": "CORNER", "keep": -1, "least": 0.2, "clip": "true"},
    {"code": "CORNER_SIZE", "eta": 0.9, "shared": "true", "keep": 5, "least": 0.3, "step": "step: 16 img_size: 80"},
    {"code": "CENTER_SIZE", "least": 1.5, "keep": 10},
], ids=["centre", "corner", "corner_size", "nothing"])
def test_detection(settings: dict[str, Any]) -> None:
    """Priors and detections of a small SSD are those of our own net, also where there are none."""
    text = SSD % {"shared": "false", "clip": "false", "step": "", "eta": 1, **settings}
    net, _ = open_net(proto.parse_text(text, "NetParameter"))
    module = to_torch(net)
    rng = np.random.RandomState(5)
    inputs = {name: rng.standard_normal(net.blobs[name].shape).astype(np.float32) for name in ("data", "f")}
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    net.forward()
    with torch.no_grad():
        found = module(*map(torch.from_numpy, inputs.values()))
    golden.compare(found.numpy(), net.blobs["found"].data, "found")
    assert (len(found[0, 0]) > 4) == (settings["least"] < 1)
    with pytest.raises(UnsupportedLayer, match="found .*DetectionOutput layer cannot be converted to exported"):
        write_exported(Graph.of(net), "never.pt2", Options())


@pytest.mark.parametrize("name", ["LSTM_test_phase", "Slice_points", "Pooling_max_stride_gt_kernel", "Reshape_copy_infer",
                                  "ArgMax_maxval_topk2", "Parameter_2d", "BatchNorm_test_4d"])
def test_exported(name: str, tmp_path: Path) -> None:
    """As a torch.export program."""
    case = golden.case_named(name)
    graph, _ = modules_of(case)
    inputs = golden.recorded(case, "bottom")
    write_exported(graph, tmp_path / "a.pt2", Options())
    found = run_exported(tmp_path / "a.pt2", {graph.blob(value): inputs[graph.blob(value)] for value in graph.inputs})
    for top, values in golden.recorded(case, "top").items():
        golden.compare(found[top], values, f"{name}: top {top}")
