"""Whole nets as torch modules: the published architectures and MTCNN, against what Caffe gave for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_nets
import torch

from caffe_compat.convert import Graph, Options, convert, to_caffe
from caffe_compat.convert.passes import passes_for
from caffe_compat.convert.torch_target import load_module, run_torch, write_torch
from caffe_compat.net import Net

#: Those that are converted in every run of the tests; the others with CAFFE_COMPAT_ALL_NETS set, as they take minutes.
SMALL = ("cifar10_full", "cifar10_quick", "lenet", "mobilenet_v2", "squeezenet_v1.1")
NETS = [pytest.param(name, marks=() if name in SMALL or os.environ.get("CAFFE_COMPAT_ALL_NETS") else
                     pytest.mark.skip(reason="large: set CAFFE_COMPAT_ALL_NETS to convert all nets"))
        for name in test_nets.RECORDED]


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(test_nets.FOLDER / f"{name}.npz") as file:
        return dict(file)


def filled(name: str) -> tuple[Net, dict[str, np.ndarray]]:
    """The net with weights by the recipe, and its input."""
    expected = test_nets.recorded(name)
    net = test_nets.build(name)
    test_nets.fill(net, expected)
    blob = expected["input"]["blob"]
    return net, {blob: net.blobs[blob].data.copy()}


def check_outputs(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The outputs, and what comes before a last Softmax, relative to their deviation."""
    for key in expected:
        kind, _, blob = key.partition("/")
        if kind in ("output", "pre_softmax") and blob in found:
            np.testing.assert_allclose(found[blob], expected[key], rtol=0, atol=1e-4 * expected[key].std(), err_msg=key)
    assert any(key.partition("/")[2] in found for key in expected if key.startswith(("output/", "pre_softmax/")))


@pytest.mark.parametrize("name", NETS)
def test_recorded(name: str, tmp_path: Path) -> None:
    """The written module gives what was recorded, every blob of it; folded too; and turned back, the same weights."""
    net, inputs = filled(name)
    expected = stored(name)
    graph = Graph.of(net)
    write_torch(graph, tmp_path / "plain", Options())
    found = run_torch(tmp_path / "plain", inputs)
    check_outputs(found, expected)
    _check_statistics({**inputs, **found}, expected)
    back = to_caffe(tmp_path / "plain", tmp_path / "back")
    _same_weights(net, Net(back[0]), back[1])
    graph.run(passes_for(Options(fold=True, inference=True)))
    write_torch(graph, tmp_path / "folded", Options())
    found = run_torch(tmp_path / "folded", inputs)
    assert not any(node.type in ("BatchNorm", "Scale", "Dropout") for node in graph.nodes)
    check_outputs(found, expected)


def _check_statistics(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    class Shown:
        """What `check_blobs` reads of a net."""

        def __init__(self, data: np.ndarray) -> None:
            self.data = data

    names = [str(name) for name in expected["blob_names"]]
    shown = [k for k, name in enumerate(names) if "_split_" not in name]
    kept: dict[str, Any] = {key: expected[key][shown] for key in ("blob_names", "mean", "std", "sample_index", "sample_value")}
    net = type("Blobs", (), {"blobs": {name: Shown(values) for name, values in found.items()}})
    test_nets.check_blobs(net, kept)  # type: ignore[arg-type]


def _same_weights(net: Net, again: Net, weights: Path) -> None:
    """Equal parameters; a BatchNorm's may have been divided by its third blob."""
    assert not again.copy_from(weights).missing
    for name, blobs in net.params.items():
        for ours, theirs in zip(blobs, again.params[name]):
            np.testing.assert_allclose(theirs.data, ours.data, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["det1", "det2", "det3"])
def test_mtcnn(name: str, shared: Path, tmp_path: Path) -> None:
    """From files of Caffe's older formats, for an input of another size than the prototxt's."""
    folder = shared / "data" / "mtcnn"
    if not (folder / "expected.npz").exists():
        pytest.skip("../shared/data/mtcnn is not there")
    report = convert(folder / f"{name}.prototxt", folder / f"{name}.caffemodel", "torch", tmp_path / name)
    assert report.weights and not report.weights.missing and report.comparison
    with np.load(folder / "expected.npz") as arrays:
        expected = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
    with torch.no_grad():
        found = load_module(tmp_path / name)(torch.from_numpy(expected["data"]))
    assert set(found) == set(expected) - {"data"}
    for blob, values in found.items():
        np.testing.assert_allclose(values.numpy(), expected[blob], rtol=0, atol=1e-5, err_msg=blob)
    prototxt, weights = to_caffe(tmp_path / name, tmp_path / "back")
    net = Net(prototxt)
    net.copy_from(weights)
    net.blobs["data"].reshape(*expected["data"].shape)
    net.blobs["data"].data[...] = expected["data"]
    for blob, values in net.forward().items():
        np.testing.assert_allclose(values.numpy(), expected[blob], rtol=0, atol=1e-5, err_msg=blob)
