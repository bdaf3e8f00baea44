"""Single-shot detection (the SSD fork's priors and detections), and what no torch module can be, for the torch target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..proto import enum_name
from .graph import Node
from .targets import Unsupported
from .torch_module import TORCH, Module, module

TORCH.add("Python")(Unsupported("what it computes is code of the user's, which can be called from torch as it is"))


@TORCH.add("PriorBox")
def prior_box(node: Node) -> Module:
    p, layer = node.param, node.layer
    sizes = tuple(tuple(row) for row in layer._box_sizes().tolist())
    variance = tuple(p.variance) or (0.1,)
    return module(PriorBox, sizes, variance * (4 // len(variance)), p.offset, p.clip, layer._image, layer._step)


class PriorBox(nn.Module):
    """Prior boxes around the cells of a feature map, (1, 2, 4 P): boxes as shares of the image's size, then variances.

    `sizes` are the (width, height) in pixels of a cell's boxes; `image` and `step` are (height, width) of the image and
    of a cell, or taken from the second input, the image.
    """

    def __init__(self, sizes: tuple[tuple[float, float], ...], variance: tuple[float, ...], offset: float, clip: bool,
                 image: tuple[float, float] | None, step: tuple[float, float] | None) -> None:
        super().__init__()
        self.sizes, self.variance, self.offset, self.clip = sizes, variance, offset, clip
        self.image, self.step = image, step

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        height, width = self.image or image.shape[2:]
        rows, columns = features.shape[2:]
        step_y, step_x = self.step or (height / rows, width / columns)
        double = {"dtype": torch.float64, "device": features.device}
        y = ((torch.arange(rows, **double) + self.offset) * step_y).reshape(-1, 1, 1).expand(-1, columns, 1)
        x = ((torch.arange(columns, **double) + self.offset) * step_x).reshape(1, -1, 1).expand(rows, -1, 1)
        half = torch.tensor(self.sizes, **double) / 2
        corners = ((x - half[:, 0]) / width, (y - half[:, 1]) / height, (x + half[:, 0]) / width, (y + half[:, 1]) / height)
        boxes = torch.stack(corners, -1)
        boxes = (boxes.clamp(0, 1) if self.clip else boxes).flatten()
        variance = torch.tensor(self.variance, **double).repeat(boxes.shape[0] // 4)
        return torch.stack((boxes, variance))[None].to(features.dtype)


@TORCH.add("DetectionOutput")
def detection_output(node: Node) -> Module:
    p, nms = node.param, node.param.nms_param
    labels = tuple(label for label in range(p.num_classes) if label != p.background_label_id)
    options = {
        "code": enum_name(p, "code_type"), "encoded_variance": p.variance_encoded_in_target,
        "confidence": p.confidence_threshold if p.HasField("confidence_threshold") else None,
        "overlap": nms.nms_threshold, "eta": nms.eta,
        "candidates": nms.top_k if nms.HasField("top_k") and nms.top_k > -1 else None,
        "keep": p.keep_top_k if p.keep_top_k >= 0 else None,
    }
    return module(DetectionOutput, labels, p.num_classes, p.share_location, **options)


class DetectionOutput(nn.Module):
    """Boxes decoded from predictions and priors, without those that overlap a better one of their class.

    Returns (1, 1, D, 7): image, label, confidence, xmin, ymin, xmax, ymax, by image, label and falling confidence;
    without any detection (1, 1, images, 7) with -1 beside the image's number.
    """

    def __init__(self, labels: tuple[int, ...], classes: int, shared: bool, code: str, encoded_variance: bool,
                 confidence: float | None, overlap: float, eta: float, candidates: int | None, keep: int | None) -> None:
        super().__init__()
        self.labels, self.classes, self.shared, self.code = labels, classes, shared, code
        self.encoded_variance, self.confidence, self.overlap = encoded_variance, confidence, overlap
        self.eta, self.candidates, self.keep = eta, candidates, keep

    def forward(self, location: Tensor, confidence: Tensor, prior: Tensor, *_: Tensor) -> Tensor:
        boxes, variance = prior[0].reshape(2, -1, 1, 4)
        decoded = self.decode(location.reshape(len(location), len(boxes), -1, 4), boxes, variance)
        confidence = confidence.reshape(len(location), len(boxes), self.classes)
        rows = []
        for image in range(len(location)):
            found = [self.select(confidence[image, :, label], decoded[image, :, 0 if self.shared else label], label)
                     for label in self.labels]
            found = torch.cat(found) if found else location.new_zeros(0, 6)
            if self.keep is not None:
                best = found[:, 1].argsort(descending=True, stable=True)[:self.keep]
                found = found[best.sort().values]
            rows.append(torch.cat((torch.full_like(found[:, :1], image), found), 1))
        top = torch.cat(rows)
        if not len(top):
            top = location.new_full((len(location), 7), -1)
            top[:, 0] = torch.arange(len(location))
        return top[None, None]

    def decode(self, code: Tensor, prior: Tensor, variance: Tensor) -> Tensor:
        """The boxes that `code` stands for, relative to `prior`."""
        code = code if self.encoded_variance else code * variance
        if self.code == "CORNER":
            return prior + code
        low, high = prior[..., :2], prior[..., 2:]
        size = high - low
        if self.code == "CORNER_SIZE":
            return prior + code * torch.cat((size, size), -1)
        centre = code[..., :2] * size + (low + high) / 2
        half = code[..., 2:].exp() * size / 2
        return torch.cat((centre - half, centre + half), -1)

    def select(self, scores: Tensor, boxes: Tensor, label: int) -> Tensor:
        """(label, confidence, box) of the detections of one class in one image, by falling confidence."""
        lowest = torch.finfo(scores.dtype).min if self.confidence is None else self.confidence
        good = (scores > lowest).nonzero()[:, 0]
        order = good[scores[good].argsort(descending=True, stable=True)][:self.candidates]
        boxes, limit, kept = boxes[order], self.overlap, []
        area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
        covered = torch.zeros_like(area)  # the greatest overlap with any box kept
        for k in range(len(order)):
            if covered[k] > limit:
                continue
            kept.append(k)
            common = torch.minimum(boxes[:, 2:], boxes[k, 2:]) - torch.maximum(boxes[:, :2], boxes[k, :2])
            shared = common.prod(1)
            ratio = shared / (area + area[k] - shared)
            covered = torch.maximum(covered, ratio.where((common > 0).all(1), 0))
            limit = limit * self.eta if limit > 0.5 else limit
        first = torch.full_like(scores[order[kept]], label)
        return torch.cat((torch.stack((first, scores[order[kept]]), 1), boxes[kept]), 1)
