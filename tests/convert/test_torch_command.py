"""`caffe-compat convert` to torch, safetensors and torch.export, its options, its check, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat import proto
from caffe_compat.cli import main
from caffe_compat.convert import to_torch
from caffe_compat.convert.torch_formats import run_exported
from caffe_compat.convert.torch_target import load_module
from caffe_compat.net import Net

NET = """name: "small net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv/1" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with net.prototxt and net.caffemodel."""
    (tmp_path / "net.prototxt").write_text(NET)
    net = Net(tmp_path / "net.prototxt", seed=1)
    mean, variance, divisor = net.params["bn"]
    mean.data[...], variance.data[...], divisor.data[...] = np.linspace(-1, 1, 8), np.linspace(1, 2, 8), 2
    net.save(tmp_path / "net.caffemodel")
    return tmp_path


def run(folder: Path, to: str, out: str, *flags: str, weights: str | None = "net.caffemodel") -> int:
    files = [str(folder / "net.prototxt"), *([str(folder / weights)] if weights else [])]
    return main(["convert", *files, "--to", to, "--out", str(folder / out), *flags])


def caffe(folder: Path, x: np.ndarray) -> np.ndarray:
    net = Net(folder / "net.prototxt")
    net.copy_from(folder / "net.caffemodel")
    net.blobs["data"].reshape(*x.shape)
    net.blobs["data"].data[...] = x
    return net.forward()["prob"].numpy()


X = np.random.RandomState(4).standard_normal((5, 3, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("flags", [[], ["--fold"], ["--inference"], ["--safetensors"],
                                   ["--rename", "conv/1=first", "--rename", "fc=last"]],
                         ids=lambda flags: "".join(flags[:1]))
def test_torch(model: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    """Written, checked, and the same function for another batch."""
    assert run(model, "torch", "out", *flags) == 0
    said = capsys.readouterr().out
    assert "4 layers copied" in said and "equals Caffe's net in" in said
    module = load_module(model / "out")
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), caffe(model, X), rtol=1e-4, atol=1e-6)
    children = [name for name, _ in module.named_children()]
    assert children == {
        "--fold": ["conv_1", "relu", "drop", "fc", "prob"], "--inference": ["conv_1", "bn", "scale", "relu", "fc", "prob"],
        "--rename": ["first", "bn", "scale", "relu", "drop", "last", "prob"],
    }.get("".join(flags[:1]), ["conv_1", "bn", "scale", "relu", "drop", "fc", "prob"])
    assert sorted(file.name for file in (model / "out").iterdir()) == [
        "model.py", "net.prototxt", "weights.safetensors" if flags == ["--safetensors"] else "weights.pth"]
    assert main(["convert", str(model / "out"), "--to", "caffe", "--out", str(model / "back")]) == 0
    back = Net(model / "back.prototxt")
    assert not back.copy_from(model / "back.caffemodel").missing
    back.blobs["data"].reshape(*X.shape)
    back.blobs["data"].data[...] = X
    np.testing.assert_allclose(back.forward()["prob"].numpy(), caffe(model, X), rtol=1e-4, atol=1e-6)


def test_half(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """float16 weights, which a value beyond its range is too large for."""
    assert run(model, "torch", "out", "--half") == 0
    state = torch.load(model / "out" / "weights.pth", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert ".half()" in (model / "out" / "model.py").read_text()
    net = Net(model / "net.prototxt", seed=1)
    net.params["fc"][0].data[0, 0] = 1e5
    net.save(model / "net.caffemodel")
    capsys.readouterr()
    assert run(model, "torch", "out2", "--half") == 1
    assert "fc.weight: the largest value is 100000" in capsys.readouterr().err
    assert not (model / "out2").exists()


def test_safetensors(model: Path) -> None:
    """Names as in the torch export, with Caffe's in the metadata."""
    safetensors = pytest.importorskip("safetensors")
    assert run(model, "safetensors", "out.safetensors") == 0
    with safetensors.safe_open(model / "out.safetensors", "np") as file:
        metadata = file.metadata()
        blobs = json.loads(metadata["caffe_blobs"])
        net = Net(model / "net.prototxt")
        net.copy_from(model / "net.caffemodel")
        for key in file.keys():  # noqa: SIM118
            layer, _, index = blobs.get(key, "").rpartition("/")
            if key in blobs and layer != "bn":  # whose sums are divided
                np.testing.assert_array_equal(file.get_tensor(key), net.params[layer][int(index)].data)
    assert json.loads(metadata["caffe_names"]) == {"conv_1": "conv/1"} and 'name: "conv/1"' in metadata["prototxt"]
    assert (model / "out.safetensors").stat().st_mode == (model / "net.caffemodel").stat().st_mode


def test_exported(model: Path) -> None:
    """A program for every batch."""
    assert run(model, "exported", "out.pt2") == 0
    for batch in (1, 2, 5):
        found = run_exported(model / "out.pt2", {"data": X[:batch]})
        np.testing.assert_allclose(found["prob"], caffe(model, X[:batch]), rtol=1e-4, atol=1e-6)


def test_preprocessing_is_built_in(model: Path) -> None:
    """Raw images in, the answer for prepared ones out; the check at the end knows of it."""
    assert run(model, "torch", "out", "--mean", "104,117,123", "--scale", "0.017", "--swap-channels") == 0
    raw = np.random.RandomState(2).uniform(0, 255, (2, 3, 9, 9)).astype(np.float32)
    prepared = (raw[:, ::-1] - np.float32([104, 117, 123])[:, None, None]) * np.float32(0.017)
    with torch.no_grad():
        found = load_module(model / "out")(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(found, caffe(model, prepared), rtol=1e-3, atol=1e-5)


def test_training_net_without_its_data(model: Path) -> None:
    """A train_val.prototxt whose database is not here, in the TRAIN phase, losses kept; checked as it is tested."""
    text = NET.replace('type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } }',
                       'type: "Data" top: "data" top: "label" data_param { source: "none" batch_size: 4 backend: LMDB }')
    text += """layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
               layer { name: "top-1" type: "Accuracy" bottom: "fc" bottom: "label" top: "right" include { phase: TEST } }"""
    (model / "net.prototxt").write_text(text)
    assert run(model, "torch", "out", "--input", "data=4,3,9,9", "--phase", "TRAIN", "--keep-losses") == 0
    module = load_module(model / "out").train()
    found = module(torch.from_numpy(X), torch.zeros(5))
    found["loss"].backward()
    assert module.conv_1.weight.grad is not None and module.bn.divisor > 2
    assert run(model, "torch", "out", "--input", "data=4,3,9,9") == 0
    assert "loss" not in dict(load_module(model / "out").named_children())


@pytest.mark.parametrize(("flags", "message"), [
    (["--map", "fc"], "--map fc: expected old=new"),
    (["--map", "fc8=fc"], 'has no layer "fc8" to rename'),
    (["--rename", "conv=first"], 'there is no layer "conv" to rename in what is written'),
    (["--skip", "fd"], 'the net has no layer "fd" with parameters'),
    (["--input", "data=0,3"], "--input: found 'data=0,3'"),
    (["--input", "image=1,3,9,9"], 'has no blob "image"'),
    (["--mean", "1,a"], "--mean: found '1,a'"),
    (["--mean", "1,2"], "found 2 means for 3 channels"),
], ids=lambda value: value[0] + value[1] if isinstance(value, list) else "")
def test_mistakes(model: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    """One line, status 1, nothing written."""
    before = sorted(model.iterdir())
    assert run(model, "torch", "out", *flags) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(model.iterdir()) == before


def test_a_difference_is_found(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that is not the same function is not written, unless it is not to be checked; the first blob is named."""
    from caffe_compat.convert import torch_neuron

    monkeypatch.setitem(torch_neuron.TORCH._entries, "ReLU", torch_neuron.TORCH.get("Sigmoid"))
    assert run(model, "torch", "out") == 1
    error = capsys.readouterr().err
    assert "not the same function" in error and not (model / "out").exists()
    assert "the first is conv: max error" in error and "of layer drop" in error and "net.prototxt:" in error
    assert run(model, "torch", "out", "--no-check") == 0
    assert "not compared" in capsys.readouterr().out and (model / "out" / "model.py").exists()


def test_an_export_takes_the_place_of_another(model: Path) -> None:
    """Whole; files of the user's stay; weights of the other format go, or they would be read."""
    (model / "out").mkdir()
    (model / "out" / "notes.txt").write_text("mine")
    for flags in (["--safetensors"], [], ["--safetensors"]):
        assert run(model, "torch", "out", *flags) == 0
    assert {file.name for file in (model / "out").iterdir()} == {"model.py", "net.prototxt", "notes.txt", "weights.safetensors"}


def test_without_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The architecture alone, with the values of its fillers."""
    assert run(model, "torch", "out", weights=None) == 0
    assert "no weights were given" in capsys.readouterr().out


def test_to_torch_has_weights_of_its_own(model: Path) -> None:
    """Training the module leaves the net alone."""
    net = Net(model / "net.prototxt", seed=1)
    module = to_torch(net)
    with torch.no_grad():
        module.fc.weight.zero_()
    assert net.params["fc"][0].data.any()


def test_memory(tmp_path: Path) -> None:
    """A large net is converted, and checked, in little more than its weights' memory (here by less than half as much)."""
    size = 3000
    text = f"""layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: {size} }} }} }}"""
    for bottom, top in (("data", "a"), ("a", "b"), ("b", "c")):
        text += f"""layer {{ name: "{top}" type: "InnerProduct" bottom: "{bottom}" top: "{top}"
                             inner_product_param {{ num_output: {size} }} }}"""
    (tmp_path / "net.prototxt").write_text(text)
    net = Net(tmp_path / "net.prototxt")
    for blobs in net.params.values():
        blobs[0].data[...] = np.random.RandomState(1).standard_normal(blobs[0].shape) / size ** 0.5
    net.save(tmp_path / "net.caffemodel")
    script = ("import resource, torch\nfrom caffe_compat.cli import main\n"
              "torch.nn.Linear(3, 3)(torch.zeros(1, 3))\n"
              "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\nbefore = rss()\n"
              "main('convert net.prototxt net.caffemodel --to torch --out out'.split())\nprint(rss() - before)")
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
                            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"})
    weights = 4 * 3 * size * size
    assert int(result.stdout.splitlines()[-1]) < 1.5 * weights + (20 << 20)


def test_guess(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the weights alone: a prototxt that converts, and what it assumes."""
    assert main(["convert", str(model / "net.caffemodel"), "--guess", "--out", str(model / "guessed.prototxt"),
                 "--input", "data=1,3,9,9"]) == 0
    assert "Guessed from net.caffemodel" in capsys.readouterr().out
    assert main(["convert", str(model / "guessed.prototxt"), str(model / "net.caffemodel"), "--to", "torch",
                 "--out", str(model / "out")]) == 0
    with torch.no_grad():
        found = load_module(model / "out")(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found, caffe(model, X), rtol=1e-4, atol=1e-6)


def test_files_elsewhere_are_not_opened(model: Path, tmp_path_factory: pytest.TempPathFactory,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    """What a net names outside its folder and the working folder is opened at the user's word alone."""
    other = tmp_path_factory.mktemp("other") / "matrix.binaryproto"
    blob = proto.BVLC.message("BlobProto")(shape={"dim": (5, 5)}, data=np.eye(5).ravel())
    other.write_bytes(blob.SerializeToString())
    text = NET + f"""
        layer {{ name: "label" type: "Input" top: "label" input_param {{ shape {{ dim: 2 }} }} }}
        layer {{ name: "loss" type: "InfogainLoss" bottom: "fc" bottom: "label" top: "loss"
                 infogain_loss_param {{ source: "{other}" }} }}"""
    (model / "net.prototxt").write_text(text)
    assert run(model, "torch", "out", "--keep-losses") == 1
    assert "which lies neither in the folder of its file" in capsys.readouterr().err
    assert run(model, "torch", "out", "--keep-losses", "--allow-paths") == 0
