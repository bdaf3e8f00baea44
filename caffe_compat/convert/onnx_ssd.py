"""ONNX operators for SSD's layers: prior boxes as constants, detections by the standard NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from .graph import Node
from .onnx_writer import ONNX, Writer
from .targets import UnsupportedLayer, limited

LOWEST = float(np.finfo(np.float32).min)


@ONNX.add("PriorBox")
def prior_box(node: Node, out: Writer) -> None:
    """A constant: the boxes follow from the sizes alone."""
    for value in node.inputs:
        out.fixed(value, 2, 3)
    layer = node.layer
    layer.reshape(node.in_shapes)
    out.op("Identity", [out.constant(layer._priors.cpu().numpy())], node.outputs)


@ONNX.add("DetectionOutput")
@limited("eta 1")
def detection_output(node: Node, out: Writer) -> None:
    """The best boxes of each class by TopK, NonMaxSuppression, the best of an image by TopK, the rows by NonZero.

    Classes take the place of images where NonMaxSuppression is concerned: each has candidates of its own.
    """
    p, layer = node.param, node.layer
    if p.nms_param.eta < 1:
        raise UnsupportedLayer(node, "ONNX", "its nms_param.eta lowers the threshold from box to box, which "
                               "NonMaxSuppression does not; set eta to 1")
    if p.nms_param.nms_threshold > 1:
        raise UnsupportedLayer(node, "ONNX", "its nms_threshold is above 1, which no overlap is")
    for value in node.inputs[:3]:
        out.fixed(value, 1, 2, 3)
    priors, labels = node.in_shapes[2][2] // 4, layer._labels
    sets = 1 if p.share_location else p.num_classes
    code = out.op("Reshape", [node.inputs[0], out.ints(-1, priors, sets, 4)])
    boxes = out.op("Transpose", [_decode(node, out, code, priors), ], perm=[0, 2, 1, 3])  # image, set, prior, corner
    scores = out.op("Reshape", [node.inputs[1], out.ints(-1, priors, p.num_classes)])
    scores = out.op("Gather", [out.op("Transpose", [scores], perm=[0, 2, 1]), out.ints(*labels)], axis=1)
    if p.share_location:
        boxes = out.op("Expand", [boxes, out.ints(1, len(labels), priors, 4)])
    else:
        boxes = out.op("Gather", [boxes, out.ints(*labels)], axis=1)
    nms = p.nms_param
    count = min(nms.top_k, priors) if nms.HasField("top_k") and nms.top_k > -1 else priors
    total = len(labels) * count  # candidates of an image
    boxes = out.op("Reshape", [boxes, out.ints(-1, priors, 4)])  # a row for each class of each image
    scores = out.op("Reshape", [scores, out.ints(-1, priors)])
    best, order = out.name("best"), out.name("order")
    out.op("TopK", [scores, out.ints(count)], [best, order], axis=1)
    boxes = out.op("GatherElements", [boxes, out.op("Tile", [out.op("Unsqueeze", [order, out.ints(2)]), out.ints(1, 1, 4)])],
                   axis=1)
    low, high = _halves(out, boxes, 2)
    # to Caffe a box whose corners are swapped is empty, NonMaxSuppression would swap them back
    solid = out.op("Concat", [low, out.op("Max", [low, high])], axis=2)
    chosen = out.op("NonMaxSuppression", [
        solid, out.op("Unsqueeze", [best, out.ints(1)]), out.ints(count), out.constant([nms.nms_threshold]),
        out.constant([p.confidence_threshold if p.HasField("confidence_threshold") else LOWEST])])
    kept = _marks(out, chosen, best)
    best, kept = (out.op("Reshape", [value, out.ints(-1, total)]) for value in (best, kept))
    if 0 <= p.keep_top_k < total:
        kept = _best(out, best, kept, p.keep_top_k)
    _rows(node, out, kept, best, out.op("Reshape", [boxes, out.ints(-1, total, 4)]), (labels, count))


def _decode(node: Node, out: Writer, code: str, priors: int) -> str:
    """The boxes (image, prior, set, corner) that `code`, shaped so, stands for."""
    p = node.param
    both = out.op("Reshape", [node.inputs[2], out.ints(2, priors, 1, 4)])
    prior, variance = out.name("prior"), out.name("variance")
    out.op("Split", [both, out.ints(1, 1)], [prior, variance], axis=0)
    if not p.variance_encoded_in_target:
        code = out.op("Mul", [code, variance])
    if node.layer._code == "CORNER":
        return out.op("Add", [prior, code])
    low, high = _halves(out, prior)
    size = out.op("Sub", [high, low])
    if node.layer._code == "CORNER_SIZE":
        return out.op("Add", [prior, out.op("Mul", [code, out.op("Concat", [size, size], axis=3)])])
    shift, stretch = _halves(out, code)
    middle = out.op("Div", [out.op("Add", [low, high]), out.constant(2)])
    centre = out.op("Add", [out.op("Mul", [shift, size]), middle])
    half = out.op("Div", [out.op("Mul", [out.op("Exp", [stretch]), size]), out.constant(2)])
    return out.op("Concat", [out.op("Sub", [centre, half]), out.op("Add", [centre, half])], axis=3)


def _halves(out: Writer, value: str, axis: int = 3) -> tuple[str, str]:
    """The first two and the last two of four corners or sizes."""
    parts = out.name("low"), out.name("high")
    out.op("Split", [value, out.ints(2, 2)], parts, axis=axis)
    return parts


def _zeros(out: Writer, like: str) -> str:
    return out.op("ConstantOfShape", [out.op("Shape", [like])])


def _marks(out: Writer, chosen: str, scores: str) -> str:
    """Which boxes NonMaxSuppression has chosen, as bool shaped as `scores`, from its list of (row, class 0, box)."""
    places = out.op("Gather", [chosen, out.ints(0, 2)], axis=1)
    ones = out.op("Expand", [out.constant(1), out.op("Shape", [chosen], start=0, end=1)])
    return out.op("Cast", [out.op("ScatterND", [_zeros(out, scores), places, ones])], to=9)


def _best(out: Writer, scores: str, kept: str, limit: int) -> str:
    """Of what is kept, what is among the `limit` best of an image."""
    # what is not kept counts as lowest; if such are among the best they are taken out again
    _, places = tops = out.name("scores"), out.name("places")
    out.op("TopK", [out.op("Where", [kept, scores, out.constant(-np.inf)]), out.ints(limit)], tops, axis=1)
    ones = out.op("Expand", [out.constant(1), out.op("Shape", [places])])
    among = out.op("ScatterElements", [_zeros(out, scores), places, ones], axis=1)
    return out.op("And", [kept, out.op("Cast", [among], to=9)])


def _rows(node: Node, out: Writer, kept: str, scores: str, boxes: str, classes: tuple[list[int], int]) -> None:
    """The top: a row for each of what is kept, in order; without any, one of -1 for each image."""
    labels, count = classes
    places = out.op("Transpose", [out.op("NonZero", [kept])], perm=[1, 0])  # image, position
    image, position = out.name("image"), out.name("position")
    out.op("Split", [places, out.ints(1, 1)], [image, position], axis=1)
    label = out.op("Gather", [out.constant(labels), out.op("Div", [position, out.ints(count)])])
    score = out.op("Unsqueeze", [out.op("GatherND", [scores, places]), out.ints(1)])
    box = out.op("GatherND", [boxes, places])
    found = out.op("Concat", [out.op("Cast", [image], to=1), label, score, box], axis=1)
    # as many of the rows for images without detections as there are images, or none
    none = out.op("Cast", [out.op("Equal", [out.op("Shape", [places], start=0, end=1), out.ints(0)])], to=7)
    images = out.op("Mul", [out.op("Shape", [kept], start=0, end=1), none])
    numbers = out.op("Range", [out.constant(0, np.int64), out.op("Squeeze", [images, out.ints(0)]), out.constant(1, np.int64)])
    numbers = out.op("Unsqueeze", [out.op("Cast", [numbers], to=1), out.ints(1)])
    empty = out.op("Concat", [numbers, *[out.op("Sub", [out.op("Mul", [numbers, out.constant(0)]), out.constant(1)])] * 6],
                   axis=1)
    out.op("Unsqueeze", [out.op("Concat", [found, empty], axis=0), out.ints(0, 1)], node.outputs)
