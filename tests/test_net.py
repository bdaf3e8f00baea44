"""What a net refuses and how it says so; views, sharing, partial passes, changing shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat import CaffeError, Net, proto
from caffe_compat.errors import NetError, UnknownType, WeightError

CLASSIFIER = """
name: "classifier"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def build(text: str, tmp_path: Path, phase: str = "TRAIN", **options: object) -> Net:
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    return Net(path, phase, seed=1, **options)


def fill(net: Net, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    net.blobs["data"].data[...] = rng.standard_normal(net.blobs["data"].shape)
    net.blobs["label"].data[...] = rng.integers(0, 5, net.blobs["label"].shape)


REFUSED = {
    "unknown type": ('layer { name: "a" type: "Convolutoin" bottom: "data" top: "a" }',
                     r'a \(.*net.prototxt:14\): unknown layer type "Convolutoin" \(did you mean "Convolution"'),
    "unknown bottom": ('layer { name: "a" type: "ReLU" bottom: "pool1" top: "a" }',
                       r'a \(.*net.prototxt:14\): unknown bottom blob "pool1".*produced so far: data, label, conv'),
    "too many bottoms": ('layer { name: "a" type: "ReLU" bottom: "fc" bottom: "data" top: "a" }',
                         r"net.prototxt:14\): a ReLU layer takes 1 bottom blob\(s\), found 2"),
    "no top": ('layer { name: "a" type: "Pooling" bottom: "conv" pooling_param { kernel_size: 2 } }',
               r"net.prototxt:14\): a Pooling layer takes .* top blob\(s\), found 0"),
    "top twice": ('layer { name: "a" type: "ReLU" bottom: "fc" top: "conv" }',
                  r'top blob "conv" is already produced by relu \(.*net.prototxt:'),
    "kernel too large": ('layer { name: "a" type: "Convolution" bottom: "conv" top: "a" '
                         "convolution_param { num_output: 2 kernel_size: 9 } }", r"net.prototxt:14\): .*9"),
    "group does not divide": ('layer { name: "a" type: "Convolution" bottom: "conv" top: "a" '
                              "convolution_param { num_output: 3 kernel_size: 1 group: 3 } }", r"net.prototxt:14\): .*3"),
    "shapes do not fit": ('layer { name: "a" type: "Eltwise" bottom: "conv" bottom: "data" top: "a" }', r"net.prototxt:14\)"),
    "unknown filler": ('layer { name: "a" type: "Convolution" bottom: "conv" top: "a" convolution_param '
                       '{ num_output: 2 kernel_size: 1 weight_filler { type: "xaviar" } } }',
                       r'net.prototxt:14\): unknown filler.* "xaviar" \(did you mean "xavier"'),
    "too many params": ('layer { name: "a" type: "ReLU" bottom: "fc" top: "a" param { lr_mult: 1 } }',
                        r"net.prototxt:14\): found 1 param for 0 parameter blobs"),
    "loss_weight count": ('layer { name: "a" type: "ReLU" bottom: "fc" top: "a" loss_weight: 1 loss_weight: 2 }',
                          r"net.prototxt:14\): found 2 loss_weight for 1 tops"),
    "propagate_down count": ('layer { name: "a" type: "ReLU" bottom: "fc" top: "a" propagate_down: true propagate_down: true }',
                             r"net.prototxt:14\): found 2 propagate_down for 1 bottoms"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: str, tmp_path: Path) -> None:
    addition, message = REFUSED[case]
    text = CLASSIFIER.replace('layer { name: "accuracy"', addition + '\nlayer { name: "accuracy"')
    line = text[:text.index(addition)].count("\n") + 1
    with pytest.raises(CaffeError, match=message.replace("14", str(line))):
        build(text, tmp_path)


def test_unknown_type_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownType) as caught:
        build('layer { name: "a" type: "Nothing" top: "a" }', tmp_path)
    assert "Convolution" in caught.value.known and "SoftmaxWithLoss" in caught.value.known


def test_what_is_written_into_a_view_is_seen_by_the_next_pass(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path, "TEST")
    fill(net)
    net.params["fc"][0].data[...] = 0
    net.params["fc"][1].data[...] = [0, 1, 2, 3, 4]
    net.forward()
    np.testing.assert_array_equal(net.blobs["fc"].data, [[0, 1, 2, 3, 4]] * 2)


def test_a_partial_forward_pass_uses_what_the_user_changed(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path, "TEST")
    fill(net)
    net.forward()
    net.blobs["conv"].data[...] = 0
    net.forward(start="fc")
    np.testing.assert_array_equal(net.blobs["fc"].data, np.tile(net.params["fc"][1].data, (2, 1)))
    with pytest.raises(NetError, match='no layer "nowhere"'):
        net.forward(start="nowhere")


def test_a_partial_backward_pass_starts_from_the_diffs_of_its_first_layer(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path)
    fill(net)
    net.forward()
    net.backward()
    whole = net.params["conv"][0].diff.copy()
    at_fc = net.blobs["fc"].diff.copy()
    net.clear_param_diffs()
    net.blobs["fc"].diff[...] = 2 * at_fc
    net.backward(start="fc")
    np.testing.assert_allclose(net.params["conv"][0].diff, 2 * whole, rtol=1e-5, atol=1e-8)


def test_an_in_place_layer_leaves_the_diff_before_it(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path)
    fill(net)
    net.forward_backward()
    # Caffe's ReLU overwrites the shared diff: nothing passes where the output is 0.
    assert (net.blobs["conv"].data == 0).any()
    assert not net.blobs["conv"].diff[net.blobs["conv"].data == 0].any()


def test_parameter_diffs_accumulate_until_cleared(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path)
    fill(net)
    net.forward_backward()
    once = net.params["conv"][0].diff.copy()
    net.forward_backward()
    np.testing.assert_allclose(net.params["conv"][0].diff, 2 * once, rtol=1e-6)
    net.clear_param_diffs()
    assert not net.params["conv"][0].diff.any()


def test_shapes_follow_a_reshaped_input(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path, "TEST")
    net.blobs["data"].reshape(5, 3, 8, 8)
    net.blobs["label"].reshape(5)
    fill(net)
    assert net.forward()["accuracy"].shape == ()
    assert net.blobs["fc"].shape == (5, 5)
    net.blobs["data"].reshape(5, 3, 9, 9)
    with pytest.raises(NetError, match="fc"):
        net.forward()


def test_shared_parameters_have_one_blob_and_the_sum_of_diffs(tmp_path: Path) -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" lr_mult: 3 } param { lr_mult: 0 }
      inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { lr_mult: 0 }
      inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
    layer { name: "r" type: "Reduction" bottom: "b" top: "r" loss_weight: 1 }
    """
    net = build(text, tmp_path)
    net.blobs["x"].data[...] = 1
    assert net.params["a"][0] is net.params["b"][0]
    assert [(learnable.layer_name, learnable.lr_mult) for learnable in net.learnable] == [("a", 3), ("a", 0), ("b", 0)]
    net.forward_backward()
    weight = torch.tensor(net.params["a"][0].data.copy(), requires_grad=True)
    (torch.ones(2, 3) @ weight.T @ weight.T).sum().backward()
    np.testing.assert_allclose(net.params["a"][0].diff, weight.grad, rtol=1e-5)


def test_shared_parameters_must_agree(tmp_path: Path) -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" lr_mult: 3 }
      inner_product_param { num_output: 3 } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" %s } inner_product_param { num_output: %d } }
    """
    with pytest.raises(NetError, match='shared param "w" has lr_mult 2 here and 3 in layer a'):
        build(text % ("lr_mult: 2", 3), tmp_path)
    with pytest.raises(NetError, match='cannot share param "w" owned by layer a'):
        build(text % ("", 4), tmp_path)


def test_permissive_sharing_keeps_the_shape(tmp_path: Path) -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
      inner_product_param { num_output: 2 bias_term: false weight_filler { type: "xavier" } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
      inner_product_param { num_output: 4 bias_term: false } }
    layer { name: "r" type: "Reduction" bottom: "b" top: "r" loss_weight: 1 }
    """
    net = build(text, tmp_path)
    net.blobs["x"].data[...] = 1
    assert net.params["b"][0].shape == (4, 2)
    net.forward_backward()
    weight = torch.tensor(net.params["a"][0].data.copy(), requires_grad=True)
    (torch.ones(2, 4) @ weight.T @ weight.reshape(4, 2).T).sum().backward()
    np.testing.assert_allclose(net.params["a"][0].diff, weight.grad, rtol=1e-5)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_weights_round_trip(suffix: str, tmp_path: Path) -> None:
    net, other = (build(CLASSIFIER, tmp_path) for _ in range(2))
    for blobs in other.params.values():
        for blob in blobs:
            blob.data[...] = 7
    path = tmp_path / f"weights{suffix}"
    net.save(path)
    report = other.copy_from(path)
    assert report.copied == ["conv", "fc"] and not report.missing and not report.unused
    for name, blobs in net.params.items():
        for ours, theirs in zip(blobs, other.params[name], strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    net = build(CLASSIFIER, tmp_path)
    path = tmp_path / "weights.caffemodel"
    net.save(path)
    wider = build(CLASSIFIER.replace("num_output: 5", "num_output: 6"), tmp_path)
    with pytest.raises(WeightError, match=r"fc/0: shape mismatch, the file has 5 144 \(720\), the net 6 144"):
        wider.copy_from(path)
    unbiased = build(CLASSIFIER.replace("num_output: 5", "num_output: 5 bias_term: false"), tmp_path)
    with pytest.raises(WeightError, match="fc: the file has 2 blobs for this layer, the net 1"):
        unbiased.copy_from(path)
    renamed = build(CLASSIFIER.replace('name: "conv"', 'name: "conv_new"').replace('name: "fc"', 'name: "fc_new"'), tmp_path)
    with pytest.raises(WeightError, match="no layer of the file is in the net.*conv, fc.*conv_new, fc_new"):
        renamed.copy_from(path)
    partly = build(CLASSIFIER.replace('name: "fc"', 'name: "fc_new"'), tmp_path)
    report = partly.copy_from(path)
    assert (report.copied, report.missing, report.unused) == (["conv"], ["fc_new"], ["fc"])


def test_weights_are_unchanged_after_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(CLASSIFIER, tmp_path)
    path = tmp_path / "weights.caffemodel"
    net.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CaffeError, match="weights.caffemodel: cannot be written: no space left on device"):
        net.save(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.prototxt", "weights.caffemodel"]


def test_same_seed_same_net(tmp_path: Path) -> None:
    first, second = (build(CLASSIFIER, tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first.params["conv"][0].data, second.params["conv"][0].data)
    assert first.params["conv"][0].data.std() > 0


@pytest.mark.gpu
def test_cuda_equals_cpu(tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    nets = [build(CLASSIFIER, tmp_path, device=device) for device in ("cpu", "cuda")]
    nets[1].copy_from(nets[0].to_document())
    for net in nets:
        fill(net)
        net.forward_backward()
    for name in nets[0].blobs:
        np.testing.assert_allclose(nets[1].blobs[name].data, nets[0].blobs[name].data, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(nets[1].blobs[name].diff, nets[0].blobs[name].diff, rtol=1e-4, atol=1e-5)
    assert proto.dump_text(nets[0].to_document().message) == proto.dump_text(nets[1].to_document().message)


NORMALIZED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "y" top: "y" }
layer { name: "scale" type: "Scale" bottom: "y" top: "y"
  scale_param { bias_term: true filler { type: "gaussian" mean: 1 std: 0.3 } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" reduction_param { operation: SUMSQ } loss_weight: 1 }
"""


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_batch_norm_and_scale_run_as_one_where_nobody_looks_between(phase: str, tmp_path: Path) -> None:
    nets = [build(NORMALIZED, tmp_path, phase, keep_blobs=keep_blobs) for keep_blobs in (True, ["y"])]
    assert nets[0].layer_dict["bn"].scale is None and nets[1].layer_dict["bn"].scale is nets[1].layer_dict["scale"]
    for net in nets:
        net.params["bn"][2].data[...] = 1
        net.params["bn"][1].data[...] = 2
        net.blobs["x"].data[...] = np.random.default_rng(0).standard_normal((4, 3, 6, 6))
        net.forward_backward()
    np.testing.assert_allclose(nets[1].blobs["y"].data, nets[0].blobs["y"].data, rtol=1e-5, atol=1e-6)
    for name, blobs in nets[0].params.items():
        for apart, fused in zip(blobs, nets[1].params[name], strict=True):
            np.testing.assert_allclose(fused.data, apart.data, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(fused.diff, apart.diff, rtol=1e-4, atol=1e-3)


RESIDUAL = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 7 } } }
layer { name: "conv1" type: "Convolution" bottom: "x" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "conv3" type: "Convolution" bottom: "conv1" top: "conv3"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "conv2" bottom: "conv3" bottom: "conv1" top: "sum"
  eltwise_param { coeff: 1 coeff: -0.5 coeff: 2 } }
layer { name: "relu2" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "conv4" type: "Convolution" bottom: "sum" top: "conv4"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "pair" type: "Eltwise" bottom: "sum" bottom: "conv4" top: "pair" }
layer { name: "loss" type: "Reduction" bottom: "pair" top: "loss" reduction_param { operation: SUMSQ } loss_weight: 1 }
"""


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("text", [NORMALIZED, RESIDUAL], ids=["normalized", "residual"])
def test_what_blobs_are_kept_changes_no_result(text: str, phase: str, tmp_path: Path) -> None:
    whole, outputs_alone = (build(text, tmp_path, phase, keep_blobs=keep_blobs) for keep_blobs in (True, False))
    for net in (whole, outputs_alone):
        net.blobs["x"].data[...] = np.random.default_rng(0).standard_normal(net.blobs["x"].shape)
        for _ in range(2):
            net.clear_param_diffs()
            net.forward_backward()
    np.testing.assert_allclose(outputs_alone.blobs["loss"].data, whole.blobs["loss"].data, rtol=1e-5)
    for name, blobs in whole.params.items():
        for theirs, ours in zip(blobs, outputs_alone.params[name], strict=True):
            np.testing.assert_allclose(ours.diff, theirs.diff, rtol=1e-4, atol=1e-4)


def test_a_blob_that_is_not_kept_says_so(tmp_path: Path) -> None:
    net = build(RESIDUAL, tmp_path, "TEST", keep_blobs=["conv3"])
    held = net.blobs["conv2"].data
    net.blobs["x"].data[...] = 1
    net.forward()
    assert net.blobs["conv3"].data.any() and net.blobs["loss"].data.shape == ()
    assert net.blobs["conv2"].shape == (2, 4, 7, 7) and net.blobs["conv2"].count == 392
    assert not held.any()  # an array from before the pass is left as it was
    with pytest.raises(NetError, match="2 4 7 7.*keep_blobs"):
        _ = net.blobs["conv2"].data
    with pytest.raises(NetError, match=r'sum \(.*"conv2".*keep_blobs'):
        net.forward(start="sum")
    with pytest.raises(NetError, match='no blob "conv"'):
        build(RESIDUAL, tmp_path, "TEST", keep_blobs=["conv"])


def test_blobs_that_are_not_kept_follow_new_shapes(tmp_path: Path) -> None:
    net = build(RESIDUAL, tmp_path, "TEST", keep_blobs=False)
    net.forward()
    net.blobs["x"].reshape(1, 3, 5, 6)
    net.reshape()
    assert net.blobs["conv2"].shape == (1, 4, 5, 6)
    net.forward()
    assert net.blobs["pair"].shape == (1, 4, 5, 6)
