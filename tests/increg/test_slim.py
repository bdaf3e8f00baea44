"""Slimmed nets compute what the masked ones do: random nets of all layers, each kind of coupling, kernels, files, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_net
from test_coupling import INPUT, conv, inner, simple

from caffe_compat import Net, proto
from caffe_compat.errors import CaffeError, NetError, WeightError
from caffe_compat.layers.norm import BatchNorm
from caffe_compat.proto import Document
from increg.cli import main
from increg.slim import check_same, slim
from increg.slim.check import TOLERANCE, random_inputs
from increg.slim.crop import _crop_axis

PROTOTXT = Path(__file__).parents[2] / "prototxt"


def make(text: str) -> tuple[Document, Net]:
    """A net with random weights and statistics."""
    document = proto.parse_text(INPUT + text, "NetParameter")
    net = Net(document, "TEST", seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in net.layers:
        for k, blob in enumerate(layer.blobs):
            blob.tensor.data.normal_(0, 0.5, generator=generator)
            if isinstance(layer, BatchNorm) and k:
                blob.tensor.data.abs_().add_(0.5)
    return document, net


def zero(net: Net, layer: str, *rows: int, bias: bool = True) -> None:
    """Prunes rows, their biases too."""
    for blob in net.params[layer][:2 if bias else 1]:
        blob.tensor.data[list(rows)] = 0


def slimmed(document: Document, net: Net, round_to: int = 1) -> tuple[Net, dict[str, tuple[int, ...]]]:
    """The smaller net, checked, and the shapes of its weights."""
    _, result, found = slim(net, document, round_to=round_to)
    assert check_same(net, result, found, random_inputs(net)) <= TOLERANCE
    return result, {name: blobs[0].shape for name, blobs in result.params.items()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 30))
def test_random_nets(seed: int) -> None:
    """Equal outputs; the text and the weights load strictly; nothing is left to slim."""
    document, net = random_net(seed)
    try:
        smaller, result, found = slim(net, document)
    except CaffeError as error:
        assert "nothing to slim" in str(error)
        return
    assert check_same(net, result, found, random_inputs(net)) <= TOLERANCE
    again = Net(proto.parse_text(proto.dump_text(smaller.message), "NetParameter"), "TEST")
    assert not again.copy_from(result.to_document()).missing
    assert sum(blob.count for blobs in again.params.values() for blob in blobs) < sum(
        blob.count for blobs in net.params.values() for blob in blobs) + 100
    with pytest.raises(CaffeError, match="nothing to slim"):
        slim(again, smaller)


def test_rows_and_inputs_go_together() -> None:
    document, net = make(conv("a", "x", 6, 3) + simple("ReLU", "r", "a", tops=("a",)) + conv("b", "a", 5, 2) + inner("f", "b"))
    zero(net, "a", 1, 4)
    net.params["b"][0].tensor.data[:, 2] = 0  # nobody reads channel 2 of a
    zero(net, "b", 0)
    _, shapes = slimmed(document, net)
    assert shapes == {"a": (3, 3, 3, 3), "b": (4, 3, 2, 2), "f": (2, 36)}


def test_a_constant_goes_into_the_bias() -> None:
    """Without padding exactly; the reader gets a bias if it has none."""
    document, net = make(conv("a", "x", 4) + simple("TanH", "t", "a") + conv("b", "t", 3, 2, "bias_term: false"))
    zero(net, "a", 0, bias=False)
    result, shapes = slimmed(document, net)
    assert shapes == {"a": (3, 3, 1, 1), "b": (3, 3, 2, 2)}
    assert len(result.params["b"]) == 2


def test_one_constant_carries_the_others_across_a_border() -> None:
    """A padded convolution sees zeros beyond the border, so one of three constant channels stays."""
    text = conv("a", "x", 6) + simple("BatchNorm", "n", "a") + simple("Scale", "s", "n", more="scale_param { bias_term: true }")
    document, net = make(text + conv("b", "s", 3, 3, "pad: 1"))
    zero(net, "a", 1, 3, 5)
    result, shapes = slimmed(document, net)
    assert (shapes["a"][0], shapes["s"], shapes["b"]) == (4, (4,), (3, 4, 3, 3))
    assert result.params["n"][0].shape == (4,)
    assert result.params["n"][2].shape == (1,)


def test_a_zero_needs_no_carrier() -> None:
    document, net = make(conv("a", "x", 4) + simple("ReLU", "r", "a") + conv("b", "r", 3, 3, "pad: 1"))
    zero(net, "a", 0, 1, bias=False)
    net.params["a"][1].data[:2] = -1
    assert slimmed(document, net)[1]["b"] == (3, 2, 3, 3)


def test_summands_stay_together() -> None:
    document, net = make(conv("a", "x", 4) + conv("b", "x", 4) + simple("Eltwise", "e", "a", "b") + conv("c", "e", 2))
    zero(net, "a", 0, 1)
    zero(net, "b", 1, 2)
    assert slimmed(document, net)[1] == {"a": (3, 3, 1, 1), "b": (3, 3, 1, 1), "c": (2, 3, 1, 1)}


def test_concat_slice_and_prelu() -> None:
    text = conv("a", "x", 4) + conv("b", "x", 3) + simple("Concat", "k", "a", "b") + simple("PReLU", "p", "k") + simple(
        "Slice", "s", "p", tops=("u", "v"), more="slice_param { slice_point: 5 }") + conv("c", "u", 2) + conv("d", "v", 2)
    document, net = make(text)
    zero(net, "a", 0, 3)
    zero(net, "b", 2)
    result, shapes = slimmed(document, net)
    assert shapes == {"a": (2, 3, 1, 1), "b": (2, 3, 1, 1), "p": (4,), "c": (2, 3, 1, 1), "d": (2, 1, 1, 1)}
    assert list(result.layer_dict["s"].param.slice_point) == [3]


def test_groups_stay_even_and_empty_ones_go() -> None:
    document, net = make(conv("a", "x", 9) + conv("g", "a", 6, 1, "group: 3") + conv("c", "g", 2))
    zero(net, "a", 0, 3, 4, 6, 7, 8)
    zero(net, "g", 4, 5)
    result, shapes = slimmed(document, net)
    assert shapes == {"a": (4, 3, 1, 1), "g": (4, 2, 1, 1), "c": (2, 4, 1, 1)}
    assert result.layer_dict["g"].param.group == 2


def test_depthwise() -> None:
    document, net = make(conv("a", "x", 4) + conv("d", "a", 4, 3, "group: 4 pad: 1") + conv("c", "d", 2))
    zero(net, "a", 1)
    net.params["c"][0].tensor.data[:, 3] = 0
    result, shapes = slimmed(document, net)
    assert shapes == {"a": (2, 3, 1, 1), "d": (2, 1, 3, 3), "c": (2, 2, 1, 1)}
    assert result.layer_dict["d"].param.group == 2


@pytest.mark.parametrize(("round_to", "a", "c"), [(1, 3, 3), (2, 4, 4), (5, 5, 5), (4, 4, 4)])
def test_rows_in_multiples(round_to: int, a: int, c: int) -> None:
    """Of layers whose rows go together, too; what neighbours read is as many."""
    text = conv("a", "x", 6) + conv("b", "x", 6) + simple("Eltwise", "e", "a", "b") + conv("c", "e", 7, 3, "pad: 1")
    document, net = make(text + conv("d", "c", 2))
    zero(net, "a", 0, 2, 4)
    zero(net, "b", 0, 2, 4)
    zero(net, "c", 1, 3, 5, 6)
    assert slimmed(document, net, round_to)[1] == {"a": (a, 3, 1, 1), "b": (a, 3, 1, 1), "c": (c, a, 3, 3), "d": (2, c, 1, 1)}


def test_a_layer_with_fewer_rows_than_a_multiple_keeps_all() -> None:
    document, net = make(conv("a", "x", 6) + conv("b", "a", 9) + conv("c", "b", 2))
    zero(net, "a", 0)
    zero(net, "b", 0)
    assert slimmed(document, net, 8)[1] == {"a": (6, 3, 1, 1), "b": (8, 6, 1, 1), "c": (2, 8, 1, 1)}


def test_shared_weights_lose_the_same_rows() -> None:
    def twin(name: str, bottom: str) -> str:
        shared = 'param { name: "w" } param { name: "b" } convolution_param { num_output: 3 kernel_size: 1 }'
        return simple("Convolution", name, bottom, more=shared)

    document, net = make(twin("a", "x") + twin("b", "a") + conv("c", "b", 2))
    zero(net, "a", 1)
    with pytest.raises(CaffeError, match="nothing to slim"):  # row 1 of b reads the image, whose channels all stay
        slim(net, document)
    document, net = make(conv("i", "x", 3) + twin("a", "i") + twin("b", "a") + conv("c", "b", 2))
    zero(net, "i", 1)
    zero(net, "a", 1)
    assert slimmed(document, net)[1] == {"i": (2, 3, 1, 1), "a": (2, 2, 1, 1), "b": (2, 2, 1, 1), "c": (2, 2, 1, 1)}


def test_neighbours_in_a_response_normalization_stay() -> None:
    text = conv("a", "x", 4) + simple("LRN", "n", "a", more="lrn_param { norm_region: REGION }") + conv("b", "n", 2)
    document, net = make(text.replace("REGION", "ACROSS_CHANNELS"))
    zero(net, "a", 1)
    with pytest.raises(CaffeError, match="nothing to slim"):
        slim(net, document)
    document, net = make(text.replace("REGION", "WITHIN_CHANNEL"))
    zero(net, "a", 1)
    assert slimmed(document, net)[1]["a"] == (3, 3, 1, 1)


def test_a_layer_keeps_a_row() -> None:
    document, net = make(conv("a", "x", 4, 3) + conv("b", "a", 3) + inner("f", "b"))
    for name in "ab":
        zero(net, name, *range(len(net.params[name][1].data)))
    _, shapes = slimmed(document, net)
    assert shapes["a"][0] == shapes["b"][0] == shapes["b"][1] == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(4, 14), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.data())
def test_cropped_axes_see_the_same(size: int, kernel: int, stride: int, pad: int, dilation: int, data: st.DataObject) -> None:
    """What a convolution in one axis computes with the cut kernel, padding and cuts, for every way to cut."""
    if size + 2 * pad < dilation * (kernel - 1) + 1:
        return
    first = data.draw(st.integers(0, kernel - 1))
    last = data.draw(st.integers(first + 1, kernel))
    crop = _crop_axis(size, kernel, stride, pad, dilation, first, last)
    x, w = torch.arange(1., size + 1)[None, None], torch.zeros(1, 1, kernel)
    w[..., first:last] = torch.arange(1., last - first + 1)
    expected = torch.conv1d(x, w, None, stride, pad, dilation)
    cut = x[..., crop.inputs[0]:size - crop.inputs[1]]
    found = torch.conv1d(cut, w[..., first:last], None, stride, crop.pad, dilation)
    assert found.shape[2] == crop.made
    torch.testing.assert_close(found[..., crop.outputs[0]:crop.made - crop.outputs[1]], expected)


@pytest.mark.parametrize(("pad", "kept", "kernel", "slices"), [
    (2, (slice(1, 4), slice(1, 4)), (3, 3), 0), (2, (slice(0, 4), slice(2, 3)), (4, 1), 1), 
    (0, (slice(1, 3), slice(0, 5)), (2, 5), 1),
    (1, (slice(0, 3), slice(0, 3)), (3, 3), 2)])
def test_kernels(pad: int, kept: tuple[slice, slice], kernel: tuple[int, int], slices: int) -> None:
    """Even cuts change the padding, uneven ones need a Slice."""
    document, net = make(conv("a", "x", 2, 5, f"pad: {pad}") + inner("f", "a"))
    weight = net.params["a"][0].tensor.data
    mask = torch.zeros(5, 5)
    mask[kept] = 1
    weight.mul_(mask)
    result, shapes = slimmed(document, net)
    assert shapes["a"][2:] == kernel
    assert sum(layer.type == "Slice" for layer in result.layers) == slices


def test_half_of_a_published_net() -> None:
    """Concatenations from end to end: every layer but the last, whose rows are the classes, loses half of its rows."""
    document = proto.read_text(PROTOTXT / "squeezenet_v1.1" / "deploy.prototxt", "NetParameter")
    document.message.layer[0].input_param.shape[0].dim[:] = [1, 3, 63, 63]
    net = Net(document, "TEST", seed=1)
    generator = torch.Generator().manual_seed(1)
    for blobs in net.params.values():
        blobs[0].tensor.data.normal_(0, 0.1, generator=generator)
        blobs[0].tensor.data[::2] = 0
    _, shapes = slimmed(document, net)
    for name, (rows, inputs, *_) in shapes.items():
        before = net.params[name][0].shape
        assert rows == before[0] // (2 if name != "conv10" else 1)
        assert inputs == before[1] // (2 if name != "conv1" else 1)


# -- the command --------------------------------------------------------------------------------------------------------

TEXT = INPUT + conv("a", "x", 4, 3, "pad: 1") + simple("ReLU", "r", "a", tops=("a",)) + inner("f", "a")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.prototxt and pruned.caffemodel, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(TEXT)
    _, net = make(TEXT.removeprefix(INPUT))
    zero(net, "a", 0, 2)
    net.params["a"][0].tensor.data[..., 0, :] = 0
    net.save("pruned.caffemodel")
    return tmp_path


def test_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train_val.prototxt").write_text(TEXT + simple("SoftmaxWithLoss", "loss", "f", "label").replace(
        "layer {", 'layer { name: "l" type: "Input" top: "label" input_param { shape { dim: 2 } } }\nlayer {', 1))
    np.save("x.npy", np.zeros((3, 3, 6, 6), np.float32))
    words = ["--out", "small", "--also", "train_val.prototxt", "--inputs", "x.npy", "--batches", "1"]
    assert main(["slim", "net.prototxt", "pruned.caffemodel", *words]) == 0
    said = capsys.readouterr().out
    for part in ("4 -> 2", "3x3 -> 2x3", "on 4 batches", "fewer", "cpu, batch 1", "for one sample"):
        assert part in said
    full, small = (Net(f"{folder}net.prototxt", "TEST") for folder in ("", "small/"))
    full.copy_from("pruned.caffemodel")
    assert not small.copy_from("small/pruned.caffemodel").missing
    full.blobs["x"].data[...] = small.blobs["x"].data[...] = np.random.default_rng(1).normal(size=(2, 3, 6, 6))
    np.testing.assert_allclose(small.forward()["f"], full.forward()["f"], atol=1e-5)
    assert not Net("small/train_val.prototxt", "TRAIN").copy_from("small/pruned.caffemodel").missing


def test_command_rounds(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 of 4 rows are left: 3 with multiples of 3."""
    words = ["slim", "net.prototxt", "pruned.caffemodel", "--out", "small", "--batches", "0", "--round-to", "3"]
    assert main(words) == 0
    assert "4 -> 3" in capsys.readouterr().out


def test_what_a_fork_says_goes(files: Path) -> None:
    """The smaller net is one of BVLC Caffe's, which knows no prune_param."""
    Path("net.prototxt").write_text(TEXT.replace('type: "Convolution"', 'type: "Convolution" prune_param { prune_ratio: 0.5 }'))
    assert main(["slim", "net.prototxt", "pruned.caffemodel", "--out", "small", "--batches", "0"]) == 0
    assert proto.read_text("small/net.prototxt", "NetParameter").dialect is proto.BVLC


@pytest.mark.parametrize(("words", "said"), [
    ("slim net.prototxt whole.caffemodel --out small", "no zeros: are they those of a pruned net"),
    ("slim net.prototxt foreign.caffemodel --out small", "no layer of the file is in the net"),
    ("slim net.prototxt part.caffemodel --out small", "has no weights for f"),
    ("slim net.prototxt pruned.caffemodel --out .", "would overwrite its original"),
    ("slim net.prototxt pruned.caffemodel --out small --inputs net.prototxt", "is no .npy file"),
    ("slim net.prototxt pruned.caffemodel --out small --also other.prototxt", "has no layer a"),
    ("slim net.prototxt pruned.caffemodel --out small --also more.prototxt", "more has parameters"),
    ("slim net.prototxt pruned.caffemodel --out small --batches x", "expected whole numbers"),
])
def test_refusals(files: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 1, nothing written."""
    net = Net("net.prototxt", "TEST")
    for blobs in net.params.values():
        blobs[0].tensor.data.fill_(1)
    net.save("whole.caffemodel")
    for path, text in (("foreign", conv("z", "x", 2)), ("part", TEXT.replace(inner("f", "a"), "").removeprefix(INPUT))):
        Net(proto.parse_text(INPUT + text, "NetParameter"), "TEST").save(f"{path}.caffemodel")
    Path("other.prototxt").write_text(INPUT + inner("f", "x"))
    Path("more.prototxt").write_text(TEXT + inner("more", "a"))
    assert main(words.split()) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("small").exists()


def test_data_of_its_own(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net with data layers is compared on its data, and not timed."""
    source = 'layer { name: "in" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }\n'
    Path("train_val.prototxt").write_text(TEXT.replace(INPUT, source))
    assert main(["slim", "train_val.prototxt", "pruned.caffemodel", "--out", "small"]) == 0
    said = capsys.readouterr().out
    assert "on 1 batches of its own data" in said
    assert "ms" not in said.replace("multiply-adds", "")


def test_a_difference_is_found() -> None:
    document, net = make(conv("a", "x", 4) + inner("f", "a"))
    zero(net, "a", 0)
    _, result, found = slim(net, document)
    result.params["f"][1].data[0] += 1e-3
    with pytest.raises(NetError, match="differs by"):
        check_same(net, result, found, random_inputs(net))


def test_weights_of_another_shape() -> None:
    document, _ = make(conv("a", "x", 4) + inner("f", "a"))
    _, other = make(conv("a", "x", 5) + inner("f", "a"))
    with pytest.raises(WeightError, match="shape mismatch"):
        Net(document, "TEST").copy_from(other.to_document())
