"""The layer types of the SSD fork (single-shot detection): a fork's types, added in one file and its schema in another.

Boxes are (xmin, ymin, xmax, ymax) as shares of the image's width and height. Priors, P of them, are a blob
(1, 2, 4 P): the boxes, and the four variances of each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..proto import enum_name
from .base import Layer, Shape, format_shape, layer

log = logging.getLogger(__name__)


@layer("Permute", param="permute_param")
class Permute(Layer):
    """The bottom's axes in another order: top axis i is bottom axis `order[i]`; the rest follow (PermuteParameter).

    The top is a view of the bottom.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        order, axes = list(self.param.order), len(shapes[0])
        if len(set(order)) < len(order) or max(order, default=0) >= axes:
            raise self.error(f"order names axes from 0 to {axes - 1}, none of them twice; found "
                             f"{', '.join(map(str, order))} for a bottom of shape {format_shape(shapes[0])}")
        self._order = order + [axis for axis in range(axes) if axis not in order]
        if self.spec.top[0] == self.spec.bottom[0]:
            raise self.error("a Permute layer cannot work in place; give its top a name of its own", self.spec.top[0])

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != len(self._order):
            raise self.error(f"the layer was set up for {len(self._order)} axes, but the bottom now has "
                             f"{len(shapes[0])}: {format_shape(shapes[0])}")
        return [tuple(shapes[0][axis] for axis in self._order)]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self._order)


@layer("Normalize", param="norm_param")
class Normalize(Layer):
    """y = scale x / sqrt(eps + sum of x^2), the sum over channels, or over all of an image with `across_spatial`
    (NormalizeParameter).

    Blob: the scale, of shape () or, without `channel_shared`, one a channel; `scale_filler` fills it (1 by default).
    Where a scale is 0 its gradient is right here and NaN in the fork, which divides the top by it.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._check_axes(shapes[0])
        blob = self.add_param(() if self.param.channel_shared else (shapes[0][1],),
                              self.param.scale_filler if self.param.HasField("scale_filler") else None)
        if not self.param.HasField("scale_filler"):
            blob.tensor.fill_(1)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        self._check_axes(shapes[0])
        if not self.param.channel_shared and shapes[0][1] != self.blobs[0].count:
            raise self.error(f"the scale is for {self.blobs[0].count} channels, but the bottom has {shapes[0][1]}: "
                             f"{format_shape(shapes[0])}")
        self._axes = list(range(1, len(shapes[0]))) if self.param.across_spatial else [1]
        return [shapes[0]]

    def _check_axes(self, shape: Shape) -> None:
        if not 2 <= len(shape) <= 4:
            raise self.error(f"a Normalize layer takes bottoms of 2 to 4 axes, found {format_shape(shape)}")

    def forward(self, x: Tensor) -> Tensor:
        scale = self.blobs[0].tensor
        if scale.dim():
            scale = scale.reshape(-1, *[1] * (x.dim() - 2))
        return x * ((x.square().sum(self._axes, keepdim=True) + self.param.eps).rsqrt() * scale)


@layer("PriorBox", bottoms=(1, 2), param="prior_box_param", undifferentiable=(0, 1))
class PriorBox(Layer):
    """Prior boxes around the cells of a feature map, bottom 0, of an image, bottom 1 (PriorBoxParameter).

    A cell has, for each `min_size` (cut to a whole number of pixels, as in the fork): a square of that size, one of
    sqrt(min_size max_size) if there is a `max_size`, and a box of the area of the first for each `aspect_ratio` (and,
    with `flip`, for its inverse). The image's size is `img_size`, or `img_h` and `img_w`, else that of bottom 1; cells
    are `step` (`step_h`, `step_w`) pixels apart, else as many as the image has for each, and centred at `offset`.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        if not len(p.min_size) or min(p.min_size) <= 0:
            raise self.error(f"min_size has one or more sizes above 0, in pixels; found {list(p.min_size)}")
        pairs = list(zip(p.min_size, p.max_size))
        if len(p.max_size) and (len(p.max_size) != len(p.min_size) or any(high <= low for low, high in pairs)):
            raise self.error(f"there is a max_size for each min_size or for none, and it is greater; found "
                             f"{list(p.max_size)} for {list(p.min_size)}")
        if len(p.variance) not in (0, 1, 4) or min(p.variance, default=1) <= 0:
            raise self.error(f"variance has 1 or 4 values above 0; found {list(p.variance)}")
        if min(p.aspect_ratio, default=1) <= 0:
            raise self.error(f"an aspect_ratio is above 0; found {list(p.aspect_ratio)}")
        self._image = self._pair("img_size", "img_h", "img_w")
        self._step = self._pair("step", "step_h", "step_w")
        if self._image is None and len(shapes) < 2:
            raise self.error("the size of the image is not known; give the image as a second bottom, or set img_size")
        self._sizes = self._box_sizes()

    def _pair(self, both: str, high: str, wide: str) -> tuple[float, float] | None:
        """(height, width) as the field `both`, or `high` and `wide`, say; None if none of them is set."""
        given = [name for name in (both, high, wide) if self.param.HasField(name)]
        if not given:
            return None
        names = (both, both) if given == [both] else (high, wide)
        values = tuple(getattr(self.param, name) for name in names)
        if (both in given and len(given) > 1) or min(values) <= 0:
            raise self.error(f"set {both}, or {high} and {wide}, above 0; found "
                             f"{', '.join(f'{name} {getattr(self.param, name):g}' for name in given)}")
        return values

    def _box_sizes(self) -> Tensor:
        """(boxes a cell, 2): their widths and heights in pixels."""
        p = self.param
        ratios: list[float] = [1.0]
        for ratio in p.aspect_ratio:
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, 1 / ratio] if p.flip else [ratio]
        stretch = torch.tensor([[ratio ** 0.5, ratio ** -0.5] for ratio in ratios], dtype=torch.float64)
        sizes = []
        for i, size in enumerate(map(int, p.min_size)):
            boxes = size * stretch
            if len(p.max_size):
                middle = torch.full((1, 2), (size * int(p.max_size[i])) ** 0.5, dtype=torch.float64)
                boxes = torch.cat((boxes[:1], middle, boxes[1:]))
            sizes.append(boxes)
        return torch.cat(sizes)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        for name, shape in zip(self.spec.bottom, shapes):
            if len(shape) != 4:
                raise self.error(f'bottom "{name}" must have 4 axes (N, C, H, W), found {format_shape(shape)}', name)
        height, width = shapes[0][2:]
        image = torch.tensor(self._image or shapes[1][2:], dtype=torch.float64)
        step = torch.tensor(self._step, dtype=torch.float64) if self._step else image / torch.tensor((height, width))
        rows, columns = ((torch.arange(count) + self.param.offset) * gap for count, gap in zip((height, width), step))
        centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[:, :, None]
        boxes = torch.cat((centres - self._sizes / 2, centres + self._sizes / 2), -1) / image.flip(0).repeat(2)
        if self.param.clip:
            boxes = boxes.clamp(0, 1)
        variance = torch.tensor(list(self.param.variance) or [0.1], dtype=torch.float64).expand(4)
        priors = torch.stack((boxes.flatten(), variance.repeat(boxes.numel() // 4)))
        self._priors = priors[None].to(self.context.device, torch.float32)
        return [tuple(self._priors.shape)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self._priors.clone()  # the top's values are the user's to change


@layer("DetectionOutput", bottoms=(3, 4), param="detection_output_param", undifferentiable=(0, 1, 2, 3))
class DetectionOutput(Layer):
    """What is found in each of N images: boxes decoded from predictions and priors, without those that overlap a better
    one of their class (DetectionOutputParameter).

    Bottoms: locations (N, P L 4), with L = 1 if `share_location`, else one a class; confidences (N, P num_classes);
    priors (1, 2, 4 P); a fourth is not looked at. The top is (1, 1, D, 7) with a row (image, label, confidence, xmin,
    ymin, xmax, ymax) a detection, by image, label and falling confidence; without any, (1, 1, N, 7) with -1 beside the
    image's number. It works on the host, as it does in the fork, since what is kept hangs on what was kept before.
    Files (`save_output_param`) and pictures (`visualize`) are not written.
    """

    dynamic = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        if p.num_classes < 1:
            raise self.error("num_classes is missing; set it to the number of classes, the background included")
        if p.nms_param.nms_threshold < 0 or not 0 < p.nms_param.eta <= 1:
            raise self.error(f"nms_threshold must not be negative and eta lies in (0, 1]; found "
                             f"{p.nms_param.nms_threshold:g} and {p.nms_param.eta:g}")
        if p.visualize or p.save_output_param.output_directory:
            log.warning("%s: visualize and save_output_param are not supported: detections are in the top alone",
                        self.where)
        self._code = enum_name(p, "code_type")
        self._labels = [label for label in range(p.num_classes) if label != p.background_label_id]

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        location, confidence, prior = shapes[:3]
        if len(prior) < 3 or prior[1] != 2 or prior[2] % 4:
            raise self.error(f"the priors have the shape (1, 2, 4 P), found {format_shape(prior)}", self.spec.bottom[2])
        if location[0] != confidence[0]:
            raise self.error(f"locations are of {location[0]} images, confidences of {confidence[0]}")
        priors, classes = prior[2] // 4, self.param.num_classes
        sets = 1 if self.param.share_location else classes
        for name, shape, values in (("locations", location, sets * 4), ("confidences", confidence, classes)):
            if prod(shape[1:]) != priors * values:
                raise self.error(f"found {prod(shape[1:])} {name} an image, expected {priors * values}: {values} for "
                                 f"each of {priors} priors")
        return [(1, 1, 1, 7)]

    def forward(self, location: Tensor, confidence: Tensor, prior: Tensor, *image: Tensor) -> Tensor:
        device, count = location.device, location.shape[0]
        prior = prior.detach().cpu()[0].reshape(2, -1, 1, 4)
        priors = prior.shape[1]
        code = location.detach().cpu().reshape(count, priors, -1, 4)
        boxes = self._decode(code, prior[0], prior[1]).transpose(1, 2)
        scores = confidence.detach().cpu().reshape(count, priors, -1)[..., self._labels].transpose(1, 2)
        boxes = boxes.expand(-1, len(self._labels), -1, -1) if self.param.share_location else boxes[:, self._labels]
        found = self._select(scores, boxes)
        if not len(found):
            log.info("Couldn't find any detections")
            found = torch.full((count, 7), -1.0)
            found[:, 0] = torch.arange(count)
        return found[None, None].to(device)

    def _decode(self, code: Tensor, prior: Tensor, variance: Tensor) -> Tensor:
        """The boxes (..., 4) that `code` stands for, relative to `prior`."""
        p = self.param
        if not p.variance_encoded_in_target:
            code = code * variance
        if self._code == "CORNER":
            return prior + code
        low, high = prior[..., :2], prior[..., 2:]
        size = high - low
        if (size <= 0).any():
            raise self.error("a prior box is empty; its xmax and ymax must be above its xmin and ymin",
                             self.spec.bottom[2])
        if self._code == "CORNER_SIZE":
            return prior + code * size.repeat(1, 1, 2)
        centre = code[..., :2] * size + (low + high) / 2
        half = code[..., 2:].exp() * size / 2
        return torch.cat((centre - half, centre + half), -1)

    def _select(self, scores: Tensor, boxes: Tensor) -> Tensor:
        """Detections (D, 7) of `scores` (images, labels, priors) and `boxes` (images, labels, priors, 4)."""
        p = self.param
        lowest = torch.finfo(torch.float32).min
        good = scores > (p.confidence_threshold if p.HasField("confidence_threshold") else lowest)
        counts = good.sum(2)
        if p.nms_param.HasField("top_k") and p.nms_param.top_k > -1:
            counts = counts.clamp(max=p.nms_param.top_k)
        longest = int(counts.max()) if counts.numel() else 0
        scores, order = scores.where(good, -torch.inf).sort(dim=2, descending=True, stable=True)
        scores, order = scores[..., :longest], order[..., :longest]
        boxes = boxes.gather(2, order[..., None].expand(-1, -1, -1, 4))
        nms = p.nms_param
        kept = non_maximum_suppression(boxes.flatten(0, 1), counts.flatten(), nms.nms_threshold, nms.eta)
        image, label, rank = kept.reshape(scores.shape).nonzero(as_tuple=True)
        labels = torch.tensor(self._labels, dtype=torch.long)[label]
        found = torch.cat((torch.stack((image, labels, scores[image, label, rank]), 1), boxes[image, label, rank]), 1)
        return self._best(found)

    def _best(self, found: Tensor) -> Tensor:
        """The `keep_top_k` best rows of each image, in the order they were in."""
        limit = self.param.keep_top_k
        if limit < 0:
            return found
        rows = []
        for row in found[:, 0].unique_consecutive():
            own = (found[:, 0] == row).nonzero()[:, 0]
            best = found[own, 2].argsort(descending=True, stable=True)[:limit]
            rows.append(own[best.sort().values])
        return found[torch.cat(rows)] if rows else found


def non_maximum_suppression(boxes: Tensor, counts: Tensor, threshold: float, eta: float = 1) -> Tensor:
    """Which boxes to keep (bool, rows x K) of `boxes` (rows, K, 4), the first `counts` of a row, by falling score.

    A box goes if its overlap (intersection over union) with one that is kept is above `threshold`, which, while it is
    above 0.5, is multiplied by `eta` for every box kept. A step finds the next box to keep in each of the rows.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    area = (high - low).clamp(min=0).prod(-1)
    rows, position = torch.arange(len(boxes)), torch.arange(boxes.shape[1])
    keep = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    waiting = position < counts[:, None]
    overlap = torch.zeros_like(area)  # the greatest with any box kept
    limit = torch.full((len(boxes), 1), threshold)
    while (candidates := waiting & (overlap <= limit)).any():
        found, first = candidates.max(1)
        keep[rows, first] |= found
        waiting &= position > first[:, None]
        common = torch.minimum(high, high[rows, first][:, None]) - torch.maximum(low, low[rows, first][:, None])
        shared = common.prod(-1)
        ratio = shared / (area + area[rows, first][:, None] - shared)
        overlap = torch.maximum(overlap, ratio.where((common > 0).all(-1), 0))
        if eta < 1:
            limit = torch.where(found[:, None] & (limit > 0.5), limit * eta, limit)
    return keep
