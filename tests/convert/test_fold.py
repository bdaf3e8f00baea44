"""Folding: every pairing gives the same outputs as before, exactly what can be folded is, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_compat import proto
from caffe_compat.convert import Graph, Options
from caffe_compat.convert.fold import fold, preprocess
from caffe_compat.convert.torch_target import to_module
from caffe_compat.errors import NetError
from caffe_compat.net import Net

FILL = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "gaussian" std: 0.5 }'
PRODUCTS = {
    "conv": f'type: "Convolution" convolution_param {{ num_output: 6 kernel_size: 3 {FILL} %s }}',
    "group": f'type: "Convolution" convolution_param {{ num_output: 6 kernel_size: 3 group: 2 {FILL} %s }}',
    "depthwise": f'type: "Convolution" convolution_param {{ num_output: 6 kernel_size: 1 group: 6 {FILL} %s }}',
    "padded": f'type: "Convolution" convolution_param {{ num_output: 6 kernel_size: 3 pad: 1 {FILL} %s }}',
    "deconv": f'type: "Deconvolution" convolution_param {{ num_output: 6 kernel_size: 3 stride: 2 group: 3 {FILL} %s }}',
    "ip": f'type: "InnerProduct" inner_product_param {{ num_output: 6 {FILL} %s }}',
    "ip_t": f'type: "InnerProduct" inner_product_param {{ num_output: 6 transpose: true {FILL} %s }}',
}
AFFINE = {
    "bn": 'type: "BatchNorm" batch_norm_param { eps: 0.01 }',
    "scale": 'type: "Scale" scale_param { bias_term: false filler { type: "uniform" min: 0.5 max: 1.5 } }',
    "scale_bias": 'type: "Scale" scale_param { bias_term: true filler { type: "uniform" min: 0.5 max: 1.5 } '
                  'bias_filler { type: "gaussian" std: 1 } }',
    "bias": 'type: "Bias" bias_param { filler { type: "gaussian" std: 1 } }',
    "power": 'type: "Power" power_param { scale: -1.5 shift: 0.25 }',
    "shared_scale": 'type: "Scale" scale_param { axis: 0 num_axes: 0 filler { value: 0.7 } }',
}
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 dim: 5 dim: 7 } } }\n'


def net_of(layers: list[str], in_place: bool = False, extra: str = "") -> Net:
    """A chain of layers, the affine ones in place if asked; BatchNorm statistics are filled."""
    text, bottom = INPUT, "x"
    for i, layer in enumerate(layers):
        affine = any(f'type: "{kind}"' in layer for kind in ("BatchNorm", "Scale", "Bias", "Power", "ReLU"))
        top = bottom if in_place and affine and bottom != "x" else f"b{i}"
        text += f'layer {{ name: "l{i}" bottom: "{bottom}" top: "{top}" {layer} }}\n'
        bottom = top
    net = Net(proto.parse_text(text + extra, "NetParameter"), "TEST", seed=3)
    rng = np.random.RandomState(7)
    for layer in net.layers:
        if layer.type == "BatchNorm":
            mean, variance, divisor = layer.blobs
            divisor.data[...] = 2.5
            mean.data[...] = rng.standard_normal(mean.shape)
            variance.data[...] = 1 + rng.rand(*variance.shape)
    net.blobs["x"].data[...] = rng.standard_normal(net.blobs["x"].shape)
    return net


def check(net: Net, kinds: list[str]) -> Graph:
    """Folds: these types remain, and all outputs are as before."""
    graph = Graph.of(net).run([fold])
    assert [node.type for node in graph.nodes] == kinds
    expected = {name: tensor.numpy() for name, tensor in net.forward().items()}
    with torch.no_grad():
        found = to_module(graph)(torch.from_numpy(net.blobs["x"].data))
    found = found if isinstance(found, dict) else {graph.blob(graph.outputs[0]): found}
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=0, atol=1e-5 * values.std())
    again = graph.to_document()  # and so they are in the prototxt and weights of what is left
    back = Net(proto.Document(again.message, again.dialect), "TEST")
    if back.params:
        back.copy_from(again)
    back.blobs["x"].data[...] = net.blobs["x"].data
    for name, tensor in back.forward().items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=0, atol=1e-5 * expected[name].std())
    return graph


@pytest.mark.parametrize("in_place", [False, True], ids=["", "in_place"])
@pytest.mark.parametrize("bias", ["bias_term: true", "bias_term: false"])
@pytest.mark.parametrize("affine", ["bn", "scale", "scale_bias", "bias", "power", "shared_scale", "bn scale_bias",
                                    "bn scale bias"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_after(product: str, affine: str, bias: str, in_place: bool) -> None:
    """Whatever scales and shifts follow a product go into it."""
    layers = [PRODUCTS[product] % bias, *(AFFINE[name] for name in affine.split()), 'type: "ReLU"']
    net = net_of(layers, in_place)
    graph = check(net, [net.layers[1].type, "ReLU"])
    assert len(graph.nodes[0].params) == 2


@pytest.mark.parametrize("bias", ["bias_term: true", "bias_term: false"])
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("product", PRODUCTS)
def test_before(product: str, affine: str, bias: str) -> None:
    """Before a product only what is exact at its borders: shifts not where it pads, nor before a Deconvolution."""
    net = net_of(['type: "ReLU"', AFFINE[affine], PRODUCTS[product] % bias])
    kinds = [layer.type for layer in net.layers[1:]]
    stays = affine not in ("scale", "shared_scale") and product in ("padded", "deconv")
    check(net, kinds if stays else [kinds[0], kinds[2]])


def test_remaining_chain_becomes_one_scale() -> None:
    """BatchNorm, Scale and Bias between a ReLU and a padded convolution."""
    net = net_of(['type: "ReLU"', AFFINE["bn"], AFFINE["scale"], AFFINE["bias"], 'type: "ReLU"'])
    check(net, ["ReLU", "Scale", "ReLU"])


def test_not_where_others_read() -> None:
    """What lies between is read elsewhere, or is an output."""
    reader = 'layer { name: "other" type: "TanH" bottom: "b0" top: "other" }'
    net = net_of([PRODUCTS["conv"] % "", AFFINE["bn"], 'type: "ReLU"'], extra=reader)
    check(net, ["Convolution", "BatchNorm", "ReLU", "TanH"])


def test_not_where_parameters_are_shared() -> None:
    """Two convolutions of one kernel, of which one is followed by a Scale."""
    settings = f"num_output: 6 kernel_size: 1 bias_term: false {FILL}"
    conv = f'type: "Convolution" param {{ name: "w" }} convolution_param {{ {settings} }}'
    other = f'layer {{ name: "twin" bottom: "x" top: "twin" {conv} }}'
    check(net_of([conv, AFFINE["scale_bias"]], extra=other), ["Convolution", "Scale", "Convolution"])


def test_not_by_the_batch() -> None:
    """A BatchNorm that always uses the statistics of the batch is no scale and shift; nor is a net for training's."""
    by_batch = 'type: "BatchNorm" batch_norm_param { use_global_stats: false }'
    graph = Graph.of(net_of([PRODUCTS["conv"] % "", by_batch])).run([fold])
    assert [node.type for node in graph.nodes] == ["Convolution", "BatchNorm"]
    document = proto.parse_text(INPUT + f'layer {{ name: "bn" bottom: "x" top: "y" {AFFINE["bn"]} }}', "NetParameter")
    with pytest.raises(NetError, match="TEST phase"):
        Graph.of(Net(document, "TRAIN")).run([fold])


def test_the_net_keeps_its_weights() -> None:
    """Folding makes new ones."""
    net = net_of([PRODUCTS["conv"] % "bias_term: false", AFFINE["bn"], AFFINE["scale_bias"]])
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in net.params.items()}
    Graph.of(net).run([fold])
    assert not net.layer_dict["l0"].param.bias_term
    for name, blobs in net.params.items():
        for blob, values in zip(blobs, before[name], strict=True):
            np.testing.assert_array_equal(blob.data, values)


def test_earlier_version_of_a_blob_is_not_mistaken_for_it() -> None:
    """Folded into what follows, the last version of an in-place blob is gone; the one before it gets another name."""
    net = net_of([PRODUCTS["conv"] % "", 'type: "ReLU"', AFFINE["bn"], PRODUCTS["ip"] % ""], in_place=True)
    assert {"b0", "b3"} <= set(net.blobs) and "b1" not in net.blobs
    graph = check(net, ["Convolution", "ReLU", "InnerProduct"])
    assert "b0" not in {graph.blob(value) for node in graph.nodes for value in node.outputs}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["depthwise", "padded", "deconv", *AFFINE]), min_size=1, max_size=4),
       st.sampled_from(["conv", "group", "ip", "ip_t"]), st.lists(st.sampled_from([*AFFINE]), max_size=3), st.booleans())
def test_any_chain(before: list[str], last: str, after: list[str], in_place: bool) -> None:
    """Outputs stay what they were, and no scale or shift is left after a product."""
    names = [*before, last, *after]
    net = net_of([PRODUCTS[name] % "" if name in PRODUCTS else AFFINE[name] for name in names], in_place)
    kinds = [node.type for node in Graph.of(net).run([fold]).nodes]
    check(net, kinds)
    products = [k for k, kind in enumerate(kinds) if kind in ("Convolution", "Deconvolution", "InnerProduct")]
    assert products == list(range(products[0], len(kinds)))


@pytest.mark.parametrize("product", ["conv", "padded", "group"])
@pytest.mark.parametrize("options", [
    Options(scale=0.5), Options(mean=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), scale=0.1), Options(swap_channels=True),
    Options(mean=(3.0,), swap_channels=True),
], ids=["scale", "mean", "swap", "both"])
def test_preprocessing(options: Options, product: str) -> None:
    """Built in, what is done to images gives what the net gives for images to which it was done."""
    net = net_of([PRODUCTS[product] % "bias_term: false", 'type: "ReLU"'])
    graph = Graph.of(net).run([preprocess(options)])
    exact = (product != "padded" or not any(options.mean)) and (product != "group" or not options.swap_channels)
    assert len(graph.nodes) == (2 if exact else 3)
    raw = 10 * np.random.RandomState(1).standard_normal((2, 6, 5, 7)).astype(np.float32)
    net.blobs["x"].data[...] = options.preprocessed({"x": raw})["x"]
    order = slice(None, None, -1) if options.swap_channels else slice(None)
    plain = (raw[:, order] - np.reshape(options.mean or 0, (1, -1, 1, 1))) * options.scale
    np.testing.assert_allclose(net.blobs["x"].data, plain, rtol=1e-5, atol=1e-6)
    (expected,) = net.forward().values()
    with torch.no_grad():
        found = to_module(graph)(torch.from_numpy(raw))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)
