"""check: two models compared blob by blob, whatever they are, and what is said of the first blob that differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import PROTOTXT, SPEC, Small, write_onnx, write_small

from caffe_compat.check import Difference, Options, Report, compare
from caffe_compat.check.hints import hint
from caffe_compat.check.inputs import make_inputs
from caffe_compat.cli import main
from caffe_compat.convert import convert
from caffe_compat.errors import CaffeError
from caffe_compat.net import Net

ROOT = Path(__file__).parents[1]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    """The small net; its files are in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_small(tmp_path)


def keys(report: Report) -> list[str]:
    return [item.key for item in report.differences]


# -- the kinds of models ----------------------------------------------------------------------------------------------


def test_a_net_equals_itself(net: Net) -> None:
    report = compare(SPEC, "small.prototxt:small.caffemodel")
    assert report.equal and report.worst == 0
    assert keys(report) == ["blob/conv1.v0", "blob/conv1", "blob/pool1", "blob/ip"]
    assert report.differences[1].layer == "relu1 (small.prototxt:5)"


def test_weights_in_hdf5_and_objects(net: Net) -> None:
    net.save("small.caffemodel.h5")
    assert compare("small.prototxt:small.caffemodel.h5", SPEC).worst == 0
    assert compare(net, SPEC).worst == 0
    assert compare(SPEC, Small(net)).equal


def test_every_device(device: torch.device, net: Net) -> None:
    """The net on the device against the one on the CPU; exports run there as well."""
    options = Options(device=str(device), allow_code=True)
    assert compare(net, SPEC, options=options).equal
    convert("small.prototxt", "small.caffemodel", "torch", "exported")
    assert compare(net, "exported", options=options).equal


def test_other_weights_differ_from_the_first_layer_on(net: Net) -> None:
    net.params["conv1"][1].data[2] += 0.01
    net.save("other.caffemodel")
    report = compare(SPEC, "small.prototxt:other.caffemodel")
    assert not report.equal and len(report.beyond) == 4
    assert report.first.key == "blob/conv1.v0"
    assert report.first.max_error == pytest.approx(0.01, rel=1e-3)
    assert report.first.mean_error == pytest.approx(0.0025, rel=1e-3)


def test_onnx(net: Net) -> None:
    pytest.importorskip("onnxruntime")
    write_onnx(Path("small.onnx"), net)
    report = compare(SPEC, "small.onnx")
    assert report.equal and keys(report) == ["blob/conv1.v0", "blob/conv1", "blob/pool1", "blob/ip"]
    assert not report.only_a and not report.only_b


def test_a_lost_slope_is_found_and_named(net: Net, capsys: pytest.CaptureFixture) -> None:
    """The layer, its line, and what it looks like."""
    pytest.importorskip("onnxruntime")
    write_onnx(Path("bad.onnx"), net, slope=0.0)
    assert main(["check", SPEC, "bad.onnx"]) == 1
    out, error = capsys.readouterr()
    assert "conv1.v0" in out and out.count("<-- past the tolerance") == 3
    assert "the first is conv1: max error" in error and "of layer relu1 (small.prototxt:5)" in error
    assert "negative_slope" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_what_convert_writes(target: str, net: Net, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("onnxruntime")
    out = {"torch": "exported", "onnx": "exported.onnx"}[target]
    convert("small.prototxt", "small.caffemodel", target, out)
    assert main(["check", SPEC, out, "--allow-code"]) == 0
    assert "equals" in capsys.readouterr().out
    report = compare(SPEC, out, options=Options(allow_code=True))
    assert {"blob/conv1", "blob/pool1", "blob/ip"} <= set(keys(report))


def test_code_runs_only_with_a_word(net: Net) -> None:
    convert("small.prototxt", "small.caffemodel", "torch", "exported")
    Path("exported/model.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(CaffeError, match=r"exported/model\.py: is code.*--allow-code"):
        compare(SPEC, "exported")


def test_names_that_differ(net: Net, capsys: pytest.CaptureFixture) -> None:
    other = PROTOTXT.replace('"pool1"', '"first/pool"').replace('top: "ip"', 'top: "scores"')
    Path("other.prototxt").write_text(other)
    assert main(["check", SPEC, "other.prototxt:small.caffemodel"]) == 1
    assert "do not both have the outputs ip, scores" in capsys.readouterr().err
    assert main(["check", SPEC, "other.prototxt:small.caffemodel", "--blob-map", "ip=scores",
                 "--blob-map", "pool1=first/pool"]) == 0
    assert "equals" in capsys.readouterr().out


@pytest.mark.parametrize(("specs", "message"), [
    (["nowhere.onnx", SPEC], "nowhere.onnx: no such file"),
    ([SPEC], "give a second model"),
    (["small.prototxt", SPEC], "its weights are not given"),
    ([SPEC, "small.prototxt:none.caffemodel"], "none.caffemodel: no such file"),
    ([SPEC, "text.onnx"], "not a readable ONNX file"),
    ([SPEC, "text.npz"], "not a readable .npz file"),
    ([SPEC, "plain.npz"], 'has no entry "recording"'),
])
def test_errors_are_one_line(specs: list[str], message: str, net: Net, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("onnx")
    for name in ("text.onnx", "text.npz"):
        Path(name).write_text("hello")
    np.savez("plain.npz", x=np.zeros(3))
    assert main(["check", *specs]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_layers_without_weights_are_an_error(net: Net) -> None:
    Path("renamed.prototxt").write_text(PROTOTXT.replace('name: "conv1"', 'name: "conv_1"'))
    with pytest.raises(CaffeError, match="conv_1: the file has no weights.*--map conv1=conv_1"):
        compare(SPEC, "renamed.prototxt:small.caffemodel")


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_from_files(net: Net) -> None:
    import cv2

    x = np.random.RandomState(1).rand(5, 3, 8, 8).astype(np.float32)
    np.save("x.npy", x)
    np.savez("x.npz", data=x, unused=x)
    cv2.imwrite("x.png", np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3))
    for word in ("x.npy", "x.npz"):
        np.testing.assert_array_equal(make_inputs(word, [{"data": (2, 3, 8, 8)}])["data"], x)
        assert compare(SPEC, SPEC, word).differences[0].shapes[0] == (5, 4, 6, 6)
    image = make_inputs("x.png", [{"data": (2, 3, 8, 8)}])["data"]
    assert image.shape == (2, 3, 8, 8) and image.max() > 100
    whole = make_inputs("x.png", [{"data": (1, 3, None, None)}])["data"]
    np.testing.assert_array_equal(whole[0].transpose(1, 2, 0), cv2.imread("x.png"))


def test_random_inputs_are_the_same_every_time() -> None:
    wanted = [{"data": (None, 3, None)}, {"data": (2, 3, 4), "other": (1,)}]
    a, b = make_inputs("random", wanted, seed=4), make_inputs("random", wanted, seed=4)
    assert a["data"].shape == (2, 3, 4) and a["other"].shape == (1,)
    np.testing.assert_array_equal(a["data"], b["data"])
    assert not np.array_equal(a["data"], make_inputs("random", wanted, seed=5)["data"])


@pytest.mark.parametrize(("word", "message"), [
    ("none.npy", "no such file"), ("text.npy", "not a readable array file"), ("names.npy", "expected numbers"),
    ("text.png", "not an image"), ("other.npz", "has no array for data"),
])
def test_inputs_that_are_none(word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.npy", "text.png"):
        Path(name).write_text("hello")
    np.save("names.npy", np.array(["a"]))
    np.savez("other.npz", x=np.zeros(3))
    with pytest.raises(CaffeError, match=f"{word}: .*{message}"):
        make_inputs(word, [{"data": (1, 3, 8, 8)}])


# -- measuring --------------------------------------------------------------------------------------------------------


def test_errors_are_measured_against_the_std() -> None:
    a = np.array([[1.0, -1.0], [3.0, -3.0]], np.float32)
    item = Difference.of("blob/x", a, a + np.array([[0.5, 0], [0, 0]], np.float32))
    assert item.max_error == 0.5 and item.mean_error == 0.125
    assert item.scale == pytest.approx(a.std()) and item.relative == pytest.approx(0.5 / a.std())
    flat = Difference.of("blob/x", np.full(10, 5.0), np.full(10, 5.0) + 1e-3)
    assert flat.relative == pytest.approx(1e-3 / 0.05)  # a hundredth of its largest value
    assert Difference.of("blob/loss", np.array(2.0), np.array(2.2)).relative == pytest.approx(0.1)
    assert Difference.of("blob/x", np.zeros(3), np.zeros(3)).relative == 0
    assert Difference.of("blob/x", np.zeros((0, 3)), np.zeros((0, 3))).relative == 0


def test_what_is_not_finite() -> None:
    a = np.array([1, np.nan, np.inf, 2])
    assert Difference.of("blob/x", a, a).relative == 0
    for other in ([1, 0, np.inf, 2], [1, np.nan, -np.inf, 2], [1, np.nan, np.inf, np.nan]):
        report = Report("a", "b", 1e-4, [Difference.of("blob/x", a, np.array(other))])
        assert report.first.max_error == np.inf and not report.equal


def test_shapes_that_differ_by_one_are_pooling() -> None:
    a, b = np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 3, 3))
    (item,) = hint([Difference.of("blob/pool1", a, b)], {"blob/pool1": a}, {"blob/pool1": b}, 1e-4)
    assert "shape 1 2 4 4 (32) against 1 2 3 3 (18)" in str(item) and "Caffe rounds up" in str(item)


RNG = np.random.RandomState(0)
X = RNG.standard_normal((2, 3, 8, 8))


@pytest.mark.parametrize(("other", "words"), [
    (np.maximum(X, 0), "negative_slope"), (np.where(X > 0, X, 0.3 * X), "Only negative values differ"),
    (X[:, ::-1], "BGR against RGB"), (2.5 * X, "a multiple"), (np.pad(X[:, :, 1:-1, 1:-1], ((0, 0), (0, 0), (1, 1), (1, 1))),
                                                               "Only the border"),
    (X * np.array([1, 2, 3]).reshape(1, 3, 1, 1) + 0.5, "Each channel"), (RNG.standard_normal(X.shape), ""),
])
def test_marks_of_usual_mistakes(other: np.ndarray, words: str) -> None:
    (item,) = hint([Difference.of("blob/x", X, other)], {"blob/x": X}, {"blob/x": other}, 1e-4)
    assert (words in item.hint) if words else not item.hint


# -- against the recordings of the layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["caffemodel"])
def test_real_caffe_s_blobs_as_a_recording(name: str) -> None:
    """tests/golden/recordings holds a run of real Caffe in the format; parameters and definition come from it."""
    report = compare(str(ROOT / "golden" / "recordings" / f"{name}.npz"), tolerance=1e-5)
    assert report.equal and len(report.differences) == 9
    assert "act (" in report.differences[0].layer  # the last to write g
