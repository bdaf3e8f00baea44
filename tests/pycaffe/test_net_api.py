"""pycaffe's Net: constructors, names, arrays in and out, callbacks, and what it says to a call that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_compat as caffe
from caffe_compat.errors import CaffeError, NetError, UnknownType, WeightError
from caffe_compat.pycaffe.devices import move_net

TEXT = """
name: "small" force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5
  weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "drop" type: "Dropout" bottom: "fc" top: "drop" include { phase: TRAIN stage: "noisy" } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
layer { name: "extra" type: "Power" bottom: "prob" top: "extra" include { min_level: 2 } }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The net's file."""
    file = tmp_path / "net.prototxt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def net(path: Path) -> caffe.Net:
    """The net, with reproducible weights."""
    return caffe.Net(path, caffe.TEST, seed=1)


def images(rows: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, 5, 5)).astype(np.float32)


def probabilities(net: caffe.Net, x: np.ndarray) -> np.ndarray:
    """The net's output by numpy alone."""
    weights, biases = (blob.data for blob in net.params["conv"])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    conv = np.maximum(np.einsum("ncyxij,ocij->noyx", windows, weights) + biases[:, None, None], 0)
    weights, biases = (blob.data for blob in net.params["fc"])
    scores = np.exp(conv.reshape(len(x), -1) @ weights.T + biases)
    return scores / scores.sum(1, keepdims=True)


# -- building -------------------------------------------------------------------------------------------------------


def test_constructors(net: caffe.Net, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "weights.caffemodel"
    net.save(weights)
    nets = [caffe.Net(str(path), caffe.TEST, weights=str(weights)),
            caffe.Net(network_file=path, phase="TEST", level=0, stages=None, weights=weights)]
    assert "deprecated" not in caplog.text
    with caplog.at_level(logging.WARNING):
        nets.append(caffe.Net(str(path), str(weights), caffe.TEST))
    assert "Net(network_file, weights, phase) is deprecated" in caplog.text
    for other in nets:
        np.testing.assert_array_equal(other.params["fc"][0].data, net.params["fc"][0].data)


def test_level_and_stages(path: Path) -> None:
    assert caffe.Net(path, caffe.TEST, 2).outputs == ["extra"]
    assert caffe.Net(path, caffe.TRAIN, stages=["noisy", "other"]).outputs == ["drop", "prob"]
    assert caffe.Net(path, caffe.TRAIN).outputs == ["prob"]
    path.write_text(TEXT + "state { level: 2 }")
    assert caffe.Net(path, caffe.TEST).outputs == ["prob"]  # as in Caffe, the file's level is overridden


@pytest.mark.parametrize("arguments, options, message", [
    (("gone.prototxt", caffe.TEST), {}, "gone.prototxt"),
    (("net.prototxt", "TSET"), {}, 'unknown phase "TSET"'),
    (("net.prototxt", "w.caffemodel", 7), {}, 'unknown phase "w.caffemodel"'),
    (("net.prototxt", 7), {}, "unknown phase 7"),
    (("net.prototxt", caffe.TEST), {"stages": "noisy"}, "stages is a list of names"),
    (("net.prototxt", caffe.TEST), {"weights": "gone.caffemodel"}, "gone.caffemodel"),
])
def test_constructor_refuses(arguments: tuple, options: dict[str, Any], message: str, path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(CaffeError, match=message):
        caffe.Net(*arguments, **options)


# -- names ----------------------------------------------------------------------------------------------------------


def test_names(net: caffe.Net) -> None:
    assert list(net.blobs) == net._blob_names == ["data", "conv", "fc", "prob"]
    assert net._blobs[2] is net.blobs["fc"]
    assert net.inputs == ["data"] and net.outputs == ["prob"] and (net._inputs, net._outputs) == ([0], [3])
    assert list(net.layer_dict) == net._layer_names == ["data", "conv", "relu", "fc", "prob"]
    assert [layer.type for layer in net.layers] == ["Input", "Convolution", "ReLU", "InnerProduct", "Softmax"]
    assert net.top_names == {"data": ["data"], "conv": ["conv"], "relu": ["conv"], "fc": ["fc"], "prob": ["prob"]}
    assert net.bottom_names == {"data": [], "conv": ["data"], "relu": ["conv"], "fc": ["conv"], "prob": ["fc"]}
    assert net._top_ids(2) == [1] and net._bottom_ids(3) == [1]
    assert list(net.params) == ["conv", "fc"] and net.params["fc"][0] is net.layers[3].blobs[0]
    assert net.blob_loss_weights == {"data": 0, "conv": 0, "fc": 0, "prob": 0} and net._blob_loss_weights == [0] * 4


@pytest.mark.parametrize("where", ["blobs", "params", "layer_dict", "top_names", "bottom_names", "blob_loss_weights"])
def test_names_that_are_not_there(where: str, net: caffe.Net) -> None:
    name = "cnov" if where != "params" else "cov"
    message = rf'the net has no .* "{name}" \(did you mean "conv"\?\); it has .*conv'
    with pytest.raises(KeyError, match=message) as caught:
        getattr(net, where)[name]
    assert isinstance(caught.value, NetError)
    assert getattr(net, where).get(name) is None and name not in getattr(net, where)


# -- forward --------------------------------------------------------------------------------------------------------


def test_forward(net: caffe.Net) -> None:
    x = images()
    found = net.forward(blobs=["conv", "fc"], data=x)
    assert set(found) == {"prob", "conv", "fc"} and all(isinstance(array, np.ndarray) for array in found.values())
    np.testing.assert_allclose(found["prob"], probabilities(net, x), rtol=1e-5)
    net.blobs["data"].data[...] = images(seed=1)
    np.testing.assert_allclose(net.forward()["prob"], probabilities(net, images(seed=1)), rtol=1e-5)
    net.blobs["conv"].data[...] = 0
    found = net.forward(start="fc", end="fc")
    assert set(found) == {"fc"}
    np.testing.assert_array_equal(found["fc"], np.tile(net.params["fc"][1].data, (2, 1)))


@pytest.mark.parametrize("options, message", [
    ({"data": images(3)}, r'"data" is not batch sized: its shape is \(3, 3, 5, 5\), the blob\'s \(2, 3, 5, 5\)'),
    ({"data": np.zeros((2, 3, 4, 4))}, r'"data" \(float64, shape \(2, 3, 4, 4\)\) does not fit'),
    ({"data": np.array([["a"] * 3] * 2)}, "does not fit"),
    ({"dta": images()}, "given are for dta, but the inputs of the net are data"),
    ({"data": images(), "fc": np.zeros((2, 5))}, "given are for data, fc, but the inputs"),
    ({"start": "cov"}, r'no layer "cov" \(did you mean "conv"'),
    ({"end": "cov"}, r'no layer "cov" \(did you mean "conv"'),
    ({"blobs": ["cov"]}, r'no blob "cov" \(did you mean "conv"'),
    ({"blobs": "conv"}, 'expected a list of blob names, found "conv"'),
])
def test_forward_refuses(options: dict[str, Any], message: str, net: caffe.Net) -> None:
    with pytest.raises(CaffeError, match=message):
        net.forward(**options)


def test_arrays_that_are_held_show_each_pass(net: caffe.Net) -> None:
    data, prob, first = net.blobs["data"].data, net.blobs["prob"].data, net.blobs["prob"].data[0]
    for seed in range(3):
        data[...] = images(seed=seed)
        found = net.forward()["prob"]
        assert found is prob
        np.testing.assert_allclose(prob, probabilities(net, images(seed=seed)), rtol=1e-5)
        np.testing.assert_array_equal(first, prob[0])
    net.params["fc"][0].data[...] = 0
    net.params["fc"][1].data[...] = 0
    net.forward()
    np.testing.assert_allclose(prob, 0.2)


def test_forward_all(net: caffe.Net) -> None:
    x = images(5)
    found = net.forward_all(blobs=["fc"], data=x)
    assert set(found) == {"prob", "fc"}
    np.testing.assert_allclose(found["prob"], probabilities(net, x), rtol=1e-5)
    assert found["fc"].shape == (5, 5)
    with pytest.raises(CaffeError, match="found no arrays"):
        net.forward_all()


def test_shapes(net: caffe.Net) -> None:
    net.blobs["data"].reshape(4, 3, 5, 5)
    net.reshape()
    assert net.blobs["prob"].shape == (4, 5) and net.blobs["prob"].num == 4
    np.testing.assert_allclose(net.forward(data=images(4))["prob"], probabilities(net, images(4)), rtol=1e-5)
    with pytest.raises(NetError, match="cannot have the shape"):
        net.blobs["data"].reshape(-1, 3, 5, 5)


# -- backward -------------------------------------------------------------------------------------------------------


def test_backward(net: caffe.Net) -> None:
    x, diff = images(), np.random.default_rng(3).standard_normal((2, 5)).astype(np.float32)
    net.forward(data=x)
    found = net.backward(diffs=["fc"], prob=diff)
    assert set(found) == {"data", "fc"}
    # Softmax: p * (d - sum(p * d)).
    p = probabilities(net, x)
    np.testing.assert_allclose(found["fc"], p * (diff - (p * diff).sum(1, keepdims=True)), rtol=1e-4, atol=1e-6)
    step = np.zeros_like(x)
    step[0, 1, 2, 3] = 1e-2
    change = ((probabilities(net, x + step) - probabilities(net, x - step)) * diff).sum() / 2e-2
    assert found["data"][0, 1, 2, 3] == pytest.approx(change, rel=1e-2, abs=1e-4)
    assert set(net.backward(start="fc", end="fc")) == {"conv"}
    np.testing.assert_allclose(net.blobs["conv"].diff.reshape(2, -1), net.blobs["fc"].diff @ net.params["fc"][0].data,
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"prob": np.zeros((3, 5))}, "not batch sized"),
    ({"fc": np.zeros((2, 5))}, "given are for fc, but the outputs of the net are prob"),
    ({"start": "cov"}, 'no layer "cov"'),
    ({"end": "cov"}, 'no layer "cov"'),
    ({"diffs": ["cov"]}, 'no blob "cov"'),
])
def test_backward_refuses(options: dict[str, Any], message: str, net: caffe.Net) -> None:
    net.forward()
    with pytest.raises(CaffeError, match=message):
        net.backward(**options)


def test_backward_without_forward(net: caffe.Net) -> None:
    """What the blobs hold counts; here zeros, and what is written into them."""
    net.blobs["conv"].data[...] = 2
    net.blobs["fc"].diff[...] = 1
    found = net.backward(start="fc", end="fc")["conv"]
    np.testing.assert_allclose(found.reshape(2, -1), np.tile(net.params["fc"][0].data.sum(0), (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(net.params["fc"][0].diff, 4, rtol=1e-6)


def test_a_held_diff_is_cleared(net: caffe.Net) -> None:
    net.forward(data=images())
    net.backward(prob=np.eye(2, 5))
    held = net.params["conv"][0].diff
    before = held.copy()
    assert before.any()
    net.clear_param_diffs()
    assert not held.any()
    net.backward()
    np.testing.assert_allclose(held, before, rtol=1e-5, atol=1e-8)
    net.backward()
    np.testing.assert_allclose(held, 2 * before, rtol=1e-5, atol=1e-8)


def test_forward_backward_all(net: caffe.Net) -> None:
    x, diff = images(3), np.ones((3, 5), np.float32) * np.arange(5)
    data, diffs = net.forward_backward_all(blobs=["fc"], diffs=["fc"], data=x, prob=diff)
    assert set(data) == {"prob", "fc"} and set(diffs) == {"data", "fc"}
    np.testing.assert_allclose(data["prob"], probabilities(net, x), rtol=1e-5)
    for row in range(3):
        net.forward(data=np.repeat(x[row:row + 1], 2, 0))
        np.testing.assert_allclose(diffs["data"][row], net.backward(prob=np.repeat(diff[row:row + 1], 2, 0))["data"][0],
                                   rtol=1e-4, atol=1e-6)
    with pytest.raises(CaffeError, match="arrays are given for fc"):
        net.forward_backward_all(fc=diff)
    with pytest.raises(CaffeError, match="as many rows as each other; found data: 3, prob: 2"):
        net.forward_backward_all(data=x, prob=diff[:2])


def test_positions_instead_of_names(net: caffe.Net) -> None:
    net.blobs["data"].data[...] = images()
    assert net._forward(0, 4) == 0
    np.testing.assert_allclose(net.blobs["prob"].data, probabilities(net, images()), rtol=1e-5)
    net.blobs["prob"].diff[...] = np.eye(2, 5)
    net._backward(4, 1)
    assert net.blobs["data"].diff.any()


def test_loss_by_positions(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "a" type: "DummyData" top: "a" dummy_data_param { shape { dim: 4 } data_filler { value: 2 } } }
        layer { name: "l" type: "Reduction" bottom: "a" top: "l" loss_weight: 0.5 }""")
    net = caffe.Net(tmp_path / "net.prototxt", caffe.TRAIN)
    assert net._forward(0, len(net.layers) - 1) == 4
    assert net.blob_loss_weights["l"] == 0.5


# -- callbacks ------------------------------------------------------------------------------------------------------


def test_callbacks(net: caffe.Net) -> None:
    net.forward(data=images())
    net.backward(prob=np.eye(2, 5))
    expected = [net.blobs["data"].diff.copy(), net.params["conv"][0].diff.copy()]
    net.clear_param_diffs()
    seen = []
    held = net.blobs["fc"].data
    net.before_forward(lambda k: seen.append(("forward", k)))
    net.after_forward(lambda k: seen.append(("forwarded", k, float(np.abs(held).sum()))))
    net.before_backward(lambda k: seen.append(("backward", k)))
    net.after_backward(lambda k: seen.append(("backwarded", k)))
    net.blobs["data"].data[...] = images(seed=5)
    net.forward(start="fc")
    assert [event[:2] for event in seen] == [("forward", 3), ("forwarded", 3), ("forward", 4), ("forwarded", 4)]
    net.forward(data=images())
    assert seen[-1][2] == pytest.approx(np.abs(net.blobs["fc"].data).sum())
    seen.clear()
    net.backward()
    assert seen == [(event, k) for k in (4, 3, 2, 1, 0) for event in ("backward", "backwarded")]
    np.testing.assert_allclose(net.blobs["data"].diff, expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(net.params["conv"][0].diff, expected[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(CaffeError, match="takes a function"):
        net.before_forward(3)


def test_backward_callbacks_need_diffs(path: Path) -> None:
    with pytest.raises(NetError, match="keep_blobs"):
        caffe.Net(path, caffe.TEST, keep_blobs=False).after_backward(print)


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights(net: caffe.Net, path: Path, tmp_path: Path) -> None:
    other = caffe.Net(path, caffe.TRAIN)
    held = other.params["fc"][0].data
    net.save_hdf5(tmp_path / "weights")  # whatever it is called
    other.load_hdf5(tmp_path / "weights")
    np.testing.assert_array_equal(held, net.params["fc"][0].data)
    net.save(tmp_path / "weights.caffemodel")
    held[...] = 0
    other.copy_from(tmp_path / "weights.caffemodel")
    np.testing.assert_array_equal(held, net.params["fc"][0].data)
    with pytest.raises(WeightError, match=r"weights.caffemodel: no such HDF5 file"):
        other.load_hdf5(tmp_path / "weights.caffemodel")
    third = caffe.Net(path, caffe.TEST)
    third.share_with(net)
    net.params["fc"][1].data[...] = 3
    assert (third.params["fc"][1].data == 3).all()


def test_input_arrays(tmp_path: Path, net: caffe.Net) -> None:
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "m" type: "MemoryData" top: "x" top: "y"
          memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 } }
        layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 2 } }""")
    memory = caffe.Net(tmp_path / "net.prototxt", caffe.TEST)
    data, labels = np.arange(12, dtype=np.float32).reshape(4, 1, 1, 3), np.arange(4, dtype=np.float32)
    memory.set_input_arrays(data, labels)
    held = memory.blobs["x"].data
    for begin in (0, 2, 0):
        np.testing.assert_array_equal(memory.forward()["p"], 2 * data[begin:begin + 2])
        assert memory.blobs["y"].data.ravel().tolist() == [begin, begin + 1]
    assert data.ravel().tolist() == list(range(12)) and held.shape == (2, 1, 1, 3)
    with pytest.raises(CaffeError, match="float32"):
        memory.set_input_arrays(data.astype(np.float64), labels)
    with pytest.raises(NetError, match="first layer is a MemoryData layer, this is a Input layer"):
        net.set_input_arrays(data, labels)


# -- modes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what a test sets for the process."""
    from caffe_compat.pycaffe import mode

    monkeypatch.setattr(mode, "_mode", mode.Mode())
    monkeypatch.setattr(mode, "_seeded", 0)


def test_random_seed(path: Path, modes: None, tmp_path: Path) -> None:
    def two() -> list[np.ndarray]:
        caffe.set_random_seed(7)
        return [caffe.Net(path, caffe.TEST).params["fc"][0].data.copy() for _ in range(2)]

    first, second = two(), two()
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    noisy = caffe.Net(path, caffe.TRAIN, stages=["noisy"])
    masks = []
    for _ in range(3):
        caffe.set_random_seed(3)
        masks += [noisy.forward(data=images())["drop"] == 0, noisy.forward()["drop"] == 0]
    np.testing.assert_array_equal(masks[:2], masks[2:4])
    assert not all(np.array_equal(masks[k], masks[k + 1]) for k in range(5))


def test_gpu_where_there_is_none(modes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for refused in (caffe.set_mode_gpu, lambda: caffe.set_device(0)):
        with pytest.raises(CaffeError, match="no CUDA device is available"):
            refused()
    caffe.set_mode_cpu()


def test_moving_keeps_everything(tmp_path: Path) -> None:
    """To the device it is on, as tests run without another."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 2 dim: 4 } } }
        layer { name: "cont" type: "DummyData" top: "cont"
          dummy_data_param { shape { dim: 3 dim: 2 } data_filler { value: 1 } } }
        layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 3
          weight_filler { type: "gaussian" } bias_filler { type: "gaussian" } } }
        layer { name: "bn" type: "BatchNorm" bottom: "h" top: "h" }
        layer { name: "sum" type: "Reduction" bottom: "h" top: "sum" loss_weight: 1
          reduction_param { operation: SUMSQ } }""")
    nets = [caffe.Net(tmp_path / "net.prototxt", caffe.TRAIN, seed=4) for _ in range(2)]
    blobs, learnable = dict(nets[0].blobs), [item.blob for item in nets[0].learnable]
    x = np.random.default_rng(0).standard_normal((3, 2, 4))
    for _ in range(2):
        for net in nets:
            net.forward(x=x)
            net.backward()
        move_net(nets[0], torch.device("cpu"))
    assert dict(nets[0].blobs) == blobs and [item.blob for item in nets[0].learnable] == learnable
    for name, blob in nets[0].blobs.items():
        np.testing.assert_array_equal(blob.data, nets[1].blobs[name].data)
    for ours, theirs in zip(nets[0].learnable, nets[1].learnable, strict=True):
        np.testing.assert_array_equal(ours.blob.diff, theirs.blob.diff)
        assert ours.blob.diff.any() == ours.blob.tensor.requires_grad == (ours.layer_name == "lstm")
    for net in nets:
        net.forward()
    np.testing.assert_array_equal(nets[0].blobs["h"].data, nets[1].blobs["h"].data)


@pytest.mark.gpu
def test_a_net_follows_the_mode(net: caffe.Net, path: Path, modes: None) -> None:
    expected = probabilities(net, images())
    data, prob = net.blobs["data"].data, net.forward(data=images())["prob"]
    data[...] = images(seed=1)
    caffe.set_device(0)
    caffe.set_mode_gpu()
    assert net.forward()["prob"] is prob and net.device.type == "cuda" and net.blobs["prob"].tensor.is_cuda
    np.testing.assert_allclose(prob, probabilities(net, images(seed=1)), rtol=1e-4)
    data[...] = images()
    net.forward()
    np.testing.assert_allclose(prob, expected, rtol=1e-4)
    on_gpu = net.backward(prob=np.eye(2, 5))["data"].copy()
    assert caffe.Net(path, caffe.TEST).device.type == "cuda"
    assert caffe.Net(path, caffe.TEST, device="cpu").device.type == "cpu"
    caffe.set_mode_cpu()
    net.forward()
    np.testing.assert_allclose(net.backward()["data"], on_gpu, rtol=1e-3, atol=1e-6)
    assert net.device.type == "cpu"
    with pytest.raises(CaffeError, match="there is no GPU 99"):
        caffe.set_device(99)


def test_unknown_layers_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text('layer { name: "a" type: "Nothing" top: "a" }')
    with pytest.raises(UnknownType, match="Nothing"):
        caffe.Net(tmp_path / "net.prototxt", caffe.TEST)


def test_layers_after_the_end_of_a_pass_need_not_fit(net: caffe.Net) -> None:
    """As when features of images of any size are taken from a classifier."""
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7))
    net.blobs["data"].reshape(*x.shape)
    assert net.forward(end="relu", data=x)["conv"].shape == (2, 4, 7, 5)
    with pytest.raises(NetError, match="fc"):
        net.forward()
    with pytest.raises(NetError, match="fc"):
        net.reshape()
    net.blobs["data"].reshape(3, 3, 5, 5)
    net.forward(end="relu", data=images(3))
    assert net.blobs["fc"].shape == (2, 5)
    np.testing.assert_allclose(net.forward()["prob"], probabilities(net, images(3)), rtol=1e-5)
    assert net.blobs["fc"].shape == (3, 5)


def test_constants_keep_what_is_written_into_them(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "a" type: "DummyData" top: "a" dummy_data_param { shape { dim: 2 } data_filler { value: 4 } } }
        layer { name: "p" type: "Power" bottom: "a" top: "p" power_param { scale: 2 } }""")
    net = caffe.Net(tmp_path / "net.prototxt", caffe.TEST)
    assert net.blobs["a"].data.tolist() == [4, 4]
    net.blobs["a"].data[0] = 7  # before the first pass
    assert net.forward()["p"].tolist() == net.forward()["p"].tolist() == [14, 8]


def test_diffs_have_memory_of_their_own(tmp_path: Path) -> None:
    """Torch gives both inputs of a sum one gradient, and spreads that of a total over all its inputs."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "a" type: "Parameter" top: "a" parameter_param { shape { dim: 2 dim: 3 } } }
        layer { name: "b" type: "Parameter" top: "b" parameter_param { shape { dim: 2 dim: 3 } } }
        layer { name: "s" type: "Eltwise" bottom: "a" bottom: "b" top: "s" }
        layer { name: "r" type: "Reduction" bottom: "s" top: "r" loss_weight: 1 }""")
    net = caffe.Net(tmp_path / "net.prototxt", caffe.TRAIN)
    for passes in (1, 2, 3):
        net.forward()
        net.backward()
        assert (net.params["a"][0].diff == passes).all() and (net.params["b"][0].diff == passes).all()
    net.blobs["s"].diff[0, 0] = 5
    net.params["a"][0].diff[0, 1] = 6
    assert net.blobs["s"].diff.tolist() == [[5, 1, 1], [1, 1, 1]] and (net.params["b"][0].diff == 3).all()
