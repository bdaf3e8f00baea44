"""Layers in ONNX against what Caffe recorded: every case of tests/golden/layers, run by onnxruntime."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.convert import UnsupportedLayer
from caffe_compat.convert.onnx_writer import ONNX
from caffe_compat.convert.targets import HANDLED, Unsupported
from caffe_compat.layers import LAYERS
from caffe_compat.net import Net

pytest.importorskip("onnx", reason="needs onnx (the extra `convert`)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `convert`)")

from onnx_running import check_same, export, run_model

FOLDER = Path(__file__).parents[1] / "golden" / "layers"
CASES = [case for case in json.loads((FOLDER / "cases.json").read_text()) if case["type"] not in HANDLED]
#: Cases whose recorded tops are not to be had, and why.
NOT_AS_RECORDED = {
    "LSTM_two_passes": "an ONNX file has no memory from one pass to the next",
    "RNN_two_passes": "an ONNX file has no memory from one pass to the next",
    "Eltwise_sum_coeff_inplace": "Caffe clears the shared buffer before it reads the first bottom",
}


@cache
def recorded(kind: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{kind}.npz") as file:
        return dict(file)


def arrays(case: dict[str, Any], what: str) -> dict[str, np.ndarray]:
    prefix = f"{case['name']}/{what}/"
    return {key.removeprefix(prefix): value for key, value in recorded(case["type"]).items() if key.startswith(prefix)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded tops, and those of our net; or a refusal, with the reason."""
    monkeypatch.chdir(FOLDER)
    net = Net(proto.parse_text(case["prototxt"], "NetParameter"), case["phase"], seed=0)
    for index, values in arrays(case, "param").items():
        net.params["layer"][int(index)].data[...] = values
    inputs = {name: values for name, values in arrays(case, "bottom").items() if name in case["inputs"]}
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    entry = ONNX.get(case["type"])
    try:
        found = run_model(export(net), inputs)
    except UnsupportedLayer as error:
        assert error.reason == entry.reason if isinstance(entry, Unsupported) else entry.limits
        return
    net.forward()
    tops = {name: values for name, values in arrays(case, "top").items() if name in found}
    assert tops or not set(case["tops"]) & set(net.outputs)
    for name, values in tops.items():
        for expected in [net.blobs[name].data] + [values] * (case["name"] not in NOT_AS_RECORDED):
            assert found[name].shape == expected.shape
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_type_has_an_entry() -> None:
    """An emitter, or the reason why there is none; and a recorded case, or a test of its own."""
    assert set(ONNX.names()) | set(HANDLED) >= set(LAYERS.names())
    without_case = set(LAYERS.names()) - {case["type"] for case in CASES} - set(HANDLED)
    assert without_case == {"Python", "Permute", "Normalize", "PriorBox", "DetectionOutput"}
    for name in ONNX.names():
        entry = ONNX.get(name)
        assert len(entry.reason) > 20 if isinstance(entry, Unsupported) else entry.__doc__


def net_of(text: str, phase: str = "TEST", **shapes: tuple[int, ...]) -> Net:
    """The net of inputs of the given shapes and the layers in `text`, its parameters random."""
    inputs = "".join(f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
                     f'{" ".join(f"dim: {size}" for size in shape)} }} }} }}\n' for name, shape in shapes.items())
    net = Net(proto.parse_text(inputs + text, "NetParameter"), phase, seed=0)
    rng = np.random.RandomState(1)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = rng.standard_normal(blob.shape)
    return net


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_pooling(method: str) -> None:
    """Over a grid of windows, those with empty ones and with more padding than half the kernel among them."""
    settings = [(k, s, p, n, r) for k, s, p, n, r in product((1, 2, 3), (1, 2, 3, 5), (0, 1, 2), (5, 6, 8), ("CEIL", "FLOOR"))
                if p < k and not (method == "STOCHASTIC" and p)]
    for size in (5, 6, 8):
        text = "".join(
            f'layer {{ name: "p{i}" type: "Pooling" bottom: "x" top: "p{i}" pooling_param {{ pool: {method} kernel_h: {k} '
            f'kernel_w: 2 stride_h: {s} stride_w: 1 pad_h: {p} pad_w: 0 round_mode: {r} }} }}\n'
            for i, (k, s, p, n, r) in enumerate(settings) if n == size)
        check_same(net_of(text, x=(2, 3, size, 5)), {"x": values(2, 3, size, 5)})


def test_ssd_layers() -> None:
    """Permute, Normalize and PriorBox, for any number of images."""
    net = net_of("""
        layer { name: "norm" type: "Normalize" bottom: "x" top: "norm"
                norm_param { across_spatial: false channel_shared: false eps: 1e-4 } }
        layer { name: "all" type: "Normalize" bottom: "x" top: "all" norm_param { eps: 1e-4 } }
        layer { name: "perm" type: "Permute" bottom: "norm" top: "perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
        layer { name: "flat" type: "Flatten" bottom: "perm" top: "flat" }
        layer { name: "prior" type: "PriorBox" bottom: "x" bottom: "image" top: "prior"
                prior_box_param { min_size: 8 max_size: 14 aspect_ratio: 2 clip: true variance: 0.1 } }
        """, x=(2, 3, 4, 5), image=(2, 3, 32, 40))
    model = check_same(net, {"x": values(2, 3, 4, 5), "image": values(2, 3, 32, 40)})
    assert {out.name: out.type.tensor_type.shape.dim[0].dim_param for out in model.graph.output} == {
        "all": "N", "flat": "N", "prior": ""}


DETECTION = """layer { name: "found" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "found"
                       detection_output_param { %s } }"""


@pytest.mark.parametrize("code", ["CORNER", "CENTER_SIZE", "CORNER_SIZE"])
@pytest.mark.parametrize(("settings", "share"), [
    ("confidence_threshold: 0.3 nms_param { nms_threshold: 0.4 }", True),
    ("confidence_threshold: 0.1 nms_param { nms_threshold: 0.5 top_k: 6 } keep_top_k: 5", False),
    ("nms_param { nms_threshold: 0.1 top_k: 9 } keep_top_k: 200 variance_encoded_in_target: true", True),
    ("background_label_id: -1 confidence_threshold: 0.95 keep_top_k: 1", False),
    ("confidence_threshold: 2", True), ("confidence_threshold: 0.5 keep_top_k: 0", True)])
def test_detection_output(code: str, settings: str, share: bool) -> None:
    """The detections of our net, for the number of images it was made for and for another."""
    images, priors, classes = 3, 12, 4
    sets = 1 if share else classes
    more = f"num_classes: {classes} share_location: {str(share).lower()} code_type: {code} {settings}"
    net = net_of(DETECTION % more, loc=(images, priors * sets * 4), conf=(images, priors * classes), prior=(1, 2, priors * 4))
    rng = np.random.RandomState(3)
    low = rng.uniform(0, 0.6, (priors, 2))
    boxes = np.concatenate((low, low + rng.uniform(0.1, 0.4, (priors, 2))), 1)
    prior = np.stack((boxes.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], priors)))[None].astype(np.float32)
    given = {"loc": values(images, priors * sets * 4) * 0.3,
             "conf": rng.uniform(0, 1, (images, priors * classes)).astype(np.float32), "prior": prior}
    check_same(net, given)


@pytest.mark.parametrize(("settings", "reason"), [
    ("nms_param { eta: 0.9 }", "eta"), ("nms_param { nms_threshold: 1.5 }", "above 1")])
def test_detection_output_that_cannot_be(settings: str, reason: str) -> None:
    with pytest.raises(UnsupportedLayer, match=reason):
        export(net_of(DETECTION % f"num_classes: 2 {settings}", loc=(1, 16), conf=(1, 8), prior=(1, 2, 16)))


def test_a_type_of_ones_own(hard_swish: str) -> None:
    """The example of docs/convert-types.md: a type is refused until it has an entry."""
    text = (Path(__file__).parents[2] / "docs" / "convert-types.md").read_text()
    net = net_of(hard_swish, x=(2, 3))
    with pytest.raises(UnsupportedLayer, match="act.*HardSwish layer cannot be converted to ONNX"):
        export(net)
    exec(text.split("# myfork_onnx.py")[1].split("```")[0], {})
    check_same(net, {"x": 4 * values(2, 3)})


def test_random_pooling_is_refused() -> None:
    """With the layer's name and the reason."""
    with pytest.raises(UnsupportedLayer, match="pool.*random numbers"):
        export(net_of('layer { name: "pool" type: "Pooling" bottom: "x" top: "y" pooling_param { pool: STOCHASTIC '
                      'kernel_size: 2 } }', "TRAIN", x=(1, 1, 4, 4)))
