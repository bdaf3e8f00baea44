"""pycaffe's Net: constructors, names, arrays in and out, weights, and what it says to a call that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_net import TEXT, images, probabilities

import caffe_compat as caffe
from caffe_compat.errors import CaffeError, NetError, UnknownType, WeightError

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


# -- corners --------------------------------------------------------------------------------------------------------


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
