"""guess: a deploy prototxt from a caffemodel alone, and what is said of what had to be assumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.check import compare
from caffe_compat.convert.guess import guess_prototxt
from caffe_compat.errors import CaffeError
from caffe_compat.net import Net

GOLDEN = Path(__file__).parents[1] / "golden" / "caffemodel"

TRAINED = """name: "trained"
layer { name: "digits" type: "DummyData" top: "data" top: "label" %s
  dummy_data_param { shape { dim: 2 dim: 1 dim: 20 dim: 20 } shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 5
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
"""


def save(folder: Path, text: str, phase: str = "TRAIN") -> Path:
    path = folder / "model.caffemodel"
    Net(proto.parse_text(text, "NetParameter"), phase, seed=1).save(path)
    return path


def test_a_training_net_becomes_a_deploy_net(tmp_path: Path) -> None:
    """Data, loss, accuracy and the Split between them go, the size is the one that the weights fit."""
    guess = guess_prototxt(save(tmp_path, TRAINED % ""))
    assert [(layer.type, list(layer.bottom), list(layer.top)) for layer in guess.message.layer] == [
        ("Input", [], ["data"]), ("Convolution", ["data"], ["conv"]), ("ReLU", ["conv"], ["conv"]),
        ("Pooling", ["conv"], ["pool"]), ("InnerProduct", ["pool"], ["ip"]), ("Softmax", ["ip"], ["prob"])]
    # 19 and 20 both give ip its 256 values, of which a smaller image is the first
    assert list(guess.message.layer[0].input_param.shape[0].dim) == [1, 1, 19, 19]
    assert "Left out, as they serve training alone: digits, loss (a Softmax takes its place), accuracy." in guess.notes
    assert guess.notes[-1].startswith("Checked")
    guess.write(tmp_path / "deploy.prototxt")
    text = (tmp_path / "deploy.prototxt").read_text()
    assert text.startswith("# Guessed from model.caffemodel.\n") and text.count("\n# ") == len(guess.notes) - 1
    net = Net(tmp_path / "deploy.prototxt")
    assert net.copy_from(tmp_path / "model.caffemodel").copied == ["conv", "ip"]


def test_what_the_data_layer_says(tmp_path: Path) -> None:
    text = TRAINED % 'transform_param { scale: 0.5 crop_size: 20 mean_value: 104 mean_file: "m.binaryproto" }'
    guess = guess_prototxt(save(tmp_path, text))
    assert list(guess.message.layer[0].input_param.shape[0].dim) == [1, 1, 20, 20]
    said = next(note for note in guess.notes if "prepared its data" in note)
    assert all(word in said for word in ("digits", "scale 0.5", "crop_size 20", "mean_file m.binaryproto", "104"))


def test_the_user_knows_the_shape(tmp_path: Path) -> None:
    guess = guess_prototxt(save(tmp_path, TRAINED % ""), (5, 1, 20, 20))
    assert list(guess.message.layer[0].input_param.shape[0].dim) == [5, 1, 20, 20]
    assert not any("The input" in note for note in guess.notes) and guess.notes[-1].startswith("Checked")
    wrong = guess_prototxt(save(tmp_path, TRAINED % ""), (5, 1, 30, 30))
    assert wrong.notes[-1].startswith("Not right yet: ")


@pytest.mark.parametrize("name", ["net", "other/legacy_v0", "other/legacy_v1"])
def test_real_caffe_s_files(name: str, tmp_path: Path) -> None:
    """Saved by Caffe itself, V0 and V1 among them: nothing is to be assumed, the net is the one that was saved."""
    path = GOLDEN / f"{name}.caffemodel"
    guess = guess_prototxt(path)
    assert guess.notes[-1].startswith("Checked")
    guess.write(tmp_path / "g.prototxt")
    if name == "net":
        report = compare(f"{GOLDEN / 'net.prototxt'}:{path}", f"{tmp_path / 'g.prototxt'}:{path}")
        assert report.equal and report.worst == 0


def stripped(tmp_path: Path, *fields: str) -> Path:
    """The caffemodel as a converter might have written it, without some fields of its layers."""
    document = proto.read_binary(save(tmp_path, TRAINED % ""), "NetParameter")
    for index in reversed([i for i, layer in enumerate(document.message.layer)
                           if layer.type in ("DummyData", "SoftmaxWithLoss", "Accuracy", "Split")]):
        del document.message.layer[index]
        document.arrays = {("layer", key[1] - (key[1] > index), *key[2:]): value for key, value in document.arrays.items()}
    for layer in document.message.layer:
        for name in fields:
            layer.ClearField(name)
    proto.write_binary(tmp_path / "stripped.caffemodel", document)
    return tmp_path / "stripped.caffemodel"


def test_no_bottoms_and_tops(tmp_path: Path) -> None:
    guess = guess_prototxt(stripped(tmp_path, "bottom", "top"))
    assert any("one layer after the other" in note for note in guess.notes)
    assert [list(layer.top) for layer in guess.message.layer] == [["data"], ["conv"], ["conv"], ["pool"], ["ip"]]
    assert guess.notes[-1].startswith("Checked")


def test_no_settings(tmp_path: Path) -> None:
    guess = guess_prototxt(stripped(tmp_path, "convolution_param", "inner_product_param"))
    conv, ip = guess.message.layer[1], guess.message.layer[4]
    assert conv.convolution_param.num_output == 4 and list(conv.convolution_param.kernel_size) == [5]
    assert ip.inner_product_param.num_output == 3 and guess.notes[-1].startswith("Checked")
    assert sum("has no settings" in note for note in guess.notes) == 2


def test_blobs_alone_are_not_enough(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="net.caffemodel.h5: holds names and blobs of layers, but not what layers"):
        guess_prototxt(GOLDEN / "net.caffemodel.h5")


@pytest.mark.parametrize(("name", "size"), [("det1", 12), ("det2", None), ("det3", None)])
def test_mtcnn(name: str, size: int | None, shared: Path, tmp_path: Path) -> None:
    """Files of another project, saved while training on layers that label slices: guessed nets are the published ones."""
    folder = shared / "data" / "mtcnn"
    if not folder.is_dir():
        pytest.skip("needs shared/data/mtcnn")
    guess = guess_prototxt(folder / f"{name}.caffemodel", (1, 3, size, size) if size else None)
    assert guess.notes[-1].startswith("Checked")
    guess.write(tmp_path / "g.prototxt")
    data = guess.message.layer[0].top[0]
    report = compare(f"{folder / name}.prototxt:{folder / name}.caffemodel",
                     f"{tmp_path / 'g.prototxt'}:{folder / name}.caffemodel", "random",
                     rename={"data": data, "prob1": "prob"})
    assert not report.beyond and report.worst == 0
    assert report.unmatched == (["conv5-3"] if name == "det2" else [])  # landmarks, which its prototxt leaves out


def test_sizes_are_found_beyond_the_usual(tmp_path: Path) -> None:
    text = (TRAINED % "").replace("dim: 20 dim: 20", "dim: 77 dim: 77")
    guess = guess_prototxt(save(tmp_path, text))
    size = list(guess.message.layer[0].input_param.shape[0].dim)[2]
    assert size in (76, 77) and np.prod(Net(proto.parse_text(guess.text(), "NetParameter")).blobs["pool"].shape) == 4 * 37**2
