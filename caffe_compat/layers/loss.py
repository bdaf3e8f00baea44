"""Losses, and the accuracy. A loss is a scalar; what a net adds up is that times its loss_weight.

Integer labels are read by `indices.as_index`, which tells what one out of range does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import proto
from .base import Layer, Shape, format_shape, layer
from .indices import as_index

FLT_MIN = 2.0 ** -126
#: The least probability whose logarithm InfogainLoss and MultinomialLogisticLoss take.
LOG_THRESHOLD = 1e-20


class _ClampValue(torch.autograd.Function):
    """x clamped to [low, high], with the gradient of x unclamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float | None, high: float | None) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _Loss(Layer):
    """What losses share: their bottoms have as many items each, their first top is a scalar."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if not shapes[0] or shapes[0][:1] != shapes[1][:1]:
            names = self.spec.bottom
            raise self.error(f'"{names[0]}" and "{names[1]}" must have as many items (axis 0) each, found '
                             f"{format_shape(shapes[0])} and {format_shape(shapes[1])}", names[1])
        return [()]


class _NormalizedLoss(_Loss):
    """A loss that is a sum over valid items divided as LossParameter says.

    FULL divides by the number of items, VALID by that of those without `ignore_label`, BATCH_SIZE by the size of the
    axes before the class axis, NONE by 1; all by at least 1.
    """

    def read_loss_param(self, default: str = "VALID") -> None:
        """Takes over `ignore_label` and `normalization`; the deprecated `normalize` stands for VALID or BATCH_SIZE."""
        p = self.spec.loss_param
        self._ignore: int | None = p.ignore_label if p.HasField("ignore_label") else None
        if p.HasField("normalization"):
            self._mode = proto.enum_name(p, "normalization")
        elif p.HasField("normalize"):
            self._mode = "VALID" if p.normalize else "BATCH_SIZE"
        else:
            self._mode = default

    def set_counts(self, outer: int, inner: int) -> None:
        """Notes what there is to divide by: `outer` items of `inner` places each."""
        divisors = {"FULL": outer * inner, "VALID": outer * inner, "BATCH_SIZE": outer, "NONE": 1}
        self._divisor = max(1, divisors[self._mode])
        self._is_mean = self._divisor == outer * inner

    def normalize(self, losses: Tensor, count: Tensor | None) -> Tensor:
        """The loss from those of single items, each counted `count` times (None: all once)."""
        if count is None:
            return losses.mean() if self._is_mean else losses.sum() / self._divisor
        total = (losses * count).sum()
        by_count = self._mode == "VALID" and self._ignore is not None
        return total / (count.sum().clamp(min=1) if by_count else self._divisor)


class _ClassAxis:
    """How a blob of scores divides at its class axis: into (outer, classes) or, with axes after it, (.., inner).

    `scores` is that shape, `labels` the same without the classes.
    """

    def __init__(self, owner: Layer, axis: int, shapes: Sequence[Shape]) -> None:
        shape = shapes[0]
        axis = owner.canonical_axis(axis, shape)
        self.outer, self.classes, self.inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1:])
        if prod(shapes[1]) != self.outer * self.inner:
            names, expected = owner.spec.bottom, (*shape[:axis], *shape[axis + 1:])
            raise owner.error(f'"{names[0]}" is {format_shape(shape)} with its classes on axis {axis}, so "{names[1]}" '
                              f"must hold {format_shape(expected)} labels, found {format_shape(shapes[1])}", names[1])
        places = (self.inner,) if self.inner != 1 else ()
        self.scores, self.labels = (self.outer, self.classes, *places), (self.outer, *places)


@layer("SoftmaxWithLoss", bottoms=2, tops=(1, 2), param="softmax_param", loss=True, undifferentiable=(1,))
class SoftmaxWithLoss(_NormalizedLoss):
    """-log of the softmax probability of the label, summed and normalized (SoftmaxParameter.axis, LossParameter).

    Probabilities count as FLT_MIN at least in the value, but not in the gradient, which is always the probabilities
    less the label's 1 (case SoftmaxWithLoss_underflow). A second top gets the probabilities, through which no gradient
    passes; in Caffe, a net with a second top does not run.
    """

    _MAX_LOSS = -log(FLT_MIN)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_loss_param()

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        self._axis = _ClassAxis(self, self.param.axis, shapes)
        self.set_counts(self._axis.outer, self._axis.inner)
        return tops + [shapes[0]] * (len(self.spec.top) - 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        index, count = as_index(self, label.reshape(self._axis.labels), self._axis.classes, 1, self._ignore)
        losses = F.cross_entropy(x.reshape(self._axis.scores), index, reduction="none")
        loss = self.normalize(_ClampValue.apply(losses, None, self._MAX_LOSS), count)
        if len(self.spec.top) < 2:
            return loss
        return loss, x.detach().reshape(self._axis.scores).softmax(1).reshape(x.shape)


@layer("InfogainLoss", bottoms=(2, 3), tops=(1, 2), param="infogain_loss_param", loss=True, undifferentiable=(1, 2))
class InfogainLoss(_NormalizedLoss):
    """-sum over classes l of H[label, l] * log p_l, p the softmax along `axis` (InfogainLossParameter, LossParameter).

    H (classes x classes) is bottom 2 or, without one, read from the BlobProto file `source`, whose name is relative to
    the current folder. Probabilities count as 1e-20 at least, in the value only. A second top gets the probabilities,
    through which no gradient passes.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.spec.loss_param.HasField("normalize"):
            raise self.error("an InfogainLoss layer does not take the deprecated normalize; use normalization")
        self.read_loss_param()
        self._matrix: Tensor | None = None
        if len(shapes) == 2:
            self._matrix = self._read_matrix()

    def _read_matrix(self) -> Tensor:
        path = self.param.source
        if not path:
            raise self.error("without a third bottom, infogain_loss_param.source must name the file of the matrix")
        values = proto.read_binary(path, "BlobProto").arrays[()]
        return torch.tensor(values, dtype=torch.float32, device=self.context.device)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        self._axis = _ClassAxis(self, self.param.axis, shapes)
        self.set_counts(self._axis.outer, self._axis.inner)
        classes, matrix = self._axis.classes, tuple(shapes[2] if len(shapes) > 2 else self._matrix.shape)
        if prod(matrix) != classes ** 2:
            raise self.error(f"there are {classes} classes, so the infogain matrix must be {classes} x {classes}; "
                             f"found {format_shape(matrix)}")
        return tops + [shapes[0]] * (len(self.spec.top) - 1)

    def forward(self, x: Tensor, label: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        index, count = as_index(self, label.reshape(self._axis.labels), self._axis.classes, 1, self._ignore)
        matrix = (self._matrix if matrix is None else matrix).reshape(self._axis.classes, -1)
        log_p = x.reshape(self._axis.scores).log_softmax(1)
        weights = matrix[index].movedim(-1, 1)
        losses = -(weights * _ClampValue.apply(log_p, log(LOG_THRESHOLD), None)).sum(1)
        loss = self.normalize(losses, count)
        return loss if len(self.spec.top) < 2 else (loss, log_p.detach().exp().reshape(x.shape))


@layer("MultinomialLogisticLoss", bottoms=2, loss=True, undifferentiable=(1,))
class MultinomialLogisticLoss(_Loss):
    """-log of the probability of the label, averaged over items; bottom 0 holds probabilities.

    They count as 1e-20 at least, and their gradient is -1 / that (case MultinomialLogisticLoss_zero_probability).
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        if prod(shapes[1][1:]) != 1:
            raise self.error(f"there must be one label an item, found {format_shape(shapes[1])}", self.spec.bottom[1])
        self._shape = (shapes[0][0], prod(shapes[0][1:]))
        return tops

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        items, classes = self._shape
        index, count = as_index(self, label.reshape(items, 1), classes, 1)
        p = x.reshape(self._shape).gather(1, index)
        losses = _ClampValue.apply(p, LOG_THRESHOLD, None).log()
        return (losses if count is None else losses * count).sum() / -items


@layer("HingeLoss", bottoms=2, param="hinge_loss_param", loss=True, undifferentiable=(1,))
class HingeLoss(_Loss):
    """max(0, 1 - x) for the label's score x and max(0, 1 + x) for others, or their squares with norm L2, summed.

    It is averaged over items (HingeLossParameter). All values of an item are one vector of scores; of the labels only
    as many as there are items are read, the first ones.
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        self._shape = (shapes[0][0], prod(shapes[0][1:]))
        return tops

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        items, classes = self._shape
        index, count = as_index(self, label.flatten()[:items].unsqueeze(1), classes, 1)
        sign = torch.ones(self._shape, dtype=x.dtype, device=x.device).scatter_(1, index, -1)
        margins = torch.relu(1 + sign * x.reshape(self._shape))
        if self.param.norm == self.param.L2:
            margins = margins.square()
        return (margins if count is None else margins * count).sum() / items


@layer("EuclideanLoss", bottoms=2, loss=True)
class EuclideanLoss(_Loss):
    """Sum of (a - b)^2 / (2 N), N the number of items; both bottoms get a gradient."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        if prod(shapes[0][1:]) != prod(shapes[1][1:]):
            raise self.error(f"the bottoms must have as many values an item, found {format_shape(shapes[0])} and "
                             f"{format_shape(shapes[1])}", self.spec.bottom[1])
        return tops

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.mse_loss(a, b.reshape(a.shape), reduction="sum") / (2 * a.shape[0])


@layer("SigmoidCrossEntropyLoss", bottoms=2, loss=True, undifferentiable=(1,))
class SigmoidCrossEntropyLoss(_NormalizedLoss):
    """-(t log s + (1 - t) log(1 - s)), s = sigmoid(x), summed and normalized, by BATCH_SIZE unless set (LossParameter).

    A target is cut off to an integer before it is compared with `ignore_label`, as in Caffe: 0.9 and -0.5 are ignored
    with 0 (case SigmoidCrossEntropyLoss_ignore_zero_soft).
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_loss_param("BATCH_SIZE")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        if prod(shapes[0]) != prod(shapes[1]):
            raise self.error(f"there must be as many targets as scores, found {format_shape(shapes[1])} for "
                             f"{format_shape(shapes[0])}", self.spec.bottom[1])
        self.set_counts(shapes[0][0], prod(shapes[0][1:]))
        return tops

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape)
        losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return self.normalize(losses, None if self._ignore is None else (target.trunc() != self._ignore).to(x.dtype))


class _SquaredMargin(torch.autograd.Function):
    """max(0, margin - d)^2 of the squared distances d^2, with Caffe's gradient, which divides by d + 1e-4, not d."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor, margin: float) -> Tensor:
        distance = squares.sqrt()
        gap = torch.relu(margin - distance)
        ctx.save_for_backward(-gap / (distance + 1e-4))
        return gap.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


@layer("ContrastiveLoss", bottoms=3, param="contrastive_loss_param", loss=True, undifferentiable=(2,))
class ContrastiveLoss(_Loss):
    """Sum over pairs / (2 N): d^2 where bottom 2 is not 0 (similar), else max(0, margin - d)^2, d = |a - b|.

    With `legacy_version` max(0, margin - d^2) for the latter (ContrastiveLossParameter; Hadsell et al. 2006). Their
    gradient has d + 1e-4 where its derivation has d, so that a pair of no distance has one (case
    ContrastiveLoss_zero_distance).
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(shapes)
        items, channels = shapes[0][0], prod(shapes[0][1:2])
        for name, shape, expected in zip(self.spec.bottom, shapes, (channels, channels, 1)):
            if shape[:1] != (items,) or prod(shape[1:]) != expected:
                raise self.error(f'"{name}" must be {items} x {expected}, with 1 on further axes; found '
                                 f"{format_shape(shape)}", name)
        self._shape = (items, channels)
        return tops

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        squares = (a.reshape(self._shape) - b.reshape(self._shape)).square().sum(1)
        if self.param.legacy_version:
            apart = torch.relu(self.param.margin - squares)
        else:
            apart = _SquaredMargin.apply(squares, self.param.margin)
        return torch.where(similar.reshape(-1).trunc() != 0, squares, apart).sum() / (2 * self._shape[0])


@layer("Accuracy", bottoms=2, tops=(1, 2), param="accuracy_param", undifferentiable=(0, 1))
class Accuracy(Layer):
    """The part of labels whose score is among the `top_k` largest along `axis` (AccuracyParameter).

    A label counts as missed if more than top_k scores, its own included, are as large: a tie counts against it. Labels
    equal to `ignore_label` count for nothing; without any other it is 0. A second top gets the accuracy of each class,
    0 for a class without labels. There is no gradient.
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        p = self.param
        self._axis = _ClassAxis(self, p.axis, shapes)
        self._ignore: int | None = p.ignore_label if p.HasField("ignore_label") else None
        if p.top_k > self._axis.classes:
            raise self.error(f"accuracy_param.top_k is {p.top_k}, but there are only {self._axis.classes} classes")
        return [(), (self._axis.classes,)][:len(self.spec.top)]

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        index, count = as_index(self, label.reshape(self._axis.labels), self._axis.classes, 1, self._ignore)
        scores = x.reshape(self._axis.scores)
        as_large = (scores >= scores.gather(1, index.unsqueeze(1))).sum(1)
        count = torch.ones_like(as_large, dtype=x.dtype) if count is None else count.to(x.dtype)
        hits = (as_large <= self.param.top_k) * count
        accuracy = hits.sum() / count.sum().clamp(min=1)
        if len(self.spec.top) < 2:
            return accuracy
        hits, count = (x.new_zeros(self._axis.classes).index_add_(0, index.flatten(), values.flatten())
                       for values in (hits, count))
        return accuracy, hits / count.clamp(min=1)
