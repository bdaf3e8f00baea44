"""pycaffe's Net going backward, both ways at once, and its callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_net import images, probabilities

import caffe_compat as caffe
from caffe_compat.errors import CaffeError, NetError


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
