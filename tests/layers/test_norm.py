"""LRN, BatchNorm, MVN, Scale and Bias: what the recordings do not cover, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import one_layer, run, shape_text, values

from caffe_compat import proto
from caffe_compat.errors import NetError
from caffe_compat.layers.norm import LocalResponse
from caffe_compat.net import Net


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.3])
def test_lrn_is_torchs(size, beta):
    """torch divides by the size too, so its local_response_norm is the same function."""
    x = torch.from_numpy(values(2, 7, 4, 5)).requires_grad_()
    ours = LocalResponse.apply(x, (1,), size, 0.3 / size, beta, 1.5)
    theirs = F.local_response_norm(x, size, 0.3, beta, 1.5)
    torch.testing.assert_close(ours, theirs)
    grad = torch.from_numpy(values(2, 7, 4, 5, seed=1))
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad) for y in (ours, theirs)))


def test_lrn_keeps_the_layout():
    x = torch.from_numpy(values(2, 7, 4, 5)).contiguous(memory_format=torch.channels_last)
    assert LocalResponse.apply(x, (1,), 5, 0.1, 0.75, 1.0).is_contiguous(memory_format=torch.channels_last)


def batch_norm(settings: str = "", more: str = "") -> str:
    return f'type: "BatchNorm" top: "y" batch_norm_param {{ {settings} }} {more}'


def test_batch_norm_statistics_over_many_passes():
    """The blobs are sums that decay by the fraction, and their divisor; the TEST phase divides by it."""
    fraction, mean, variance, divisor = 0.9, np.zeros(3), np.zeros(3), 0.0
    net = one_layer(batch_norm(f"moving_average_fraction: {fraction}"), (4, 3, 2, 5))
    for step in range(4):
        x = values(4, 3, 2, 5, seed=step) * 2 + 1
        run(net, x)
        mean = fraction * mean + x.mean((0, 2, 3))
        variance = fraction * variance + x.var((0, 2, 3), ddof=1)
        divisor = fraction * divisor + 1
    for blob, expected in zip(net.params["layer"], (mean, variance, divisor)):
        np.testing.assert_allclose(blob.data, np.broadcast_to(expected, blob.shape), rtol=1e-5)
    test = one_layer(batch_norm(), (4, 3, 2, 5), phase="TEST")
    test.share_with(net)
    y = run(test, x)
    mean, deviation = (mean / divisor).reshape(3, 1, 1), np.sqrt(variance / divisor + 1e-5).reshape(3, 1, 1)
    np.testing.assert_allclose(y, (x - mean) / deviation, rtol=1e-4, atol=1e-5)
    assert float(net.params["layer"][2].data[0]) == pytest.approx(divisor)


def test_batch_norm_parameters_are_never_learned():
    net = one_layer(batch_norm(more="param { lr_mult: 0 }"), (4, 3, 2, 5))
    assert [learnable.lr_mult for learnable in net.learnable] == [0, 0, 0]
    with pytest.raises(NetError, match="param 1 has lr_mult 1.*set lr_mult: 0"):
        one_layer(batch_norm(more="param { lr_mult: 0 } param { decay_mult: 0 }"), (4, 3, 2, 5))


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (1, 3, 1, 1)])
@pytest.mark.parametrize("bias", ["true", "false"])
def test_a_fused_scale_changes_nothing(phase, shape, bias):
    """BatchNorm and Scale at once give the tops, gradients and statistics that they give one after the other."""
    text = f"""force_backward: true
        layer {{ name: "in" type: "Input" top: "x" input_param {{ {shape_text(shape)} }} }}
        layer {{ name: "norm" type: "BatchNorm" bottom: "x" top: "x" }}
        layer {{ name: "scale" type: "Scale" bottom: "x" top: "x"
                 scale_param {{ bias_term: {bias} filler {{ type: "xavier" }} bias_filler {{ type: "xavier" }} }} }}"""
    seen = []
    for fused in (False, True):
        net = Net(proto.parse_text(text, "NetParameter"), phase, seed=3)
        for blob, start in zip(net.params["norm"], (0.5, 2.0, 1.5)):
            blob.data[...] = start
        norm, scale = net.layer_dict["norm"], net.layer_dict["scale"]
        assert not fused or norm.fuse(scale)
        net.blobs["x"].data[...] = values(*shape)
        net.forward()
        top = net.blobs["x"].data.copy()
        net.blobs["x"].diff[...] = values(*shape, seed=1)
        net.backward()
        seen.append([top, net.blobs["x"].diff.copy()] + [b.data.copy() for b in net.params["norm"]] +
                    [b.diff.copy() for b in net.params["scale"]])
        norm.fuse(None)
        assert not scale.fused and norm.scale is None
    for apart, at_once in zip(*seen):
        np.testing.assert_allclose(at_once, apart, rtol=1e-4, atol=1e-5)


def test_only_a_scale_per_channel_is_fused():
    norm = one_layer(batch_norm(), (4, 3, 2, 5)).layer_dict["layer"]
    for settings in ("axis: 0", "num_axes: 2", "axis: 2"):
        scale = one_layer(f'type: "Scale" top: "y" scale_param {{ {settings} }}', (4, 3, 2, 5)).layer_dict["layer"]
        assert not norm.fuse(scale) and not scale.fused


@pytest.mark.parametrize("settings, filled", [("", 1), ("filler { }", 0), ("filler { value: 3 }", 3)])
def test_default_of_scale(settings, filled):
    net = one_layer(f'type: "Scale" top: "y" scale_param {{ {settings} }}', (4, 3, 2, 5))
    assert (net.params["layer"][0].data == filled).all()


def test_scale_of_a_column_of_channels():
    """A scale of axis 1 in a bottom of two axes, which is not per channel of an image."""
    x = values(4, 3)
    net = one_layer('type: "Scale" top: "y" scale_param { filler { type: "gaussian" } bias_term: true }', (4, 3))
    np.testing.assert_allclose(run(net, x), x * net.params["layer"][0].data, rtol=1e-6)


@pytest.mark.parametrize("text, shapes, message", [
    ('type: "LRN" top: "y" lrn_param { local_size: 4 }', [(1, 2, 3, 3)], "local_size is 4; it must be odd"),
    ('type: "LRN" top: "y" lrn_param { local_size: 0 }', [(1, 2, 3, 3)], "local_size is 0"),
    ('type: "LRN" top: "y"', [(1, 2, 3)], "four axes"),
    ('type: "BatchNorm" top: "y"', [(3,)], "at least two axes"),
    ('type: "MVN" top: "y"', [(1, 2, 3, 4, 5)], "one to four axes"),
    ('type: "Scale" top: "y" scale_param { axis: 1 num_axes: 4 }', [(1, 2, 3, 3)], "num_axes is 4 from axis 1"),
    ('type: "Scale" top: "y" scale_param { num_axes: -2 }', [(1, 2, 3, 3)], "num_axes is -2"),
    ('type: "Scale" top: "y" scale_param { axis: 7 }', [(1, 2, 3, 3)], "axis is 7"),
    ('type: "Scale" top: "y"', [(1, 2, 3, 3), (3,)], "applies from axis 1 on, but the bottom there is 2"),
    ('type: "Scale" top: "y" scale_param { bias_term: true }', [(1, 2, 3, 3), (2, 3, 3, 3)], "applies from axis 1"),
    ('type: "Bias" top: "y"', [(1, 2, 3, 3), (3,)], "the bias is 3"),
    ('type: "Bias" top: "y" bias_param { num_axes: 9 }', [(1, 2, 3, 3)], "num_axes is 9"),
    ('type: "Bias" top: "y"', [(1, 2), (2,), (2,)], "takes 1 to 2 bottom"),
])
def test_layers_that_cannot_be(text, shapes, message):
    with pytest.raises(NetError, match=message):
        one_layer(text, *shapes)


def test_batch_norm_channels_may_not_change():
    layer = one_layer(batch_norm(), (4, 3, 2, 5)).layer_dict["layer"]
    with pytest.raises(NetError, match="the statistics are of 3 channels"):
        layer.reshape([(4, 2, 2, 5)])
