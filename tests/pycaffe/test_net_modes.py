"""pycaffe's Net and what is set for the process: seeds, devices and modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_net import images, probabilities

import caffe_compat as caffe
from caffe_compat.errors import CaffeError
from caffe_compat.pycaffe.devices import move_net


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
