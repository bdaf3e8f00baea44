"""The SSD fork's layers against plain renderings of what they compute, a box at a time.

Types: "Permute", "Normalize", "PriorBox", "DetectionOutput".
"""

from __future__ import annotations

from itertools import permutations
from math import exp, sqrt

import numpy as np
import pytest
import torch
from building import make, randn, refill
from nets import one_layer, run, values

from caffe_compat import proto
from caffe_compat.errors import NetError
from caffe_compat.net import Net

# -- Permute and Normalize --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*permutations(range(4)), (2,), (3, 1), ()])
def test_permute(order):
    """Axes that are not named follow in their own order."""
    x = values(2, 3, 4, 5)
    settings = " ".join(f"order: {axis}" for axis in order)
    net = one_layer(f'type: "Permute" top: "y" permute_param {{ {settings} }}', x.shape)
    full = [*order, *(axis for axis in range(4) if axis not in order)]
    y = run(net, x)
    np.testing.assert_array_equal(y, x.transpose(full))
    net.blobs["y"].diff[...] = y
    net.backward()
    np.testing.assert_array_equal(net.blobs["b0"].diff, x)


@pytest.mark.parametrize("across", ["true", "false"])
@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (2, 3, 5)])
def test_normalize(across, shared, shape):
    x = values(*shape)
    x[0] = 0  # eps decides
    settings = f"across_spatial: {across} channel_shared: {shared} eps: 1e-4"
    net = one_layer(f'type: "Normalize" top: "y" norm_param {{ {settings} }}', shape)
    (scale,) = net.params["layer"]
    assert scale.shape == (() if shared == "true" else (3,)) and (scale.data == 1).all()
    scale.data[...] = 2 if shared == "true" else [1, 2, -3]
    axes = tuple(range(1, len(shape))) if across == "true" else 1
    norm = np.sqrt((x.astype(np.float64) ** 2).sum(axes, keepdims=True) + 1e-4)
    factors = scale.data.reshape(-1, *[1] * (len(shape) - 2)) if scale.shape else scale.data
    np.testing.assert_allclose(run(net, x), x / norm * factors, rtol=1e-5)


def test_normalize_fills_its_scale():
    settings = 'scale_filler { type: "constant" value: 20 }'
    net = one_layer(f'type: "Normalize" top: "y" norm_param {{ {settings} }}', (1, 2, 3, 3))
    assert net.params["layer"][0].data == 20


@pytest.mark.parametrize("settings", ["", "across_spatial: false", "channel_shared: false",
                                      "across_spatial: false channel_shared: false"])
def test_gradient_of_normalize(settings):
    layer = make("Normalize", (2, 3, 2, 2), param=f"norm_param {{ {settings} eps: 0.1 }}")
    (scale,) = refill(layer)

    def forward(x, weight):
        layer.blobs[0].tensor = weight
        return layer.forward(x)

    assert torch.autograd.gradcheck(forward, (randn(2, 3, 2, 2, seed=5), scale))


def test_normalize_without_settings():
    """A net without a field of the fork is read as BVLC's; the type's defaults are the fork's all the same."""
    net = one_layer('type: "Normalize" top: "y"', (1, 2, 2, 2))
    assert net.dialect is proto.BVLC and net.layer_dict["layer"].param.across_spatial


# -- PriorBox ---------------------------------------------------------------------------------------------------------


def prior_box(settings: str, feature=(1, 8, 3, 2), image=(1, 3, 90, 80)) -> np.ndarray:
    """Boxes and variances, (2, rows, columns, boxes a cell, 4)."""
    net = one_layer(f'type: "PriorBox" top: "y" prior_box_param {{ {settings} }}', feature, image, phase="TEST")
    y = run(net)
    assert y.shape[:2] == (1, 2)
    return y.reshape(2, *feature[2:], -1, 4)


def cell_boxes(cx, cy, sizes, height, width):
    boxes = np.array([(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for w, h in sizes])
    return boxes / (width, height, width, height)


def test_priors_of_a_cell():
    """Smallest, middle, then a box and its inverse for each ratio; for one min_size after the other."""
    y = prior_box("min_size: 30 min_size: 10.7 max_size: 60 max_size: 40 aspect_ratio: 2 aspect_ratio: 1 "
                  "aspect_ratio: 2 aspect_ratio: 3 variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4")
    sizes = []
    for low, high in ((30, 60), (10, 40)):
        sizes += [(low, low), (sqrt(low * high),) * 2]
        sizes += [(low * sqrt(r), low / sqrt(r)) for r in (2, 1 / 2, 3, 1 / 3)]
    assert y.shape == (2, 3, 2, 12, 4)
    for row in range(3):
        for column in range(2):
            expected = cell_boxes((column + 0.5) * 40, (row + 0.5) * 30, sizes, 90, 80)
            np.testing.assert_allclose(y[0, row, column], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[1], np.broadcast_to(np.float32([0.1, 0.2, 0.3, 0.4]), y[1].shape))


def test_priors_step_offset_clip_and_flip():
    y = prior_box("min_size: 50 aspect_ratio: 4 flip: false clip: true step: 16 offset: 0.25 img_h: 100 img_w: 60 "
                  "variance: 0.5")
    sizes = [(50, 50), (100, 25)]
    for row in range(3):
        for column in range(2):
            expected = np.clip(cell_boxes((column + 0.25) * 16, (row + 0.25) * 16, sizes, 100, 60), 0, 1)
            np.testing.assert_allclose(y[0, row, column], expected, rtol=1e-5, atol=1e-6)
    assert (y[1] == 0.5).all()


def test_priors_of_a_square_image_and_two_steps():
    y = prior_box("min_size: 8 img_size: 64 step_h: 20 step_w: 10")
    np.testing.assert_allclose(y[0, 2, 1, 0], np.array([15 - 4, 50 - 4, 15 + 4, 50 + 4]) / 64)
    assert (y[1] == np.float32(0.1)).all()


def test_priors_with_the_image_size_given_need_no_image():
    net = one_layer('type: "PriorBox" top: "y" prior_box_param { min_size: 8 img_size: 64 }', (1, 8, 2, 2))
    first = run(net)
    net.blobs["y"].data[...] = 7  # what the user writes is gone with the next pass
    np.testing.assert_array_equal(run(net), first)


# -- DetectionOutput --------------------------------------------------------------------------------------------------


def overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    return width * height / (area(a) + area(b) - width * height)


def decode(code, prior, variance, kind, in_target):
    c = [v if in_target else v * s for v, s in zip(code, variance)]
    w, h = prior[2] - prior[0], prior[3] - prior[1]
    if kind == "CORNER":
        return [p + v for p, v in zip(prior, c)]
    if kind == "CORNER_SIZE":
        return [p + v * size for p, v, size in zip(prior, c, (w, h, w, h))]
    cx, cy = c[0] * w + (prior[0] + prior[2]) / 2, c[1] * h + (prior[1] + prior[3]) / 2
    w, h = exp(c[2]) * w, exp(c[3]) * h
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def suppress(boxes, scores, threshold, eta, lowest, top_k):
    order = sorted((i for i in range(len(scores)) if scores[i] > lowest), key=lambda i: -scores[i])
    kept = []
    for i in order[:top_k]:
        if all(overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
            if eta < 1 and threshold > 0.5:
                threshold *= eta
    return kept


def detections(loc, conf, prior, *, classes, shared=True, background=0, kind="CORNER", in_target=False, threshold=0.3,
               eta=1.0, top_k=None, keep=-1, lowest=-np.inf):
    """The rows of the top, by loops over images, classes and boxes."""
    priors = prior.shape[2] // 4
    boxes, variances = prior.reshape(2, priors, 4).astype(np.float64)
    loc, conf = loc.reshape(len(loc), priors, -1, 4).astype(np.float64), conf.reshape(len(conf), priors, classes)
    rows = []
    for image in range(len(loc)):
        found = []
        for label in range(classes):
            if label == background:
                continue
            decoded = [decode(loc[image, p, 0 if shared else label], boxes[p], variances[p], kind, in_target)
                       for p in range(priors)]
            scores = conf[image, :, label]
            found += [(image, label, scores[p], *decoded[p])
                      for p in suppress(decoded, scores, threshold, eta, lowest, top_k)]
        if keep > -1:
            best = sorted(found, key=lambda row: -row[2])[:keep]
            found = [row for row in found if row in best]
        rows += found
    return rows or [(image, *[-1] * 6) for image in range(len(loc))]


def inputs(images: int, priors: int, classes: int, sets: int, seed: int = 0):
    """Priors in a cloud, so that many overlap, with scores that all differ."""
    random = np.random.RandomState(seed)
    low = random.uniform(0, 0.5, (priors, 2))
    boxes = np.concatenate((low, low + random.uniform(0.2, 0.5, (priors, 2))), 1)
    prior = np.stack((boxes.ravel(), random.uniform(0.05, 0.3, priors * 4)))[None].astype(np.float32)
    loc = random.uniform(-1, 1, (images, priors * sets * 4)).astype(np.float32)
    conf = random.permutation(images * priors * classes).reshape(images, -1).astype(np.float32)
    return loc, conf / conf.max(), prior


def detect(settings: str, loc, conf, prior) -> np.ndarray:
    text = f'type: "DetectionOutput" top: "y" detection_output_param {{ {settings} }}'
    return run(one_layer(text, loc.shape, conf.shape, prior.shape, phase="TEST"), loc, conf, prior)


CASES = {
    "num_classes: 3": dict(),
    "num_classes: 3 background_label_id: -1": dict(background=-1),
    "num_classes: 3 background_label_id: 2 share_location: false": dict(background=2, shared=False),
    "num_classes: 3 code_type: CENTER_SIZE nms_param { nms_threshold: 0.45 top_k: 9 }":
        dict(kind="CENTER_SIZE", threshold=0.45, top_k=9),
    "num_classes: 3 code_type: CENTER_SIZE variance_encoded_in_target: true":
        dict(kind="CENTER_SIZE", in_target=True),
    "num_classes: 3 code_type: CORNER_SIZE confidence_threshold: 0.6": dict(kind="CORNER_SIZE", lowest=np.float32(0.6)),
    "num_classes: 3 code_type: CORNER variance_encoded_in_target: true keep_top_k: 5": dict(in_target=True, keep=5),
    "num_classes: 3 share_location: false nms_param { nms_threshold: 0.9 eta: 0.9 } keep_top_k: 12":
        dict(shared=False, threshold=0.9, eta=0.9, keep=12),
    "num_classes: 3 nms_param { nms_threshold: 0 }": dict(threshold=0),
    "num_classes: 3 confidence_threshold: 2": dict(lowest=2),
    "num_classes: 3 keep_top_k: 0": dict(keep=0),
    "num_classes: 3 nms_param { top_k: 0 }": dict(top_k=0),
    "num_classes: 1": dict(classes=1),
}


@pytest.mark.parametrize("settings", CASES)
def test_detections(settings):
    case = {"classes": 3} | CASES[settings]
    loc, conf, prior = inputs(2, 40, case["classes"], 1 if case.get("shared", True) else 3)
    expected = np.array(detections(loc, conf, prior, **case), np.float64)
    y = detect(settings, loc, conf, prior)
    assert y.shape == (1, 1, len(expected), 7)
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_the_cases_reject_and_keep():
    """The comparison above is worth something: overlapping boxes go, others stay, and eta changes which."""
    loc, conf, prior = inputs(2, 40, 3, 1)
    assert 40 < len(detections(loc, conf, prior, classes=3)) < 120  # of 2 x 2 x 40
    loc, conf, prior = inputs(2, 40, 3, 3)
    case = dict(classes=3, shared=False, threshold=0.9)
    assert len(detections(loc, conf, prior, eta=0.9, **case)) < len(detections(loc, conf, prior, **case))


def test_two_boxes_by_hand():
    """Of two boxes that share two thirds, the better stays; the third is elsewhere."""
    boxes = [[0, 0, 0.5, 0.5], [0.1, 0, 0.6, 0.5], [0.7, 0.7, 0.9, 0.9]]
    prior = np.array([boxes, np.ones((3, 4))], np.float32).reshape(1, 2, 12)
    conf = np.array([[0, 0.6, 0, 0.8, 0, 0.1]], np.float32)
    y = detect("num_classes: 2", np.zeros((1, 12), np.float32), conf, prior)
    np.testing.assert_allclose(y[0, 0], [[0, 1, 0.8, *boxes[1]], [0, 1, 0.1, *boxes[2]]], rtol=1e-6)
    y = detect("num_classes: 2 nms_param { nms_threshold: 0.67 }", np.zeros((1, 12), np.float32), conf, prior)
    np.testing.assert_allclose(y[0, 0, :, 2], [0.8, 0.6, 0.1])


def test_ties_go_to_the_earlier_prior():
    prior = np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), 4).reshape(1, 2, 8)
    loc = np.float32([[0, 0, 0, 0, 1, 1, 1, 1]])
    y = detect("num_classes: 2 variance_encoded_in_target: true nms_param { top_k: 1 }", loc,
               np.float32([[0, 0.5, 0, 0.5]]), prior)
    np.testing.assert_allclose(y[0, 0], [[0, 1, 0.5, 0.1, 0.1, 0.2, 0.2]], rtol=1e-6)


def test_a_score_that_is_no_number_is_no_detection():
    loc, conf, prior = inputs(1, 4, 2, 1)
    conf[...] = np.nan
    np.testing.assert_array_equal(detect("num_classes: 2", loc, conf, prior)[0, 0], [[0, *[-1] * 6]])


def test_a_small_detector():
    """Heads as in the fork's nets: Permute, Flatten and Concat over two feature maps, softmax over the classes."""
    heads = ""
    for name, size in (("a", 4), ("b", 2)):
        heads += f"""
        layer {{ name: "{name}" type: "Pooling" bottom: "image" top: "{name}"
          pooling_param {{ pool: AVE kernel_size: {16 // size} stride: {16 // size} }} }}
        layer {{ name: "{name}_prior" type: "PriorBox" bottom: "{name}" bottom: "image" top: "{name}_prior"
          prior_box_param {{ min_size: 6 aspect_ratio: 2 variance: [0.1, 0.1, 0.2, 0.2] }} }}"""
        for head, count in (("loc", 3 * 4), ("conf", 3 * 4)):
            heads += f"""
        layer {{ name: "{name}_{head}" type: "Convolution" bottom: "{name}" top: "{name}_{head}"
          convolution_param {{ num_output: {count} kernel_size: 1 weight_filler {{ type: "gaussian" std: 1 }} }} }}
        layer {{ name: "{name}_{head}_perm" type: "Permute" bottom: "{name}_{head}" top: "{name}_{head}_perm"
          permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
        layer {{ name: "{name}_{head}_flat" type: "Flatten" bottom: "{name}_{head}_perm" top: "{name}_{head}_flat"
          flatten_param {{ axis: 1 }} }}"""
    joins = "".join(f"""
        layer {{ name: "{top}" type: "Concat" bottom: "a_{end}" bottom: "b_{end}" top: "{top}"
          concat_param {{ axis: {axis} }} }}"""
                    for top, end, axis in (("loc", "loc_flat", 1), ("conf", "conf_flat", 1), ("prior", "prior", 2)))
    settings = "num_classes: 4 code_type: CENTER_SIZE keep_top_k: 20 confidence_threshold: 0.01"
    text = f"""
        layer {{ name: "in" type: "Input" top: "image" input_param {{ shape {{ dim: 2 dim: 3 dim: 16 dim: 16 }} }} }}
        {heads}{joins}
        layer {{ name: "by_prior" type: "Reshape" bottom: "conf" top: "by_prior"
          reshape_param {{ shape {{ dim: 0 dim: -1 dim: 4 }} }} }}
        layer {{ name: "softmax" type: "Softmax" bottom: "by_prior" top: "softmax" softmax_param {{ axis: 2 }} }}
        layer {{ name: "flat" type: "Flatten" bottom: "softmax" top: "flat" }}
        layer {{ name: "out" type: "DetectionOutput" bottom: "loc" bottom: "flat" bottom: "prior" top: "out"
          detection_output_param {{ {settings} }} }}"""
    net = Net(proto.parse_text(text, "NetParameter"), "TEST", seed=1)
    assert net.dialect is proto.SSD
    net.blobs["image"].data[...] = values(2, 3, 16, 16)
    top = net.forward()["out"]
    loc, flat, prior = (net.blobs[name].data for name in ("loc", "flat", "prior"))
    assert prior.shape == (1, 2, (16 + 4) * 3 * 4)
    expected = detections(loc, flat, prior, classes=4, kind="CENTER_SIZE", keep=20, lowest=np.float32(0.01))
    assert len(expected) == 40 and net.blobs["out"].shape == (1, 1, 40, 7)
    np.testing.assert_allclose(top[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", CASES)
def test_detections_on_a_gpu(settings):
    case = {"classes": 3} | CASES[settings]
    bottoms = [torch.from_numpy(x) for x in inputs(2, 40, case["classes"], 1 if case.get("shared", True) else 3)]
    layer = make("DetectionOutput", *(x.shape for x in bottoms), param=f"detection_output_param {{ {settings} }}")
    on_gpu = layer.forward(*(x.cuda() for x in bottoms))
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), layer.forward(*bottoms))


# -- what cannot be ---------------------------------------------------------------------------------------------------

WRONG = [
    ('"Permute" top: "y" permute_param { order: 4 }', [(1, 2, 3, 4)], "axes from 0 to 3"),
    ('"Permute" top: "y" permute_param { order: 1 order: 1 }', [(1, 2)], "none of them twice"),
    ('"Permute" top: "b0" permute_param { order: 1 }', [(2, 2)], "cannot work in place"),
    ('"Normalize" top: "y"', [(4,)], "2 to 4 axes"),
    ('"Normalize" top: "y"', [(4, 2, 2, 2, 2)], "2 to 4 axes"),
    ('"PriorBox" top: "y"', [(1, 2, 3, 3), (1, 3, 9, 9)], "min_size has one or more"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 0 }', [(1, 2, 3, 3), (1, 3, 9, 9)], "min_size has one or more"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 max_size: 5 }', [(1, 2, 3, 3), (1, 3, 9, 9)], "max_size"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 max_size: 6 max_size: 7 }', [(1, 2, 3, 3), (1, 3, 9, 9)],
     "max_size"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 variance: 1 variance: 1 }', [(1, 2, 3, 3), (1, 3, 9, 9)],
     "1 or 4 values"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 aspect_ratio: 0 }', [(1, 2, 3, 3), (1, 3, 9, 9)],
     "aspect_ratio"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 img_size: 9 img_h: 9 img_w: 9 }', [(1, 2, 3, 3)],
     "set img_size, or img_h and img_w"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 img_h: 9 }', [(1, 2, 3, 3)], "found img_h 9"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 img_size: 9 step: 0 }', [(1, 2, 3, 3)], "found step 0"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 }', [(1, 2, 3, 3)], "give the image as a second bottom"),
    ('"PriorBox" top: "y" prior_box_param { min_size: 5 }', [(1, 2, 3), (1, 3, 9, 9)], "4 axes"),
    ('"DetectionOutput" top: "y"', [(1, 8), (1, 4), (1, 2, 8)], "num_classes is missing"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 nms_param { nms_threshold: -1 } }',
     [(1, 8), (1, 4), (1, 2, 8)], "must not be negative"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 nms_param { eta: 0 } }',
     [(1, 8), (1, 4), (1, 2, 8)], r"eta lies in \(0, 1\]"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(1, 8), (1, 4), (1, 2, 9)], "1, 2, 4 P"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(1, 8), (1, 4), (1, 8)], "1, 2, 4 P"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(2, 8), (1, 4), (1, 2, 8)], "2 images"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(1, 16), (1, 4), (1, 2, 8)],
     "16 locations an image, expected 8"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(1, 8), (1, 6), (1, 2, 8)],
     "6 confidences an image, expected 4"),
    ('"DetectionOutput" top: "y" detection_output_param { num_classes: 2 }', [(1, 8), (1, 4)], "3 to 4 bottom"),
]


@pytest.mark.parametrize("text, shapes, message", WRONG, ids=[f"{row[0].split()[0]}-{row[2]}" for row in WRONG])
def test_refused(text, shapes, message):
    with pytest.raises(NetError, match=message) as error:
        one_layer(f"type: {text}", *shapes)
    assert error.value.layer == "layer"


@pytest.mark.parametrize("kind", ["CENTER_SIZE", "CORNER_SIZE"])
def test_an_empty_prior_is_refused(kind):
    loc, conf, prior = inputs(1, 3, 2, 1)
    prior[0, 0, 6] = prior[0, 0, 4]
    with pytest.raises(NetError, match="a prior box is empty"):
        detect(f"num_classes: 2 code_type: {kind}", loc, conf, prior)


def test_changed_shapes_are_refused():
    layer = make("Permute", (1, 2, 3), param="permute_param { order: 2 }")
    with pytest.raises(NetError, match="set up for 3 axes"):
        layer.reshape([(1, 2, 3, 4)])
    layer = make("Normalize", (1, 2, 3, 3), param="norm_param { channel_shared: false }")
    with pytest.raises(NetError, match="the scale is for 2 channels"):
        layer.reshape([(1, 4, 3, 3)])


def test_files_of_detections_are_not_written_but_said_to_be_missing(caplog, tmp_path):
    settings = f'num_classes: 2 save_output_param {{ output_directory: "{tmp_path}/out" }}'
    with caplog.at_level("WARNING", "caffe_compat"):
        detect(settings, *inputs(1, 3, 2, 1))
    assert "not supported" in caplog.text and not list(tmp_path.iterdir())
