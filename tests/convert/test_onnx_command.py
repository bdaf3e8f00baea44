"""`caffe-compat convert` to ONNX and back: its options, its errors, and the package that it does not ask for too early."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.cli import main
from caffe_compat.convert import TARGETS, support
from caffe_compat.net import Net

onnx = pytest.importorskip("onnx", reason="needs onnx (the extra `convert`)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `convert`)")

from caffe_compat.convert.onnx_run import run_onnx  # noqa: E402

NET = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "block/conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
""".replace('top: "data" input_param', 'top: "data" top: "label" input_param').replace(
    "dim: 8 } }", "dim: 8 } shape { dim: 2 } }")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with net.prototxt and net.caffemodel."""
    (tmp_path / "net.prototxt").write_text(NET)
    net = Net(tmp_path / "net.prototxt", seed=1)
    mean, variance, divisor = net.params["bn"]
    mean.data[...], variance.data[...], divisor.data[...] = np.linspace(-1, 1, 6), np.linspace(1, 2, 6), 2
    net.save(tmp_path / "net.caffemodel")
    return tmp_path


def convert(folder: Path, *flags: str, out: str = "net.onnx") -> int:
    return main(["convert", str(folder / "net.prototxt"), str(folder / "net.caffemodel"), "--to", "onnx", "--out",
                 str(folder / out), *flags])


def caffe(folder: Path, x: np.ndarray) -> np.ndarray:
    net = Net(folder / "net.prototxt")
    net.copy_from(folder / "net.caffemodel")
    net.blobs["data"].data[...] = x
    net.run(end="fc")
    return net.blobs["fc"].data


X = np.random.RandomState(4).uniform(0, 255, (2, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("flags", [[], ["--fold"], ["--half"], ["--rename", "block/conv=first", "--rename", "fc=last"],
                                   ["--no-check"]])
def test_to_onnx(model: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without the loss and the labels; checked unless told not to."""
    assert convert(model, *flags) == 0
    said = capsys.readouterr().out
    assert "not compared" in said if "--no-check" in flags else "equals Caffe's net in 1 values" in said
    graph = onnx.load(model / "net.onnx").graph
    assert [value.name for value in graph.input] == ["data"] and [value.name for value in graph.output] == ["fc"]
    nodes = {node.name: node.op_type for node in graph.node}
    assert ("bn" in nodes) == (flags != ["--fold"])
    assert (("first" in nodes, "last/0" in {tensor.name for tensor in graph.initializer}) == (True, True)) == (
        "--rename" in flags)
    found = run_onnx(model / "net.onnx", {"data": X / 50})["fc"]
    np.testing.assert_allclose(found, caffe(model, X / 50), rtol=1e-4, atol=1e-2 if "--half" in flags else 1e-4)


def test_preprocessing_is_built_in(model: Path) -> None:
    """RGB images from 0 to 255, as they are."""
    assert convert(model, "--mean", "104,117,123", "--scale", "0.0625", "--swap-channels") == 0
    bgr = (X[:, ::-1] - np.array([104, 117, 123], np.float32)[:, None, None]) * 0.0625
    found = run_onnx(model / "net.onnx", {"data": X})["fc"]
    np.testing.assert_allclose(found, caffe(model, bgr), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_back(model: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same outputs from the files that come back, of the shapes that the net had or others."""
    assert convert(model) == 0
    for flags, shape in (([], (2, 3, 8, 8)), (["--input", "data=5,3,8,8"], (5, 3, 8, 8))):
        out = str(model / f"back{suffix}")
        assert main(["convert", str(model / "net.onnx"), "--to", "caffe", "--out", out, *flags]) == 0
        assert f"back.caffemodel{suffix}" in capsys.readouterr().out
        net = Net(model / "back.prototxt")
        net.copy_from(model / f"back.caffemodel{suffix}")
        assert net.blobs["data"].shape == shape
        net.blobs["data"].data[:2] = X / 50
        np.testing.assert_allclose(net.forward()["fc"].numpy()[:2], caffe(model, X / 50), rtol=1e-4, atol=1e-4)


def test_errors_are_words(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, no file: a layer, a model and a file that cannot be."""
    (model / "net.prototxt").write_text(NET.replace('type: "ReLU"', 'type: "Im2col" convolution_param { }'))
    assert convert(model) == 1
    (model / "net.prototxt").write_text(NET.replace(
        'type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss"', 'type: "HingeLoss" bottom: "fc" bottom: "label"'))
    capsys.readouterr()
    assert convert(model, "--keep-losses") == 1
    error = capsys.readouterr().err
    assert "this HingeLoss layer cannot be converted to ONNX: it compares with labels" in error and "net.prototxt:" in error
    assert not (model / "net.onnx").exists()
    (model / "wrong.onnx").write_text("no model")
    assert main(["convert", str(model / "wrong.onnx"), "--to", "caffe", "--out", str(model / "back")]) == 1
    assert "not an ONNX model" in capsys.readouterr().err
    node = onnx.helper.make_node("Erf", ["x"], ["y"], "strange")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1, 2]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), model / "gap.onnx")
    assert main(["convert", str(model / "gap.onnx"), "--to", "caffe", "--out", str(model / "back")]) == 1
    assert 'Erf "strange": Caffe has no layer' in capsys.readouterr().err
    assert not list(model.glob("back*"))


def test_onnx_is_asked_for_late(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the package everything else works, and the error says how to get it."""
    assert convert(model) == 0
    imported = {name: vars(module) for name, module in sys.modules.items() if name.startswith("caffe_compat.convert.onnx_")}
    assert len(imported) > 8
    assert not [name for name, names in imported.items() if {"onnx", "onnxruntime"} & set(names)]
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert {entry["onnx"] for entry in support().values()} and "onnx" in TARGETS
    capsys.readouterr()
    assert convert(model, out="other.onnx") == 1
    assert "pip install 'caffe-compat[convert]'" in capsys.readouterr().err
    assert main(["convert", str(model / "net.onnx"), "--to", "caffe", "--out", str(model / "back")]) == 1
    assert "pip install 'caffe-compat[convert]'" in capsys.readouterr().err
