"""Convolution, Deconvolution, Im2col and Crop: settings, shapes, errors and what the recordings do not cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import one_layer, run, values

from caffe_compat import proto
from caffe_compat.errors import NetError
from caffe_compat.net import Net


def convolution(settings: str) -> str:
    return (f'type: "Convolution" top: "y" convolution_param {{ num_output: 4 weight_filler {{ type: "gaussian" }} '
            f'bias_filler {{ type: "gaussian" }} {settings} }}')


def deconvolution(settings: str) -> str:
    return convolution(settings).replace("Convolution", "Deconvolution")


@pytest.mark.parametrize("settings, kernel, top", [
    ("kernel_size: 3", (3, 3), (10, 8)),
    ("kernel_size: 3 kernel_size: 2", (3, 2), (10, 9)),
    ("kernel_h: 3 kernel_w: 2", (3, 2), (10, 9)),
    ("kernel_size: 3 stride: 2", (3, 3), (5, 4)),
    ("kernel_size: 3 stride_h: 1 stride_w: 3", (3, 3), (10, 3)),
    ("kernel_size: 3 pad_h: 1", (3, 3), (12, 8)),
    ("kernel_size: 3 pad: 1 pad: 2", (3, 3), (12, 12)),
    ("kernel_size: 3 dilation: 2 dilation: 1", (3, 3), (8, 8)),
])
def test_ways_to_write_a_window(settings, kernel, top):
    net = one_layer(convolution(settings), (2, 6, 12, 10))
    assert net.params["layer"][0].shape == (4, 6, *kernel)
    assert net.blobs["y"].shape == (2, 4, *top)


@pytest.mark.parametrize("settings, message", [
    ("", "kernel_size is missing"),
    ("kernel_size: 0", "every size must be at least 1"),
    ("kernel_h: 3", "kernel_h is given alone"),
    ("kernel_size: 3 stride: 0", "the stride is 0 x 0"),
    ("kernel_size: 3 stride_h: 2", "stride_h is given alone"),
    ("kernel_size: 3 dilation: 0", "the dilation is 0 x 0"),
    ("kernel_size: 3 kernel_h: 3 kernel_w: 3", "both kernel_size and kernel_h"),
    ("kernel_size: 3 pad: 1 pad_h: 1", "both pad and pad_h"),
    ("kernel_size: 3 kernel_size: 3 kernel_size: 3", "kernel_size is given 3 times"),
    ("kernel_size: 3 pad: 1 pad: 1 pad: 1", "pad is given 3 times"),
    ("kernel_size: 11", "does not fit"),
    ("kernel_size: 3 dilation: 6", "does not fit"),
    ("kernel_size: 3 group: 4", "channels of the bottom: 6, group: 4"),
    ("kernel_size: 3 group: 3", "num_output: 4, group: 3"),
    ("kernel_size: 3 group: 0", "group: 0"),
    ("kernel_size: 3 axis: 4", "axis is 4"),
])
def test_convolutions_that_cannot_be(settings, message):
    with pytest.raises(NetError, match=message) as caught:
        one_layer(convolution(settings), (2, 6, 12, 10))
    assert str(caught.value).startswith("layer (")
    assert caught.value.layer == "layer"


def test_sides_are_for_two_axes():
    with pytest.raises(NetError, match="kernel_h is for 2 spatial axes, but the bottom has 1"):
        one_layer(convolution("kernel_h: 3 kernel_w: 3"), (2, 6, 12))


def test_no_outputs():
    with pytest.raises(NetError, match="num_output: 0"):
        one_layer('type: "Convolution" top: "y" convolution_param { kernel_size: 3 }', (2, 6, 12, 10))


def test_all_bottoms_have_one_shape():
    text = convolution("kernel_size: 3").replace('top: "y"', 'top: "y" top: "z"')
    with pytest.raises(NetError, match="all bottoms must have one shape"):
        one_layer(text, (2, 6, 12, 10), (2, 6, 12, 11))


def test_channels_may_not_change():
    net = one_layer(convolution("kernel_size: 3"), (2, 6, 12, 10))
    with pytest.raises(NetError, match="made for 6 channels at axis 1 and 2 spatial axes"):
        net.layer_dict["layer"].reshape([(2, 5, 12, 10)])
    with pytest.raises(NetError, match="2 spatial axes"):
        net.layer_dict["layer"].reshape([(2, 6, 12)])


def test_deconvolution_that_cannot_be():
    with pytest.raises(NetError, match="does not fit"):
        one_layer(deconvolution("kernel_size: 2 pad: 2"), (1, 4, 2, 2))


def test_deconvolution_is_the_transpose_of_a_convolution():
    """<conv(x), y> = <x, deconv(y)> with the same kernels, for four spatial axes, groups, strides, pads, dilations."""
    settings = ("kernel_size: 2 stride: 2 stride: 1 stride: 3 stride: 1 pad: 1 "
                "dilation: 1 dilation: 2 dilation: 1 dilation: 1 group: 2 bias_term: false")
    shape = (2, 6, 6, 5, 6, 4)
    forward = one_layer(convolution(settings), shape)
    x = values(*shape)
    conv = run(forward, x)
    y = values(*conv.shape, seed=1)
    back = one_layer(deconvolution(settings).replace("num_output: 4", "num_output: 6"), conv.shape)
    back.params["layer"][0].data[...] = forward.params["layer"][0].data
    deconv = run(back, y)
    assert deconv.shape == shape
    assert np.isclose((conv * y).sum(), (x * deconv).sum(), rtol=1e-4)


def test_more_axes_than_torch_has():
    """Four spatial axes with a kernel of 1 in the last is the three-axis convolution of each slice."""
    settings = "group: 2 kernel_size: 2 kernel_size: 3 kernel_size: 2 pad: 1 pad: 0 pad: 1"
    four = one_layer(convolution(f"{settings} kernel_size: 1 pad: 0"), (2, 6, 4, 5, 4, 3))
    three = one_layer(convolution(settings), (2, 6, 4, 5, 4))
    three.params["layer"][0].data[...] = four.params["layer"][0].data[..., 0]
    three.params["layer"][1].data[...] = four.params["layer"][1].data
    x = values(2, 6, 4, 5, 4, 3)
    y = run(four, x)
    for i in range(3):
        np.testing.assert_allclose(y[..., i], run(three, x[..., i]), rtol=1e-4, atol=1e-5)


def test_padding_beyond_the_kernel():
    net = one_layer(convolution("kernel_size: 1 pad: 3"), (1, 6, 2, 2))
    y = run(net, values(1, 6, 2, 2))
    bias = net.params["layer"][1].data
    assert y.shape == (1, 4, 8, 8)
    np.testing.assert_array_equal(y[0, :, 0, 0], bias)


def test_kernels_are_channels_last_on_the_cpu():
    """oneDNN's fast layout; what numpy sees is the logical shape, and writing it in place works."""
    net = one_layer(convolution("kernel_size: 3"), (2, 6, 12, 10))
    kernels = net.params["layer"][0]
    assert kernels.tensor.is_contiguous(memory_format=torch.channels_last)
    kernels.data[...] = 0
    kernels.data[1, 2, 0, 1] = 5
    x = values(2, 6, 12, 10)
    y = run(net, x)
    np.testing.assert_allclose(y[:, 1], 5 * x[:, 2, :10, 1:9] + net.params["layer"][1].data[1], rtol=1e-5, atol=1e-5)
    assert net.blobs["y"].tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("text, shapes, message", [
    ('type: "Im2col" top: "y" convolution_param { kernel_size: 9 }', [(1, 2, 8, 8)], "does not fit"),
    ('type: "Im2col" top: "y" convolution_param { kernel_size: 2 axis: 3 }', [(1, 2, 8, 8)], "no spatial axes"),
    ('type: "Crop" top: "y" crop_param { offset: 1 }', [(1, 2, 8, 8), (1, 2, 8, 7)], "axis 2 of the bottom has 8"),
    ('type: "Crop" top: "y" crop_param { offset: 1 offset: 1 offset: 1 }', [(1, 2, 8, 8), (1, 2, 4, 4)], "3 times"),
    ('type: "Crop" top: "y"', [(1, 2, 8, 8), (1, 2, 4)], "fewer axes"),
    ('type: "Crop" top: "y" crop_param { axis: 4 }', [(1, 2, 8, 8), (1, 2, 4, 4)], "axis is 4"),
    ('type: "Crop" top: "y"', [(1, 2, 8, 8)], "takes 2 bottom"),
])
def test_other_layers_that_cannot_be(text, shapes, message):
    with pytest.raises(NetError, match=message):
        one_layer(text, *shapes)


@pytest.mark.parametrize("settings", [
    "num_output: 4 kernel_size: 3", "num_output: 4 kernel_h: 2 kernel_w: 3 stride: 2 pad: 1 dilation: 2",
    "num_output: 6 kernel_size: 3 group: 2 bias_term: false",
])
@pytest.mark.parametrize("keep_blobs", [True, ["y"]])
def test_caffes_own_algorithm_gives_the_same(settings: str, keep_blobs: bool | list[str]) -> None:
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 3 dim: 4 dim: 9 dim: 8 }} }} }}
    layer {{ name: "conv" type: "Convolution" bottom: "x" top: "y" propagate_down: true
      convolution_param {{ {settings} weight_filler {{ type: "xavier" }} bias_filler {{ type: "gaussian" }} }} }}
    layer {{ name: "relu" type: "ReLU" bottom: "y" top: "y" }}
    layer {{ name: "loss" type: "Reduction" bottom: "y" top: "loss" reduction_param {{ operation: SUMSQ }} loss_weight: 1 }}
    """
    fast, own = (Net(proto.parse_text(text, "NetParameter"), "TRAIN", seed=1, keep_blobs=keep_blobs, caffe_arithmetic=own)
                 for own in (False, True))
    for net in (fast, own):
        net.blobs["x"].data[...] = np.random.default_rng(0).standard_normal((3, 4, 9, 8))
        net.forward_backward()
    np.testing.assert_allclose(own.blobs["y"].data, fast.blobs["y"].data, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(own.params["conv"], fast.params["conv"]):
        np.testing.assert_allclose(ours.diff, theirs.diff, rtol=1e-4, atol=1e-4)
    if keep_blobs is True:
        np.testing.assert_allclose(own.blobs["x"].diff, fast.blobs["x"].diff, rtol=1e-4, atol=1e-4)
