"""Weights that do not fit as they are: strict loading, names that differ, legacy shapes, and the report of it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.cli import main
from caffe_compat.errors import CaffeError, WeightError
from caffe_compat.net import Net
from caffe_compat.proto import Document
from caffe_compat.tools.flags import pairs
from caffe_compat.weights import STRICT, LoadOptions, copy_weights

NET = """layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }
layer { name: "conv" type: "Convolution" bottom: "bn" top: "conv" convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "fc6" type: "InnerProduct" bottom: "conv" top: "fc6" inner_product_param { num_output: 5 } }
layer { name: "fc8" type: "InnerProduct" bottom: "fc6" top: "fc8" inner_product_param { num_output: 2 } }
"""
SHAPES = {"bn": [(2,), (2,), (1,)], "conv": [(3, 2, 3, 3), (3,)], "fc6": [(5, 12), (5,)], "fc8": [(2, 5), (2,)]}


def net_of() -> Net:
    return Net(proto.parse_text(NET, "NetParameter", "net.prototxt"), seed=1)


def weights(**changes: list[tuple[int, ...]] | None) -> Document:
    """A caffemodel of SHAPES with `changes`, the values counting up within each blob."""
    message = proto.BVLC.message("NetParameter")()
    arrays = {}
    for name, shapes in {**SHAPES, **changes}.items():
        if shapes is not None:
            index = len(message.layer)
            layer = message.layer.add(name=name, type="InnerProduct")
            for j, shape in enumerate(shapes):
                layer.blobs.add().shape.dim.extend(shape)
                arrays["layer", index, "blobs", j] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Document(message, proto.BVLC, "net.caffemodel", arrays=arrays)


def test_all_fits() -> None:
    net = net_of()
    report = copy_weights(net, weights(), STRICT)
    assert report.copied == list(SHAPES) and not report.missing + report.unused + report.reshaped + report.assumed
    np.testing.assert_array_equal(net.params["fc6"][0].data, np.arange(60).reshape(5, 12))


def test_strict_wants_all_weights_and_suggests_names() -> None:
    """A net that lacks weights is wrong; a file that has more than the net (a head left out) is not."""
    with pytest.raises(WeightError) as error:
        copy_weights(net_of(), weights(fc8=None, fc8_new=SHAPES["fc8"], aux=[(1,)]), STRICT)
    assert str(error.value) == (
        "net.caffemodel: fc8: the file has no weights for this (did you mean --map fc8_new=fc8?); give the file's names with "
        "--map, or leave the layers as they are with --skip. Layers of the file that are not in the net: fc8_new, aux")
    assert copy_weights(net_of(), weights(fc8=None)).missing == ["fc8"]  # Caffe's rules
    assert copy_weights(net_of(), weights(aux=[(1,)]), STRICT).unused == ["aux"]


def test_names_that_differ() -> None:
    net = net_of()
    report = copy_weights(net, weights(fc8=None, head=SHAPES["fc8"]), LoadOptions(strict=True, rename={"head": "fc8"}))
    assert "fc8" in report.copied and net.params["fc8"][0].data[1, 4] == 9


def test_layers_that_are_left_alone() -> None:
    """Whether the file has them in another shape, or not at all."""
    for changes in ({"fc8": [(1000, 5), (1000,)]}, {"fc8": None}):
        net = net_of()
        before = net.params["fc8"][0].data.copy()
        report = copy_weights(net, weights(**changes), LoadOptions(strict=True, skip=("fc8",)))
        assert "fc8" not in report.copied and not report.missing
        assert report.skipped == (["fc8"] if changes["fc8"] else [])
        np.testing.assert_array_equal(net.params["fc8"][0].data, before)
    assert copy_weights(net_of(), weights(), LoadOptions(strict=True, skip=("fc*",))).skipped == ["fc6", "fc8"]


@pytest.mark.parametrize("shape", [(1, 1, 5, 12), (5, 12, 1, 1), (1, 5, 12)])
def test_axes_of_one(shape: tuple[int, ...]) -> None:
    """Fully connected layers of old files have four axes; where only ones differ, they can mean one thing."""
    net = net_of()
    report = copy_weights(net, weights(fc6=[shape, (1, 1, 1, 5)]), STRICT)
    assert report.reshaped == ["fc6/0", "fc6/1"]
    np.testing.assert_array_equal(net.params["fc6"][0].data, np.arange(60).reshape(5, 12))
    with pytest.raises(WeightError, match="fc6/0: shape mismatch"):
        copy_weights(net_of(), weights(fc6=[shape, (1, 1, 1, 5)]))  # Caffe's rules, as the shape is given as such


def test_other_shapes_take_a_word() -> None:
    """5 x 3 x 2 x 2 for 5 x 12 may be a convolution's kernels or not, 12 x 5 a transpose."""
    changed = weights(fc6=[(5, 3, 2, 2), (5,)])
    with pytest.raises(WeightError, match=r"fc6/0: shape mismatch, the file has 5 3 2 2 \(60\), the net 5 12 \(60\).*"
                                          "--reshape fc6"):
        copy_weights(net_of(), changed, STRICT)
    assert copy_weights(net_of(), changed, LoadOptions(strict=True, reshape=("fc6",))).reshaped == ["fc6/0"]
    with pytest.raises(WeightError, match="shape mismatch") as error:
        copy_weights(net_of(), weights(fc6=[(5, 13), (5,)]), LoadOptions(strict=True, reshape=("fc6",)))
    assert "--reshape" not in str(error.value)


def test_kernels_are_not_turned_by_ones() -> None:
    """1 x 3 kernels are not 3 x 1 kernels."""
    with pytest.raises(WeightError, match="conv/0: shape mismatch"):
        copy_weights(net_of(), weights(conv=[(3, 2, 9, 1), (3,)]), STRICT)


def test_batch_norm_without_its_factor() -> None:
    """Some forks store mean and variance alone: a factor of 1, which is said."""
    net = net_of()
    report = copy_weights(net, weights(bn=[(2,), (2,)]), STRICT)
    assert report.assumed == ["bn/2 = 1 (the file has mean and variance alone)"] and "assumed: bn/2" in str(report)
    assert net.params["bn"][2].data.tolist() == [1]
    with pytest.raises(WeightError, match="the file has 2 blobs for this layer, the net 3"):
        copy_weights(net_of(), weights(bn=[(2,), (2,)]))
    with pytest.raises(WeightError, match="the file has 5 blobs for this layer, the net 3"):
        copy_weights(net_of(), weights(bn=[(2,)] * 5), STRICT)


@pytest.mark.parametrize(("options", "message"), [
    (LoadOptions(rename={"fc88": "fc8"}), r'has no layer "fc88" to rename \(did you mean "fc8"\?\)'),
    (LoadOptions(rename={"fc8": "fc88"}), r'the net has no layer "fc88" with parameters \(did you mean "fc8"\?\)'),
    (LoadOptions(skip=("fc9*",)), 'the net has no layer "fc9*" with parameters'),
    (LoadOptions(reshape=("in",)), 'the net has no layer "in" with parameters'),
])
def test_options_that_fit_nothing(options: LoadOptions, message: str) -> None:
    with pytest.raises(WeightError, match=message.replace("9*", r"9\*")):
        copy_weights(net_of(), weights(), options)


def test_maps(tmp_path: Path) -> None:
    """Words and files, in any mixture."""
    path = tmp_path / "map.txt"
    path.write_text("# ours\n a = b \n\nc/d=e  # slashes\n")
    assert pairs([str(path), "x=y"], "--map") == {"a": "b", "c/d": "e", "x": "y"}
    for wrong in ("x", "=y", "x="):
        with pytest.raises(CaffeError, match="--map"):
            pairs([wrong], "--map")
    with pytest.raises(CaffeError, match="each old name once"):
        pairs(["x=y", "x=z"], "--map")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    proto.write_binary("old.caffemodel", weights(fc8=None, head=SHAPES["fc8"], fc6=[(5, 3, 2, 2), (5,)]))
    old = "net.prototxt:old.caffemodel"
    for flags, message in (([], "fc6/0: shape mismatch"), (["--reshape", "fc6"], "fc8: the file has no weights for this")):
        assert main(["check", old, old, *flags]) == 1
        assert message in capsys.readouterr().err
    assert main(["check", old, old, "--reshape", "fc6", "--map", "head=fc8"]) == 0
    assert "equals" in capsys.readouterr().out
