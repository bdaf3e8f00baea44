"""Losses and the accuracy as torch modules: they are left out unless they are asked for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graph import Node
from .torch_module import TORCH, Module, module


class Loss(nn.Module):
    """A sum over items divided as Caffe's LossParameter says.

    FULL divides by the number of items, VALID by that of those without `ignore_label`, BATCH_SIZE by that of `outer`
    items (those before the class axis), NONE by 1; all by at least 1.
    """

    def __init__(self, normalization: str = "VALID", ignore_label: int | None = None) -> None:
        super().__init__()
        self.normalization, self.ignore_label = normalization, ignore_label

    def kept(self, label: Tensor) -> Tensor:
        """Which labels count."""
        return torch.ones_like(label, dtype=torch.bool) if self.ignore_label is None else label != self.ignore_label

    def normalize(self, losses: Tensor, kept: Tensor, outer: int) -> Tensor:
        """The loss of all items."""
        total = losses.where(kept, 0).sum()
        if self.normalization == "VALID":
            return total / kept.sum().clamp(min=1)
        divisors = {"FULL": losses.numel(), "BATCH_SIZE": outer, "NONE": 1}
        return total / max(1, divisors[self.normalization])


def _options(node: Node) -> dict[str, Any]:
    options = {"normalization": node.layer._mode}
    return options if node.layer._ignore is None else {**options, "ignore_label": node.layer._ignore}


def _axis(node: Node) -> int:
    return node.param.axis % len(node.in_shapes[0])


@TORCH.add("SoftmaxWithLoss")
def softmax_with_loss(node: Node) -> Module:
    return module(SoftmaxWithLoss, _axis(node), *[True] * (len(node.outputs) > 1), **_options(node))


class SoftmaxWithLoss(Loss):
    """-log of the softmax probability (2^-126 at least) of the label along `axis`; with `both` the probabilities too."""

    def __init__(self, axis: int, both: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.axis, self.both = axis, both

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        label = label.long().reshape(x.shape[:self.axis] + x.shape[self.axis + 1:])
        kept = self.kept(label)
        scores = x.movedim(self.axis, -1).flatten(0, -2)
        losses = F.cross_entropy(scores, label.where(kept, 0).flatten(), reduction="none").reshape(label.shape)
        losses = losses - (losses - 87.33654475).clamp(min=0).detach()
        loss = self.normalize(losses, kept, x.shape[:self.axis].numel())
        return (loss, x.detach().softmax(self.axis)) if self.both else loss


@TORCH.add("InfogainLoss")
def infogain_loss(node: Node) -> Module:
    layer = node.layer
    classes = layer._axis.classes if layer._matrix is not None else None
    made = module(InfogainLoss, _axis(node), classes, *[True] * (len(node.outputs) > 1), **_options(node))
    if classes is not None:
        made.state = {"matrix": layer._matrix.reshape(layer._axis.classes, -1).cpu().numpy()}
        made.blobs = lambda state: []
    return made


class InfogainLoss(Loss):
    """-sum over classes l of H[label, l] * log p_l, p (1e-20 at least) being the softmax along `axis`.

    H is the third input, or, for a given number of `classes`, the buffer `matrix`; with `both` the probabilities are
    returned too.
    """

    def __init__(self, axis: int, classes: int | None = None, both: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.axis, self.both = axis, both
        self.register_buffer("matrix", None if classes is None else torch.eye(classes))

    def forward(self, x: Tensor, label: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        label = label.long().reshape(x.shape[:self.axis] + x.shape[self.axis + 1:])
        kept = self.kept(label)
        matrix = self.matrix if matrix is None else matrix.reshape(x.shape[self.axis], -1)
        log_p = x.movedim(self.axis, -1).log_softmax(-1)
        clamped = log_p + (-46.05170186 - log_p).clamp(min=0).detach()
        losses = -(matrix[label.where(kept, 0)] * clamped).sum(-1)
        loss = self.normalize(losses, kept, x.shape[:self.axis].numel())
        return (loss, x.detach().softmax(self.axis)) if self.both else loss


@TORCH.add("MultinomialLogisticLoss")
def multinomial_logistic_loss(node: Node) -> Module:
    return module(MultinomialLogisticLoss)


class MultinomialLogisticLoss(nn.Module):
    """-log of the probability (1e-20 at least) of the label, averaged over items."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        p = x.flatten(1).gather(1, label.long().reshape(-1, 1))
        return -(p + (1e-20 - p).clamp(min=0).detach()).log().mean()


@TORCH.add("HingeLoss")
def hinge_loss(node: Node) -> Module:
    return module(HingeLoss, *[2] * (node.param.norm == node.param.L2))


class HingeLoss(nn.Module):
    """max(0, 1 - x) for the label's score and max(0, 1 + x) for others, to the `norm`, averaged over items."""

    def __init__(self, norm: int = 1) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x.flatten(1)
        index = label.long().flatten()[:len(x)].unsqueeze(1)
        sign = torch.ones_like(x).scatter_(1, index, -1)
        return torch.relu(1 + sign * x).pow(self.norm).sum() / len(x)


@TORCH.add("EuclideanLoss")
def euclidean_loss(node: Node) -> Module:
    return module(EuclideanLoss)


class EuclideanLoss(nn.Module):
    """Sum of (a - b)^2 / (2 * items)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b.reshape(a.shape)).square().sum() / (2 * len(a))


@TORCH.add("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy_loss(node: Node) -> Module:
    return module(SigmoidCrossEntropyLoss, **_options(node))


class SigmoidCrossEntropyLoss(Loss):
    """-(t log s + (1 - t) log(1 - s)), s = sigmoid(x); a target is cut off to an integer to compare with ignore_label."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape)
        losses = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return self.normalize(losses, self.kept(target.trunc()), len(x))


@TORCH.add("ContrastiveLoss")
def contrastive_loss(node: Node) -> Module:
    p = node.param
    return module(ContrastiveLoss, p.margin, *[True] * p.legacy_version)


class ContrastiveLoss(nn.Module):
    """Sum over pairs / (2 * pairs): d^2 where they are similar (not 0), else max(0, margin - d)^2, d = |a - b|.

    `legacy`: max(0, margin - d^2).
    """

    def __init__(self, margin: float, legacy: bool = False) -> None:
        super().__init__()
        self.margin, self.legacy = margin, legacy

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        squares = (a.flatten(1) - b.flatten(1)).square().sum(1)
        if self.legacy:
            apart = torch.relu(self.margin - squares)
        else:  # the root has no gradient at 0
            apart = torch.relu(self.margin - squares.where(squares > 0, 1e-30).sqrt()).square()
        return torch.where(similar.reshape(-1).trunc() != 0, squares, apart).sum() / (2 * len(a))


@TORCH.add("Accuracy")
def accuracy(node: Node) -> Module:
    ignore = {} if node.layer._ignore is None else {"ignore_label": node.layer._ignore}
    return module(Accuracy, node.param.top_k, _axis(node), *[True] * (len(node.outputs) > 1), **ignore)


class Accuracy(nn.Module):
    """The part of labels whose score is among the `count` largest along `axis`, ties counting against them.

    With `each` the accuracy of each class, too.
    """

    def __init__(self, count: int, axis: int, each: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.count, self.axis, self.each, self.ignore_label = count, axis, each, ignore_label

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x.movedim(self.axis, -1).flatten(0, -2)
        label = label.long().flatten()
        if self.ignore_label is not None:
            x, label = x[label != self.ignore_label], label[label != self.ignore_label]
        hits = ((x >= x.gather(1, label[:, None])).sum(1) <= self.count).to(x.dtype)
        overall = hits.sum() / max(1, len(label))
        if not self.each:
            return overall
        classes = x.new_zeros(x.shape[1])
        counts = classes.index_add(0, label, torch.ones_like(hits))
        return overall, classes.index_add(0, label, hits) / counts.clamp(min=1)
